"""Fractional max-pooling (Graham 2014, arXiv:1412.6071), its regions drawn from a key; vmap has no rule for torch's."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.functional.interception import keyed
from metalearn.functional.interception.call import Call


def _pool(spatial_dims: int, *, indices: bool) -> Callable[..., Any]:
    def pool(
        call: Call,
        input: Tensor,
        kernel_size: Any,
        output_size: Any = None,
        output_ratio: Any = None,
        return_indices: bool = False,
        _random_samples: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        x = input if input.dim() == spatial_dims + 2 else input[None]
        sizes, kernel = x.shape[-spatial_dims:], _each(kernel_size, spatial_dims)
        counts = _counts(sizes, kernel, output_size, output_ratio)
        samples = _random_samples
        if samples is None:
            samples = keyed.uniform(call.draw(), (*x.shape[:2], spatial_dims), dtype=x.dtype).to(x.device)
        positions = _positions(samples, sizes, kernel, counts)
        flat = x.flatten(2)
        values = flat.gather(2, positions.flatten(2)).reshape(positions.shape)
        chosen = positions.gather(-1, values.detach().argmax(-1, keepdim=True))[..., 0]
        # The largest once more, by its place, so that one entry gets the gradient, as in torch.
        pooled = flat.gather(2, chosen.flatten(2)).reshape(chosen.shape)
        pooled, chosen = (pooled, chosen) if x is input else (pooled[0], chosen[0])
        return (pooled, chosen) if indices else pooled

    return pool


def _counts(sizes: Any, kernel: list[int], output_size: Any, output_ratio: Any) -> list[int]:
    """How many regions there are along each axis."""
    if (output_size is None) == (output_ratio is None):
        raise ValueError("fractional max-pooling takes either output_size or output_ratio")
    if output_size is None:
        ratios = _each(output_ratio, len(sizes))
        counts = [int(size * ratio) for size, ratio in zip(sizes, ratios, strict=True)]
    else:
        counts = _each(output_size, len(sizes))
    for size, width, count in zip(sizes, kernel, counts, strict=True):
        if count < 1 or count + width - 1 > size:
            raise ValueError(f"{count} regions of {width} do not fit in a fractional max-pool of {size} entries")
    return counts


def _positions(samples: Tensor, sizes: Any, kernel: list[int], counts: list[int]) -> Tensor:
    """Where each region's entries are among all places of a plane, `[row, channel, *region, entry]`."""
    dims = len(sizes)
    # torch takes the draws of two axes in reversed order, and of three not.
    draws = samples.flip(-1) if dims == 2 else samples
    positions = torch.zeros((), dtype=torch.int64, device=samples.device)
    for axis, (size, width, count) in enumerate(zip(sizes, kernel, counts, strict=True)):
        shape = [1] * (2 * dims)
        shape[axis], shape[dims + axis] = count, width
        entries = _starts(draws[..., axis], size - width, count)[..., None] + torch.arange(width, device=samples.device)
        positions = positions * size + entries.reshape(*samples.shape[:2], *shape)
    return positions.flatten(-dims)


def _starts(draw: Tensor, last: int, count: int) -> Tensor:
    """Where the regions of an axis start: steps of two lengths in a random order, the last one at the end."""
    step = last / (count - 1) if count > 1 else 0.0
    index = torch.arange(count, dtype=draw.dtype, device=draw.device)
    starts = ((index + draw[..., None]) * step).to(torch.int64) - (draw * step).to(torch.int64)[..., None]
    return torch.where(index == count - 1, last, starts)


def _each(value: Any, count: int) -> list[Any]:
    return [*value] if isinstance(value, tuple | list) else [value] * count


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    F.fractional_max_pool2d: _pool(2, indices=False),
    F.fractional_max_pool2d_with_indices: _pool(2, indices=True),
    F.fractional_max_pool3d: _pool(3, indices=False),
    F.fractional_max_pool3d_with_indices: _pool(3, indices=True),
}
