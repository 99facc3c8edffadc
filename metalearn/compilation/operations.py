"""torch's operations by what they are."""

import torch

aten = torch.ops.aten

VIEWS = {
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.select.int, aten.slice.Tensor, aten.alias.default, aten.detach.default, aten.diagonal.default,
    aten.as_strided.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.view_as.default,
}  # fmt: skip
"""Operations that compute nothing: another look at the same memory."""
