"""A function of tensors, traced into a graph of torch's operations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from metalearn.compilation import convolutions, pools
from metalearn.compilation.factors import without_factors
from metalearn.compilation.operations import VIEWS, aten, once_each, with_reshapes, writes
from metalearn.compilation.unreadable import explained_reads
from metalearn.functional.interception import read_at

_DECOMPOSITIONS = {**pools.DECOMPOSITIONS, **convolutions.DECOMPOSITIONS}
_ZEROS = {aten.zeros_like.default, aten.zeros.default, aten.new_zeros.default, aten._efficientzerotensor.default}
_FULL = {aten.full.default: 1, aten.full_like.default: 1, aten.new_full.default: 2, aten.scalar_tensor.default: 0}
_SAME_ZEROS = {*VIEWS, aten.clone.default, aten._to_copy.default, aten.neg.default, aten.contiguous.default}


@dataclass(frozen=True)
class Graph:
    """A pure function of a list of tensors.

    Attributes:
        module: the operations. Its placeholders are the inputs that it needs, and after them the constants.
        needs: which of the function's inputs those placeholders are.
        constants: tensors that the function uses without having been given them, by reference.
    """

    module: fx.GraphModule
    needs: tuple[int, ...]
    constants: tuple[Tensor, ...]

    @property
    def outputs(self) -> list[fx.Node]:
        """The nodes that are returned, in order."""
        found: list[fx.Node] = list(self.module.graph.output_node().args[0])  # type: ignore[arg-type]
        return found

    @property
    def placeholders(self) -> list[fx.Node]:
        """The nodes of the needed inputs and of the constants."""
        return list(self.module.graph.find_nodes(op="placeholder"))

    def forms(self) -> list[Tensor]:
        """The outputs as tensors without data: their shapes, dtypes and devices."""
        return [node.meta["val"] for node in self.outputs]

    def is_zero(self, number: int) -> bool:
        """Whether an output is seen to be zero whatever the inputs are; one that is not seen costs time alone."""
        return _is_zero(self.outputs[number])

    def text(self) -> str:
        """The operations in a form in which equal graphs are equal."""
        named = {node: f"n{number}" for number, node in enumerate(self.module.graph.nodes)}

        def arguments(node: fx.Node) -> Any:
            return fx.map_arg((node.args, node.kwargs), lambda other: named[other])

        def form(node: fx.Node) -> Any:
            value = node.meta.get("val")
            return (value.dtype, value.shape, value.device) if isinstance(value, Tensor) else None

        return "\n".join(f"{node.op} {node.target} {arguments(node)} {form(node)}" for node in self.module.graph.nodes)

    def keeping(self, outputs: Sequence[int]) -> "Graph":
        """The function that returns these of the outputs alone, without the operations that only others need."""
        module = fx.GraphModule(self.module, _copied(self.module.graph))
        node = module.graph.output_node()
        node.args = ([node.args[0][number] for number in outputs],)  # type: ignore[index]
        return pruned(module, self.needs, self.constants)


def trace(function: Callable[[list[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor]) -> Graph:
    """The operations that `function` does on inputs of these forms; their values do not matter, and none is read.

    Args:
        function: from a list of tensors to a sequence of tensors; pure.
        inputs: tensors with the shapes, dtypes and devices of those to come.

    Raises:
        UsageError: the function decides by the value of a tensor.
    """

    def flat(*tensors: Tensor) -> list[Tensor]:
        with _Reading():
            return list(function(list(tensors)))

    with explained_reads():
        first = _make_fx()(flat, _DECOMPOSITIONS, "fake", _allow_non_fake_inputs=True)(*inputs)
        constants = _lifted(first)
        module = _without_writes(first) if any(map(writes, first.graph.nodes)) else first
    without_factors(module.graph)
    with_reshapes(module.graph)
    once_each(module.graph)
    return pruned(module, tuple(range(len(inputs))), constants)


class _Reading(TorchFunctionMode):
    """Within it `x[number]` is an operation of the tensor `number`, of which torch would ask for the value."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            return read_at(*args)
        return func(*args, **(kwargs or {}))


def pruned(module: fx.GraphModule, needs: tuple[int, ...], constants: tuple[Tensor, ...]) -> Graph:
    """The graph without operations and inputs that no output needs."""
    module.graph.eliminate_dead_code()
    places = [*needs, *(-1 - number for number in range(len(constants)))]
    kept = []
    for place, node in zip(places, module.graph.find_nodes(op="placeholder"), strict=True):
        if node.users:
            kept.append(place)
        else:
            module.graph.erase_node(node)
    module.recompile()
    return Graph(
        module,
        tuple(place for place in kept if place >= 0),
        tuple(constants[-1 - place] for place in kept if place < 0),
    )


def _lifted(module: fx.GraphModule) -> tuple[Tensor, ...]:
    """Makes inputs of the tensors that a graph holds; they come last."""
    graph, constants = module.graph, list[Tensor]()
    last = (graph.find_nodes(op="placeholder") or [None])[-1]
    by_name: dict[str, fx.Node] = {}
    for node in graph.find_nodes(op="get_attr"):
        value = getattr(module, str(node.target), None)
        if not isinstance(value, Tensor):
            continue
        if str(node.target) not in by_name:
            anchor = (
                graph.inserting_after(last) if last is not None else graph.inserting_before(next(iter(graph.nodes)))
            )
            with anchor:
                last = graph.placeholder(f"constant_{len(constants)}")
            last.meta["val"] = value
            by_name[str(node.target)] = last
            constants.append(value.detach())
        node.replace_all_uses_with(by_name[str(node.target)])
        graph.erase_node(node)
    module.recompile()
    return tuple(constants)


def _make_fx() -> Any:
    from torch.fx.experimental.proxy_tensor import make_fx  # where something is traced: sympy takes half a second

    return make_fx


def unfilled(value: Tensor) -> Tensor:
    """A contiguous tensor of the same shape, dtype and device, with any values."""
    return torch.empty(value.shape, dtype=value.dtype, device=value.device)


def _without_writes(module: fx.GraphModule) -> fx.GraphModule:
    # Writes in place, as optimizers do them in memory of their own, would be lost to whoever reorders operations.
    functional = torch.func.functionalize(lambda *tensors: module(*tensors), remove="mutations")
    given = _unfaked([node.meta["val"] for node in module.graph.find_nodes(op="placeholder")])
    with torch.no_grad():
        found: fx.GraphModule = _make_fx()(functional, tracing_mode="fake", _allow_non_fake_inputs=True)(*given)
    return found


def _unfaked(values: Sequence[Tensor]) -> list[Tensor]:
    # Tensors of the same form for another tracer, whose own tensors without data are not to be mixed with these.
    return [
        torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device) for value in values
    ]


def _copied(graph: fx.Graph) -> fx.Graph:
    new, mapping = fx.Graph(), dict[fx.Node, fx.Node]()
    output = new.graph_copy(graph, mapping)
    new.output(output)
    for old, copy in mapping.items():
        copy.meta = dict(old.meta)
    return new


def _is_zero(node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return isinstance(node, (int, float)) and node == 0
    if node.target in _ZEROS:
        return True
    if node.target in _FULL:
        return bool(node.args[_FULL[node.target]] == 0)
    if node.target in _SAME_ZEROS:
        return _is_zero(node.args[0])
    if node.target is aten.mul.Tensor:
        return any(_is_zero(arg) for arg in node.args[:2])
    if node.target is aten.add.Tensor:
        return all(_is_zero(arg) for arg in node.args[:2])
    return False
