"""A graph, ready to be called."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from metalearn.compilation.graphs import Graph
from metalearn.compilation.operations import VIEWS, aten
from metalearn.errors import UsageError

ON_A_CPU = {"cpp_wrapper": True, "cpp.vec_isa_ok": True}
"""What torch's compiler is told.

It writes one C++ file a graph, with what calls the kernels: a call costs less than from Python, and 18 runs of the C++
compiler become 4 (five steps of an MLP). What the processor can do is asked of the processor: to try it out takes
seconds, and a C++ compiler that can read torch's headers knows the flags.
"""

FEWEST = 3
"""A graph of fewer operations than this is run as it is: to call compiled code costs as much as they do."""


_NO_COMPILER = (
    "compiled execution needs a C++ compiler, and torch found none. Install one (apt install g++, or set CXX), or take "
    "execution.compile=false."
)


class Program:
    """A graph, compiled; a function of the list of all its inputs, which takes what it needs.

    Outputs that are inputs are handed through. What comes out has no history.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        needs, forms = graph.needs, _forms(graph)
        self._needs = [(place, form.stride()) for place, form in zip(needs, forms, strict=False)]
        self._constants = [
            _as(value, form.stride()) for value, form in zip(graph.constants, forms[len(needs) :], strict=True)
        ]
        nodes = graph.placeholders
        computed: list[fx.Node] = []
        self._returned: list[tuple[bool, int]] = []
        for node in graph.outputs:
            if node in nodes:
                self._returned.append((False, nodes.index(node)))
                continue
            if node not in computed:
                computed.append(node)
            self._returned.append((True, computed.index(node)))
        self._run = _compiled(graph, [graph.outputs.index(node) for node in computed], forms) if computed else None

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for these inputs, of which those that are needed have the forms of the traced ones."""
        given = [_as(inputs[place], strides) for place, strides in self._needs]
        given += self._constants
        computed = self._run(given) if self._run is not None else ()
        return [computed[place] if is_computed else given[place] for is_computed, place in self._returned]


def _compiled(
    graph: Graph, outputs: Sequence[int], forms: Sequence[Tensor]
) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    own = graph.keeping(outputs)
    places = [graph.placeholders.index(node) for node in _same(graph, own)]
    run = as_it_is(own) if _num_operations(own) < FEWEST else by_inductor(own, [forms[place] for place in places])
    return lambda given: run([given[place] for place in places])


def _forms(graph: Graph) -> list[Tensor]:
    """The inputs of a graph, and then its constants, as tensors without data that lie in memory as they have to.

    Convolutions on a CPU are fastest where the channels of a pixel lie together, as are the loops over channels that
    torch's compiler makes of what is between them. What one program leaves for another stays so.
    """
    by_pixel = any(map(_is_convolution_on_cpu, graph.module.graph.nodes))
    values = [node.meta["val"] for node in graph.placeholders]
    return [
        torch.empty_like(
            value, device="meta",
            memory_format=torch.channels_last if by_pixel and value.dim() == 4 else torch.contiguous_format,
        )
        for value in values
    ]  # fmt: skip


def _as(value: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The tensor, in memory by these strides, also of an axis with one entry: torch's compiler asks as much."""
    if value.stride() == strides:
        return value
    return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device).copy_(value)


def _is_convolution_on_cpu(node: fx.Node) -> bool:
    """Whether it is one over pictures, and of one task: those of several together have a group a task."""
    if node.target is not aten.convolution.default:
        return False
    value, groups = node.meta["val"], node.args[-1]
    return bool(value.dim() == 4 and value.device.type == "cpu" and groups == 1)


def _same(graph: Graph, own: Graph) -> list[fx.Node]:
    by_name = {node.name: node for node in graph.placeholders}
    return [by_name[node.name] for node in own.placeholders]


def _num_operations(graph: Graph) -> int:
    return sum(node.op == "call_function" and node.target not in VIEWS for node in graph.module.graph.nodes)


def as_it_is(graph: Graph, forms: Sequence[Tensor] = ()) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """Runs a graph operation by operation."""
    module = graph.module

    def call(given: list[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            found: Sequence[Tensor] = module(*given)
        return found

    return call


def by_inductor(graph: Graph, forms: Sequence[Tensor]) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """Runs a graph as code that torch's compiler made of it, for inputs that lie in memory as these."""
    # Imported where something is compiled: sympy takes half a second.
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # torch's cache on disk takes only what was compiled with a record of shapes, though there are none to record here.
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:  # not `from_tensor`, which makes a symbol of a single number, with whatever value it has
        examples: list[Any] = [
            torch.empty_strided(form.shape, form.stride(), dtype=form.dtype, device=node.meta["val"].device)
            for form, node in zip(forms, graph.placeholders, strict=True)
        ]
    for node, example in zip(graph.placeholders, examples, strict=True):
        node.meta["val"] = example  # what torch goes by where it writes C++: strides are no longer those of the trace
    try:
        with tracing(TracingContext(mode)), torch.no_grad():
            # torch.compile's guards would cost 30 us a call
            run: Any = torch._inductor.compile(graph.module, examples, options=_options(examples))
    except Exception as error:
        if not _is_without_compiler(error):
            raise
        raise UsageError(_NO_COMPILER) from error

    def call(given: list[Tensor]) -> Sequence[Tensor]:
        found: Sequence[Tensor] = run(*given)
        return found

    return call


def _options(examples: Sequence[Tensor]) -> dict[str, Any]:
    return dict(ON_A_CPU) if all(example.device.type == "cpu" for example in examples) else {}


def require_compiler(device: torch.device) -> None:
    """Raises UsageError where code for a device could not be compiled, as there is no C++ compiler."""
    if device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        raise UsageError(_NO_COMPILER) from error


def _is_without_compiler(error: Exception) -> bool:
    text = str(error)
    return "InvalidCxxCompiler" in type(error).__name__ or "C++ compiler" in text or "No working C++" in text
