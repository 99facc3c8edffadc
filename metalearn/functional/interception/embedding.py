"""Embeddings whose gradients are those of their values, and that have second ones.

They differ from torch's in one thing. With `max_norm`, torch shrinks the rows of the parameter itself, in place, at
each look-up, and takes the shrunk rows for constants of the parameter. A parameter that is held outside can not be
written to; here the rows looked up are projected, differentiably, and the parameter stays as it is. The values are
torch's.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.functional.interception.call import Call


def _embedding(
    call: Call,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    # `sparse` only says how torch stores the gradient; a sparse one has no second derivative, so here it is dense.
    if scale_grad_by_freq:
        raise _scaled_gradient("embedding")
    rows = F.embedding(input, weight, padding_idx)
    return rows if max_norm is None else _projected(rows, max_norm, norm_type)


def _projected(rows: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """Rows longer than `max_norm` shrunk to it; the small constant is torch's."""
    lengths = torch.linalg.vector_norm(rows.detach(), norm_type, dim=-1, keepdim=True)
    too_long = lengths > max_norm
    # A length's gradient at a row of zeros is not a number, and would survive being masked afterwards.
    norms = torch.linalg.vector_norm(torch.where(too_long, rows, 1.0), norm_type, dim=-1, keepdim=True)
    return torch.where(too_long, rows * (max_norm / (norms + 1e-7)), rows)


def _embedding_bag(
    call: Call,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """A look-up, and a sum over the entries of each bag: the backward pass of torch's bags has no derivative."""
    if scale_grad_by_freq:
        raise _scaled_gradient("embedding_bag")
    _check_bags(input, offsets, mode, per_sample_weights)
    bags, num_bags = _bags(input, offsets, include_last_offset)
    indices = input.reshape(-1)
    rows = F.embedding(indices, weight)
    rows = rows if max_norm is None else _projected(rows, max_norm, norm_type)
    counted = torch.ones_like(indices, dtype=torch.bool)
    if padding_idx is not None:
        counted = indices != (padding_idx if padding_idx >= 0 else padding_idx + len(weight))
    if mode == "max":
        return _max_of_bags(rows, bags, counted, num_bags)
    kept = counted.to(rows.dtype)[:, None]
    rows = rows * kept
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    summed = rows.new_zeros(num_bags, rows.shape[1]).index_add(0, bags, rows)
    if mode == "sum":
        return summed
    return summed / kept.new_zeros(num_bags, 1).index_add(0, bags, kept).clamp_min(1.0)


def _check_bags(input: Tensor, offsets: Tensor | None, mode: str, per_sample_weights: Tensor | None) -> None:
    if input.is_nested:
        raise UsageError("embedding_bag of a nested tensor is not supported: pass its values() and offsets().")
    if input.dim() not in (1, 2) or (input.dim() == 1) != (offsets is not None):
        shape = list(input.shape)
        raise UsageError(
            f"embedding_bag got indices of shape {shape} {'without' if offsets is None else 'with'} offsets; it takes "
            "[bag, entry] without, or [entry] with one offset a bag."
        )
    if mode not in ("sum", "mean", "max"):
        raise ValueError(f"mode has to be one of sum, mean or max, got {mode!r}")
    if per_sample_weights is not None and (mode != "sum" or per_sample_weights.shape != input.shape):
        raise UsageError("embedding_bag takes per_sample_weights of the shape of its indices, with mode='sum' alone.")


def _bags(input: Tensor, offsets: Tensor | None, include_last_offset: bool) -> tuple[Tensor, int]:
    """The bag of each entry, and how many bags there are."""
    if offsets is None:
        bags = torch.arange(len(input), device=input.device)[:, None].expand(input.shape)
        return bags.reshape(-1), len(input)
    starts = offsets[:-1] if include_last_offset else offsets
    # How many bags have started at each entry; empty ones start where another one does, or behind the last entry.
    begun = offsets.new_zeros(len(input) + 1).index_add(0, starts, torch.ones_like(starts)).cumsum(0)
    return begun[:-1] - 1, len(starts)


def _max_of_bags(rows: Tensor, bags: Tensor, counted: Tensor, num_bags: int) -> Tensor:
    """The largest entry of each bag, 0 for an empty one; of several equal ones the first, as in torch."""
    index = bags[:, None].expand(rows.shape)
    values = torch.where(counted[:, None], rows.detach(), -torch.inf)
    largest = values.new_full((num_bags, rows.shape[1]), -torch.inf).scatter_reduce(0, index, values, "amax")
    count = len(rows)
    position = torch.arange(count, device=rows.device)[:, None].expand(rows.shape)
    candidates = torch.where((values == largest.gather(0, index)) & counted[:, None], position, count)
    first = candidates.new_full((num_bags, rows.shape[1]), count).scatter_reduce(0, index, candidates, "amin")
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return padded.gather(0, first)


def _scaled_gradient(name: str) -> UsageError:
    return UsageError(
        f"{name} with scale_grad_by_freq=True has a gradient that is not the derivative of its value, so a "
        "meta-gradient through it means nothing. Leave it out; to the same end, weight the loss by the words' counts."
    )


REPLACEMENTS: dict[Any, Callable[..., Any]] = {F.embedding: _embedding, F.embedding_bag: _embedding_bag}
