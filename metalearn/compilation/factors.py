"""Graphs without `alpha` and `beta`.

torch's compiler fuses `add(x, mm(a, b), alpha=c)` into a product and loses the factor, silently (torch 2.13; its issues
167313, 195442 and 196577 are of the same kind). An SGD step on a matrix is such a sum. Written as products the factors
are safe, and fused all the same.
"""

from collections.abc import Callable
from typing import Any

from torch import fx

from metalearn.compilation.operations import aten


def without_factors(graph: fx.Graph) -> None:
    """Writes sums with factors as sums of products, in place."""
    for node in list(graph.nodes):
        rewrite = _REWRITES.get(node.target)
        if rewrite is None or _factor(node, "alpha") == 1 == _factor(node, "beta"):
            continue
        with graph.inserting_before(node):
            new = rewrite(graph, node)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _factor(node: fx.Node, name: str) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    place = _PLACES.get((node.target, name))
    return node.args[place] if place is not None and len(node.args) > place else 1


def _times(graph: fx.Graph, value: Any, factor: Any) -> Any:
    if factor == 1 or not isinstance(value, fx.Node):
        return value if factor == 1 else value * factor
    made = graph.call_function(aten.mul.Tensor, (value, factor))
    made.meta["val"] = value.meta["val"]
    return made


def _sum(operation: Any) -> Callable[[fx.Graph, fx.Node], fx.Node]:
    def rewrite(graph: fx.Graph, node: fx.Node) -> fx.Node:
        first, second = node.args[:2]
        return graph.call_function(operation, (first, _times(graph, second, _factor(node, "alpha"))))

    return rewrite


def _reverse_difference(graph: fx.Graph, node: fx.Node) -> fx.Node:
    first, second = node.args[:2]
    return graph.call_function(aten.rsub.Tensor, (_times(graph, first, _factor(node, "alpha")), second))


def _product(operation: Any) -> Callable[[fx.Graph, fx.Node], fx.Node]:
    def rewrite(graph: fx.Graph, node: fx.Node) -> fx.Node:
        added, left, right = node.args[:3]
        product = graph.call_function(operation, (left, right))
        product.meta["val"] = node.meta["val"]
        scaled: fx.Node = _times(graph, product, _factor(node, "alpha"))
        beta = _factor(node, "beta")
        if beta == 0:  # torch does not even look at the summand: it may be infinite
            return scaled
        made: fx.Node = graph.call_function(aten.add.Tensor, (_times(graph, added, beta), scaled))
        return made

    return rewrite


_REWRITES: dict[Any, Callable[[fx.Graph, fx.Node], fx.Node]] = {
    aten.add.Tensor: _sum(aten.add.Tensor),
    aten.sub.Tensor: _sum(aten.sub.Tensor),
    aten.add.Scalar: _sum(aten.add.Scalar),
    aten.sub.Scalar: _sum(aten.sub.Scalar),
    aten.rsub.Tensor: _reverse_difference,
    aten.addmm.default: _product(aten.mm.default),
    aten.baddbmm.default: _product(aten.bmm.default),
    aten.addmv.default: _product(aten.mv.default),
}
_PLACES: dict[Any, int] = {
    (aten.add.Scalar, "alpha"): 2,
    (aten.sub.Scalar, "alpha"): 2,
}
"""Where a factor may stand without its name."""
