"""Adafactor: the second moment of a matrix from its rows and columns."""

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.optim.base import GradientTransformation
from metalearn.optim.hypers import AT_LEAST_0, Hypers, Range, Value, hyper_parameters
from metalearn.optim.numerics import norm, wide
from metalearn.optim.rules import Rule, Slots, Step, from_rule
from metalearn.types import Hyper, Tensors

_RANGES = {"beta2_decay": Range(-float("inf"), 0.0, is_closed=True), "d": Range(1.0), "eps1": AT_LEAST_0}


class AdafactorState(NamedTuple):
    """The state of Adafactor; what a parameter has no use for is of no entries.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        row: of a parameter of two axes or more, the decaying mean square of each row, `[..., row, 1]`.
        column: the same of each column, `[..., 1, column]`.
        square: of a parameter of fewer axes, the decaying mean of the squared gradients.
    """

    num_steps: Tensor
    row: Tensors
    column: Tensors
    square: Tensors


@hyper_parameters
def adafactor(
    lr: Hyper = 1e-2,
    *,
    beta2_decay: Hyper = -0.8,
    eps1: Hyper | None = None,
    eps2: Hyper = 1e-3,
    d: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Adafactor, equal to `torch.optim.Adafactor`.

    $\beta_{2,t} = 1 - t^c$; rows and columns have decaying means $R_t$, $C_t$ of $G_t^2$, and
    $V_t = R_t C_t / \mathrm{mean}(R_t)$. With $U_t = G_t / \sqrt{V_t}$ and
    $\alpha_t = \max(\epsilon_2, \mathrm{RMS}(\theta_{t-1})) \min(\eta, 1 / \sqrt t)$ a step is
    $-\alpha_t U_t / \max(1, \mathrm{RMS}(U_t) / d)$, after a decay of $\eta\lambda$.

    Args:
        lr: $\eta$, the largest relative step, a `metalearn.types.Hyper` like all the others.
        beta2_decay: $c$, at most 0.
        eps1: below its square $V_t$ does not fall; None for the resolution of the parameter's dtype.
        eps2: $\epsilon_2$, the least size a parameter is taken to have.
        d: $d$, above which the size of $U_t$ is clipped, at least 1.
        weight_decay: $\lambda$, decoupled.
        maximize: climb instead; the decay still shrinks.

    Reference: Shazeer and Stern 2018, arXiv:1804.04235, Algorithms 4 and 5 (with the changes that torch documents).
    """
    hypers: dict[str, Hyper] = {
        "lr": lr, "beta2_decay": beta2_decay, "eps2": eps2, "d": d, "weight_decay": weight_decay,
    }  # fmt: skip
    given = Hypers(hypers if eps1 is None else {**hypers, "eps1": eps1}, _RANGES)
    rule = Rule(_move, {"row": _rows, "column": _columns, "square": _squares}, is_entrywise=False)
    return from_rule(rule, AdafactorState, given, decoupled=True, maximize=maximize)


def _rows(step: Step, param: Tensor) -> Tensor:
    return param.new_zeros((*param.shape[:-1], 1) if param.dim() > 1 else 0)


def _columns(step: Step, param: Tensor) -> Tensor:
    return param.new_zeros((*param.shape[:-2], 1, param.shape[-1]) if param.dim() > 1 else 0)


def _squares(step: Step, param: Tensor) -> Tensor:
    return param.new_zeros(0) if param.dim() > 1 else torch.zeros_like(param)


def _move(
    step: Step, gradient: Tensor, param: Tensor, row: Tensor, column: Tensor, square: Tensor
) -> tuple[Tensor, Slots]:
    least = step["eps1"] if "eps1" in step.values else torch.finfo(param.dtype).eps
    new = step.entries(step.count ** step.exact("beta2_decay"))
    squares = gradient.square()
    if param.dim() > 1:
        row = torch.lerp(row, squares.mean(-1, keepdim=True), new)
        column = torch.lerp(column, squares.mean(-2, keepdim=True), new)
        estimate = row @ column / _at_least(row.mean(-2, keepdim=True), least)
    else:
        square = estimate = torch.lerp(square, squares, new)
    direction = gradient * _inverse_root(_at_least(estimate, least * least))
    root_size = param.numel() ** 0.5
    clip = _at_least(norm(direction) / (root_size * step["d"]), 1.0)
    size = _at_least(norm(param) / root_size, step["eps2"])
    return -(size * _relative_step(step) / clip) * direction, (row, column, square)


def _relative_step(step: Step) -> Value:
    rate: Value = step.exact("lr")
    most: Value = 1 / step.count**0.5
    if not isinstance(rate, Tensor) and not isinstance(most, Tensor):
        return min(rate, most)
    device = step.like.device
    return step.entries(torch.minimum(wide(rate, device), wide(most, device)))


def _at_least(x: Tensor, least: float | Tensor) -> Tensor:
    return torch.maximum(x, least) if isinstance(least, Tensor) else x.clamp_min(least)


def _inverse_root(x: Tensor) -> Tensor:
    """`1 / sqrt(x)`, and 0 with derivative 0 at 0, where a gradient of 0 is multiplied."""
    used = x != 0
    return torch.where(used, torch.where(used, x, 1.0).rsqrt(), 0.0)
