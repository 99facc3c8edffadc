"""torch's operations by what they are."""

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

VIEWS = {
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.select.int, aten.slice.Tensor, aten.alias.default, aten.detach.default, aten.diagonal.default,
    aten.as_strided.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.view_as.default,
}  # fmt: skip
"""Operations that compute nothing: another look at the same memory."""


def writes(node: fx.Node) -> bool:
    """Whether an operation writes into one of its inputs; torch's batch norm does so without saying it."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.is_mutable) or (node.target in _BATCH_NORMS and node.args[3] is not None)


_BATCH_NORMS = {aten.native_batch_norm.default, aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default}


def with_reshapes(graph: fx.Graph) -> None:
    """Writes views as reshapes, in place: a view is of tensors with the strides that they were traced with."""
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default


def once_each(graph: fx.Graph) -> None:
    """Does what is done more than once, on the same inputs, once, in place.

    Two copies that batch norms write their statistics into stay two.
    """
    found: dict[Any, fx.Node] = {}
    written = {argument for node in graph.nodes if writes(node) for argument in node.all_input_nodes}
    for node in list(graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        if node in written:
            continue
        first = found.setdefault((node.target, _hashable(node.args), _hashable(node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _hashable(argument: Any) -> Any:
    if isinstance(argument, dict):
        return tuple((name, _hashable(value)) for name, value in argument.items())
    if isinstance(argument, (list, tuple)):
        return tuple(map(_hashable, argument))
    # 1, 1.0 and True are equal, as 0.0 and -0.0 are, but not the same.
    return argument if isinstance(argument, fx.Node) else (type(argument), repr(argument))
