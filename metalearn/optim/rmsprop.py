"""RMSprop."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.optim.base import GradientTransformation
from metalearn.optim.hypers import CLOSED_FRACTION, Hypers, hyper_parameters
from metalearn.optim.numerics import decayed_square, lerp, over_root
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
from metalearn.types import Hyper, Tensors


class RMSpropState(NamedTuple):
    """The state of RMSprop.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        square: decaying mean of the squared gradients, by parameter name.
    """

    num_steps: Tensor
    square: Tensors


class CenteredState(NamedTuple):
    """The state of RMSprop with `centered`, `momentum` or both.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        square: decaying mean of the squared gradients, by parameter name.
        mean: decaying mean of the gradients (zeros unless `centered`).
        trace: decaying sum of the steps (zeros without `momentum`).
    """

    num_steps: Tensor
    square: Tensors
    mean: Tensors
    trace: Tensors


@hyper_parameters
def rmsprop(
    lr: Hyper = 1e-2,
    *,
    alpha: Hyper = 0.99,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    momentum: Hyper | None = None,
    centered: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    r"""RMSprop, equal to `torch.optim.RMSprop`.

    $v_t = \alpha v_{t-1} + (1 - \alpha) g_t^2$ and $\theta_t = \theta_{t-1} - \eta g_t / (\sqrt{v_t} + \epsilon)$;
    centered: the root of $v_t - \bar g_t^2$ with $\bar g_t = \alpha \bar g_{t-1} + (1 - \alpha) g_t$, taken for 0 where
    rounding makes that negative; with momentum: $b_t = \mu b_{t-1} + g_t / (\cdot)$ and
    $\theta_t = \theta_{t-1} - \eta b_t$.

    Args:
        lr: learning rate $\eta$, a `metalearn.types.Hyper` like all the others.
        alpha: decay of the means $\alpha$, in [0, 1].
        eps: added to the root.
        weight_decay: L2 regularisation added to the gradient.
        momentum: $\mu$; None for none.
        centered: divide by the standard deviation of the gradient.
        maximize: climb instead.

    References: Tieleman and Hinton 2012, "Neural networks for machine learning", lecture 6.5; centered: Graves 2013,
    arXiv:1308.0850, equations 38 to 41.
    """
    hypers = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
    slots = {"square": zeros}
    state_type: type = RMSpropState
    if momentum is not None:
        hypers["momentum"] = momentum
    if momentum is not None or centered:
        slots, state_type = {"square": zeros, "mean": zeros, "trace": zeros}, CenteredState

    rule = Rule(partial(_move, centered=centered), slots)
    return from_rule(rule, state_type, Hypers(hypers, {"alpha": CLOSED_FRACTION}), maximize=maximize)


def _move(
    step: Step,
    gradient: Tensor,
    param: Tensor,
    square: Tensor,
    mean: Tensor | None = None,
    trace: Tensor | None = None,
    *,
    centered: bool,
) -> tuple[Tensor, Slots]:
    new = step.entries(1 - step.exact("alpha"))
    square = decayed_square(square, gradient, step["alpha"], new)
    if mean is None or trace is None:
        return -step["lr"] * over_root(gradient, square, step["eps"]), (square,)
    variance = square
    if centered:
        mean = lerp(mean, gradient, new)
        variance = torch.addcmul(square, mean, mean, value=-1).clamp_min(0)
    scaled = over_root(gradient, variance, step["eps"])
    if "momentum" in step.values:
        trace = scaled = step["momentum"] * trace + scaled
    return -step["lr"] * scaled, (square, mean, trace)
