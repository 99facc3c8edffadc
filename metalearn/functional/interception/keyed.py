"""Draws as functions of a key, in the dtypes that torch draws in."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn import random

_DIGITS = {torch.float16: 11, torch.bfloat16: 8}
"""Binary digits of the floating-point types that are too coarse for the 24 of `random.uniform`: they round to 1."""


def uniform(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform draws on [0, 1), and never 1 in any type; the parts of complex ones are."""
    if dtype.is_complex:
        return torch.view_as_complex(uniform(key, (*shape, 2), dtype=dtype.to_real()))
    if dtype not in _DIGITS:
        return random.uniform(key, shape, dtype=dtype)
    scale = 2.0 ** _DIGITS[dtype]
    return ((random.uniform(key, shape) * scale).floor() / scale).to(dtype)


def normal(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal draws; complex ones have variance 1 in all, a half in each part."""
    if dtype.is_complex:
        return torch.view_as_complex(normal(key, (*shape, 2), dtype=dtype.to_real()) * math.sqrt(0.5))
    if dtype in _DIGITS:
        return random.normal(key, shape).to(dtype)
    return random.normal(key, shape, dtype=dtype)


def inner(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform draws on (0, 1), in float32 or float64: for logarithms, which neither end may reach."""
    odd = ((random.bits(key, shape) >> 9) & 0x7FFFFF) * 2 + 1
    return odd.to(_wide(dtype)) * 2.0**-24


def exponential(key: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Exponential draws with mean 1, above 0."""
    return -torch.log(inner(key, shape, dtype=dtype))


def integers(key: Tensor, low: int, high: int, shape: Sequence[int]) -> Tensor:
    """Uniform int64 draws from low … high - 1; the bias is below (high - low) / 2**32, and / 2**63 for wider ranges."""
    size = high - low
    if size <= 1 << 31:
        return low + ((_unsigned(random.bits(key, shape)) * size) >> 32)
    first, second = (_unsigned(random.bits(random.fold_in(key, part), shape)) for part in (0, 1))
    return low + (((first >> 1) << 32) | second) % size


def permutation(key: Tensor, count: int) -> Tensor:
    """0 … count - 1 in random order, int64."""
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=key.device)
    # Ranks of 63 bits, so that ties, which would favour an order, do not happen.
    first, second = (_unsigned(random.bits(random.fold_in(key, part), (count,))) for part in (0, 1))
    return (((first >> 1) << 32) | second).argsort(dim=-1)


def categories(key: Tensor, weights: Tensor, count: int, *, replacement: bool) -> Tensor:
    """Draws of indices by unnormalised probabilities `[..., category]`, int64 `[..., count]`.

    An exponential race: of arrivals at times E / weight with E exponential the first is drawn by its weight, and the
    first `count` are draws without replacement, in their order.
    """
    shape = (*weights.shape[:-1], count, weights.shape[-1]) if replacement else weights.shape
    rates = weights[..., None, :] if replacement else weights
    times = exponential(key, shape, dtype=weights.dtype) / rates.to(_wide(weights.dtype))
    return times.argmin(-1) if replacement else times.topk(count, dim=-1, largest=False).indices


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _unsigned(bits: Tensor) -> Tensor:
    return bits.to(torch.int64) & 0xFFFFFFFF
