"""torch's operations by what they are."""

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
