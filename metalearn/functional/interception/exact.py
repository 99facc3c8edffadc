"""Layers that torch can not differentiate twice, or that vmap can not run or runs one task after another."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import _unpool_output_size  # type: ignore[attr-defined]

from metalearn.functional.interception.call import Call


def _hardsigmoid(call: Call, input: Tensor, inplace: bool = False) -> Tensor:
    # The same piecewise linear function by a kernel that has a second derivative.
    value = F.relu6(input + 3.0) / 6.0
    return input.copy_(value) if inplace else value


def _mish(call: Call, input: Tensor, inplace: bool = False) -> Tensor:
    # vmap has no rule for the backward kernel, and would run one task after another.
    value = input * F.softplus(input).tanh()
    return input.copy_(value) if inplace else value


def _normalize(
    call: Call, input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    # spectral_norm asks for `out=`, which vmap has no rule for; writing the result is the same.
    value = F.normalize(input, p, dim, eps)
    return value if out is None else out.copy_(value)


def _bilinear(call: Call, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    value = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return value if bias is None else value + bias


def _max_unpool(spatial_dims: int) -> Callable[..., Tensor]:
    def unpool(
        call: Call,
        input: Tensor,
        indices: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        output_size: Any = None,
    ) -> Tensor:
        kernel = _each(kernel_size, spatial_dims)
        strides = _each(kernel_size if stride is None else stride, spatial_dims)
        size = _unpool_output_size(input, kernel, strides, _each(padding, spatial_dims), output_size)
        rows = input.shape[: input.dim() - spatial_dims]
        empty = input.new_zeros((*rows, *size)).flatten(-spatial_dims)
        filled = empty.scatter(-1, indices.flatten(-spatial_dims), input.flatten(-spatial_dims))
        return filled.reshape(*rows, *size)

    return unpool


def _interpolate(call: Call, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    options = {**dict(zip(names, args, strict=False)), **kwargs}
    if options.get("mode") != "nearest-exact":
        return F.interpolate(input, *args, **kwargs)
    # vmap has no rule for it: look up where the numbers 0, 1, 2 … of each axis go, and take these entries.
    for axis in range(2, input.dim()):
        own = {
            name: value[axis - 2] if isinstance(value, tuple | list) else value
            for name, value in options.items()
            if name in ("size", "scale_factor", "recompute_scale_factor")
        }
        positions = torch.arange(input.shape[axis], dtype=torch.float64)
        sources = F.interpolate(positions[None, None], mode="nearest-exact", **own)[0, 0].to(torch.int64)
        input = input.index_select(axis, sources.to(input.device))
    return input


def _affine_grid(call: Call, theta: Tensor, size: Any, align_corners: bool | None = None) -> Tensor:
    dims = theta.shape[-1] - 1
    identity = torch.eye(dims, dims + 1, dtype=theta.dtype, device=theta.device)
    points = F.affine_grid(identity[None], [1, *size[1:]], align_corners).reshape(1, -1, dims)
    grid = points @ theta[..., :dims].mT + theta[..., None, :, dims]
    return grid.reshape(len(theta), *size[2:], dims)


def _each(value: Any, count: int) -> list[int]:
    return [*value] if isinstance(value, tuple | list) else [value] * count


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    F.hardsigmoid: _hardsigmoid,
    F.mish: _mish,
    F.normalize: _normalize,
    F.bilinear: _bilinear,
    F.max_unpool1d: _max_unpool(1),
    F.max_unpool2d: _max_unpool(2),
    F.max_unpool3d: _max_unpool(3),
    F.interpolate: _interpolate,
    F.affine_grid: _affine_grid,
}
