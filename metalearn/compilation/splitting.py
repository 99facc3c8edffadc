"""A graph of a function and its pullback, split into the function and the pullback."""

from torch import Tensor, fx

from metalearn.compilation.graphs import Graph, pruned
from metalearn.compilation.operations import VIEWS, aten

_CHEAP = {
    *VIEWS, aten.le.Scalar, aten.gt.Scalar, aten.eq.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.scalar_tensor.default,
    aten.full.default, aten.full_like.default, aten.zeros_like.default, aten.ones_like.default, aten.clone.default,
    aten.new_zeros.default, aten.arange.default, aten.zeros.default, aten.ones.default, aten.neg.default,
}  # fmt: skip
"""Operations that are done again on the way back, as to keep their result would cost more."""

_CHEAP_ON_INTEGERS = {
    aten.eq.Tensor, aten.ne.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.floor_divide.default,
    aten.remainder.Scalar, aten._to_copy.default, aten.bitwise_or.Tensor, aten.bitwise_and.Tensor,
}  # fmt: skip
"""Those of integers and of truth values alone: which entry of a window was the largest, and where that lies."""


def split(joint: Graph, *, num_inputs: int, num_outputs: int) -> tuple[Graph, Graph]:
    """The two halves of a function that returns outputs and, for cotangents of these, cotangents of its inputs.

    Args:
        joint: a function of `num_inputs` inputs and, after them, cotangents; it returns `num_outputs` outputs and then
            what it pulled back.
        num_inputs: of the function alone.
        num_outputs: of the function alone.

    Returns:
        The forward half, of the same inputs as `joint`, returns the outputs and whatever the way back needs. The
        backward half, of that and then the cotangents, returns the rest.
    """
    graph = joint.module.graph
    places = dict(zip(joint.placeholders, joint.needs, strict=False))
    after = {node for node, place in places.items() if place >= num_inputs}
    for node in graph.nodes:
        if any(other in after for other in node.all_input_nodes):
            after.add(node)
    pulled = joint.outputs[num_outputs:]
    residuals, again = _boundary(
        [node for node in graph.nodes if node in after and node.op == "call_function"], pulled, after
    )

    forward = fx.GraphModule(joint.module, fx.Graph())
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or (node.op != "output" and node not in after):
            copies[node] = forward.graph.node_copy(node, lambda other: copies[other])
    forward.graph.output([copies[node] for node in (*joint.outputs[:num_outputs], *residuals)])

    backward = fx.GraphModule(joint.module, fx.Graph())
    copies = {node: _placeholder(backward.graph, node) for node in residuals}
    tangents = [node for node, place in places.items() if place >= num_inputs]
    copies |= {node: _placeholder(backward.graph, node) for node in tangents}
    for node in graph.nodes:
        if node in again or (node in after and node.op == "call_function"):
            copies[node] = backward.graph.node_copy(node, lambda other: copies[other])
    backward.graph.output([copies[node] for node in pulled])

    first = pruned(forward, joint.needs, joint.constants)
    needs = (*range(len(residuals)), *(len(residuals) + places[node] - num_inputs for node in tangents))
    return first, pruned(backward, needs, ())


def _boundary(nodes: list[fx.Node], pulled: list[fx.Node], after: set[fx.Node]) -> tuple[list[fx.Node], set[fx.Node]]:
    """What the way back takes from the way there: values to keep, and operations to do again."""
    kept: dict[fx.Node, None] = {}
    again: set[fx.Node] = set()
    pending = [other for node in nodes for other in node.all_input_nodes if other not in after]
    pending += [node for node in pulled if node not in after]
    while pending:
        node = pending.pop()
        if node in kept or node in again:
            continue
        if node.op == "call_function" and _is_cheap(node):
            again.add(node)
            pending.extend(node.all_input_nodes)
        else:
            kept[node] = None
    return list(kept), again


def _is_cheap(node: fx.Node) -> bool:
    if not isinstance(node.meta.get("val"), Tensor) or node.target in _CHEAP:
        return True
    values = [each.meta.get("val") for each in (node, *node.all_input_nodes)]
    return node.target in _CHEAP_ON_INTEGERS and not any(
        isinstance(value, Tensor) and value.is_floating_point() for value in values
    )


def _placeholder(graph: fx.Graph, node: fx.Node) -> fx.Node:
    made = graph.placeholder(node.name)
    made.meta = dict(node.meta)
    return made
