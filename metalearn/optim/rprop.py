"""Rprop: steps by the sign of the gradient."""

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.optim.base import GradientTransformation
from metalearn.optim.hypers import ABOVE_0, ABOVE_1, Hypers, Range, hyper_parameters
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
from metalearn.types import Hyper, Tensors

_RANGES = {
    "eta_minus": Range(0.0, 1.0, is_open=True), "eta_plus": ABOVE_1, "min_step": ABOVE_0, "max_step": ABOVE_0,
}  # fmt: skip


class RpropState(NamedTuple):
    """The state of Rprop.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        previous: the gradient of the step before, 0 where its sign had changed, by parameter name.
        size: how far each entry moves.
    """

    num_steps: Tensor
    previous: Tensors
    size: Tensors


@hyper_parameters
def rprop(
    lr: Hyper = 1e-2,
    *,
    eta_minus: Hyper = 0.5,
    eta_plus: Hyper = 1.2,
    min_step: Hyper = 1e-6,
    max_step: Hyper = 50.0,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Resilient propagation, equal to `torch.optim.Rprop`.

    Where $g_t g_{t-1}$ is positive the step size grows by $\eta^+$, where it is negative it shrinks by $\eta^-$ and
    $g_t$ is taken for 0; $\theta_t = \theta_{t-1} - \mathrm{sign}(g_t) \Delta_t$. The gradient acts through its sign
    alone, whose derivative is 0: derivatives flow through the sizes and the parameters only.

    Args:
        lr: the first step size, a `metalearn.types.Hyper` like all the others; a schedule is asked once, at the start.
        eta_minus: $\eta^-$, in (0, 1); the first of torch's `etas`.
        eta_plus: $\eta^+$, above 1; the second of torch's `etas`.
        min_step: the least step size; the first of torch's `step_sizes`.
        max_step: the largest step size; the second of torch's `step_sizes`.
        maximize: climb instead.

    Reference: Riedmiller and Braun 1993, "A direct adaptive method for faster backpropagation learning" (iRprop-).
    """
    if isinstance(min_step, int | float) and isinstance(max_step, int | float) and min_step > max_step:
        raise UsageError(f"min_step is {min_step:g}, and max_step {max_step:g}: the least has to be below the largest.")
    hypers = Hypers(
        {"lr": lr, "eta_minus": eta_minus, "eta_plus": eta_plus, "min_step": min_step, "max_step": max_step}, _RANGES
    )
    slots = {"previous": zeros, "size": _first_size}
    return from_rule(Rule(_move, slots), RpropState, hypers, maximize=maximize)


def _first_size(step: Step, param: Tensor) -> Tensor:
    return torch.zeros_like(param) + step["lr"]


def _move(step: Step, gradient: Tensor, param: Tensor, previous: Tensor, size: Tensor) -> tuple[Tensor, Slots]:
    agreement = (gradient * previous).sign()
    shrunk, grown = (size * step[name] for name in ("eta_minus", "eta_plus"))
    size = torch.where(agreement > 0, grown, torch.where(agreement < 0, shrunk, size))
    size = torch.minimum(torch.maximum(size, _entry(step["min_step"], size)), _entry(step["max_step"], size))
    gradient = torch.where(agreement < 0, 0.0, gradient)
    return -gradient.sign() * size, (gradient, size)


def _entry(value: float | Tensor, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=like.dtype, device=like.device)
