"""Distances between sets of points; torch's have no second derivative."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.functional.interception.call import Call


def _cdist(
    call: Call, x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary"
) -> Tensor:
    # Above 25 points torch multiplies matrices unless told not to. A distance of 0 then comes out as 1e-8, and its
    # second derivative as 1e24: that has to be asked for here. Differences take [..., first, second, feature] numbers.
    if p == 2.0 and compute_mode == "use_mm_for_euclid_dist":
        # About the second set's mean fewer digits cancel; no distance changes.
        centre = x2.detach().mean(-2, keepdim=True)
        x1, x2 = x1 - centre, x2 - centre
        squares = x1.square().sum(-1)[..., :, None] + x2.square().sum(-1)[..., None, :] - 2 * x1 @ x2.mT
        return _root(squares.clamp_min(0.0), 2.0)
    return _length(x1[..., :, None, :] - x2[..., None, :, :], p)


def _pdist(call: Call, input: Tensor, p: float = 2.0) -> Tensor:
    first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _length(input[first] - input[second], p)


def _length(difference: Tensor, p: float) -> Tensor:
    """The p-norm over the last axis, with the derivative 0 where the difference is 0, as torch has."""
    if p < 0:
        raise ValueError(f"a distance of order p needs p >= 0, got {p}")
    if p == 0.0:
        return (difference != 0).to(difference.dtype).sum(-1)
    if p == 2.0:
        return _root(difference.square().sum(-1), 2.0)
    if difference.shape[-1] == 0:
        return difference.sum(-1)
    size = difference.abs()
    if p == 1.0:
        return size.sum(-1)
    if p == float("inf"):
        return size.amax(-1)
    # A power's derivatives at 0 are infinite for a small p: take it elsewhere, and then 0 instead.
    nonzero = size > 0
    return _root(torch.where(nonzero, torch.where(nonzero, size, 1.0) ** p, 0.0).sum(-1), p)


def _root(power: Tensor, p: float) -> Tensor:
    nonzero = power > 0
    positive = torch.where(nonzero, power, 1.0)
    return torch.where(nonzero, positive.sqrt() if p == 2.0 else positive ** (1.0 / p), 0.0)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {torch.cdist: _cdist, F.pdist: _pdist}
