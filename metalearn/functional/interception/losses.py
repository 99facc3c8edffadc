"""Losses that torch can not differentiate twice, or that vmap can not run."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn._reduction import legacy_get_string

from metalearn.functional.interception.call import Call
from metalearn.functional.interception.ctc import ctc_loss


def _reduced(loss: Tensor, reduction: str, size_average: bool | None = None, reduce: bool | None = None) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def _multi_margin(
    call: Call,
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    if p not in (1, 2):
        raise ValueError("only p == 1 and p == 2 supported")
    index = target.reshape(*input.shape[:-1], 1)
    gap = (margin - input.gather(-1, index) + input).clamp_min(0.0)
    gap = gap if p == 1 else gap.square()
    if weight is not None:
        gap = gap * weight[index]
    others = torch.arange(input.shape[-1], device=input.device) != index
    loss = torch.where(others, gap, 0.0).sum(-1) / input.shape[-1]
    return _reduced(loss.reshape(target.shape), reduction, size_average, reduce)


def _multilabel_margin(
    call: Call,
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    listed = (target >= 0).to(torch.int64).cumprod(-1).bool()  # labels up to the first negative one
    index = torch.where(listed, target, 0)
    hits = torch.zeros_like(target).scatter_add(-1, index, listed.to(target.dtype))
    wrong = hits == 0
    gap = (1.0 - input.gather(-1, index)[..., :, None] + input[..., None, :]).clamp_min(0.0)
    counted = listed[..., :, None] & wrong[..., None, :]
    loss = torch.where(counted, gap, 0.0).sum((-2, -1)) / input.shape[-1]
    return _reduced(loss, reduction, size_average, reduce)


def _soft_margin(
    call: Call,
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    return _reduced(-F.logsigmoid(input * target), reduction, size_average, reduce)


def _gaussian_nll(
    call: Call,
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    if not isinstance(var, Tensor):
        var = torch.full_like(input, var)
    if var.shape != input.shape:
        if input.shape[:-1] == var.shape:
            var = var[..., None]
        elif input.dim() != var.dim() or sum(a for a, b in zip(input.shape, var.shape, strict=True) if a != b) == 0:
            raise ValueError("var is of incorrect size")
    if not torch._C._functorch.is_functorch_wrapped_tensor(var) and bool((var < 0).any()):
        raise ValueError("var has negative entry/entries")
    # Under vmap no value can be read, and so none refused: a negative variance gives NaN there.
    clamped = torch.where(var < 0, torch.nan, var + (var.clamp_min(eps) - var).detach())
    loss = 0.5 * (clamped.log() + (input - target).square() / clamped)
    return _reduced(loss + 0.5 * math.log(2 * math.pi) if full else loss, reduction)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    F.multi_margin_loss: _multi_margin,
    F.multilabel_margin_loss: _multilabel_margin,
    F.soft_margin_loss: _soft_margin,
    F.gaussian_nll_loss: _gaussian_nll,
    F.ctc_loss: ctc_loss,
}
