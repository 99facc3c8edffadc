"""Adam, AMSGrad and AdamW."""

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.optim.base import GradientTransformation
from metalearn.optim.hypers import DECAY, Hypers, hyper_parameters
from metalearn.optim.numerics import decayed_square, lerp, over_root
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
from metalearn.types import Hyper, Tensors

BETAS = {"b1": DECAY, "b2": DECAY}
"""The ranges of the decays of the moments."""


class AdamState(NamedTuple):
    """The state of Adam.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        mean: decaying mean of the gradients, by parameter name.
        square: decaying mean of the squared gradients, by parameter name.
    """

    num_steps: Tensor
    mean: Tensors
    square: Tensors


class AMSGradState(NamedTuple):
    """The state of Adam with `amsgrad`.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        mean: decaying mean of the gradients, by parameter name.
        square: decaying mean of the squared gradients, by parameter name.
        largest: the largest that `square` has been, entry by entry.
    """

    num_steps: Tensor
    mean: Tensors
    square: Tensors
    largest: Tensors


@hyper_parameters
def adam(
    lr: Hyper = 1e-3,
    *,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper | None = None,
    amsgrad: bool = False,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Adam, equal to `torch.optim.Adam`.

    $m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t$, $v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2$ and
    $\theta_t = \theta_{t-1} - \eta \hat m_t / (\sqrt{\hat v_t} + \epsilon)$ with $\hat m_t = m_t / (1 - \beta_1^t)$ and
    $\hat v_t = v_t / (1 - \beta_2^t)$. With a schedule for a beta, $\beta^t$ is taken at its current value.

    Args:
        lr: learning rate $\eta$: a float, a tensor, a dict by parameter name or pattern, or a schedule; the other
            hyper-parameters likewise.
        b1: decay of the mean $\beta_1$, in [0, 1).
        b2: decay of the mean square $\beta_2$, in [0, 1).
        eps: $\epsilon$, added to the root.
        weight_decay: L2 regularisation $\lambda\theta$ added to the gradient; `adamw` has the decoupled form.
        amsgrad: divide by the root of the largest $v$ so far.
        decoupled_weight_decay: as `adamw` has it.
        maximize: climb instead.

    Raises:
        UsageError: a hyper-parameter out of its range.

    References: Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1; AMSGrad: Reddi et al. 2018, arXiv:1904.09237,
    Algorithm 2 (with the bias corrections of torch).
    """
    hypers = {"lr": lr, "b1": b1, "b2": b2, "eps": eps}
    return _adam(hypers, weight_decay, amsgrad=amsgrad, decoupled=decoupled_weight_decay, maximize=maximize)


@hyper_parameters
def adamw(
    lr: Hyper = 1e-3,
    *,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Adam with decoupled weight decay, equal to `torch.optim.AdamW`: see `adam`.

    $\theta_t = (1 - \eta\lambda) \theta_{t-1} - \eta \hat m_t / (\sqrt{\hat v_t} + \epsilon)$.

    Reference: Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2 (with torch's $\eta\lambda$ for $\lambda$).
    """
    hypers = {"lr": lr, "b1": b1, "b2": b2, "eps": eps}
    return _adam(hypers, weight_decay, amsgrad=amsgrad, decoupled=True, maximize=maximize)


@hyper_parameters
def scale_by_adam(b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8) -> GradientTransformation:
    r"""Adam's direction $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$ alone, to chain with others: see `adam`."""
    hypers = Hypers({"b1": b1, "b2": b2, "eps": eps}, BETAS)
    return from_rule(Rule(_move, {"mean": zeros, "square": zeros}), AdamState, hypers)


def _adam(
    hypers: dict[str, Hyper], weight_decay: Hyper | None, *, amsgrad: bool, decoupled: bool, maximize: bool
) -> GradientTransformation:
    given = Hypers(hypers if weight_decay is None else {**hypers, "weight_decay": weight_decay}, BETAS)
    slots = {"mean": zeros, "square": zeros}
    if amsgrad:
        rule, state_type = Rule(_move_by_largest, {**slots, "largest": zeros}), AMSGradState
        return from_rule(rule, state_type, given, decoupled=decoupled, maximize=maximize)
    return from_rule(Rule(_move, slots), AdamState, given, decoupled=decoupled, maximize=maximize)


def _move(step: Step, gradient: Tensor, param: Tensor, mean: Tensor, square: Tensor) -> tuple[Tensor, Slots]:
    mean, square = moments(step, gradient, mean, square)
    return direction(step, mean, square), (mean, square)


def _move_by_largest(
    step: Step, gradient: Tensor, param: Tensor, mean: Tensor, square: Tensor, largest: Tensor
) -> tuple[Tensor, Slots]:
    mean, square = moments(step, gradient, mean, square)
    largest = torch.maximum(largest, square)
    return direction(step, mean, largest), (mean, square, largest)


def moments(step: Step, gradient: Tensor, mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """The decaying means of the gradient and of its square, by `b1` and `b2`."""
    b1, b2 = step.exact("b1"), step.exact("b2")
    return (
        lerp(mean, gradient, step.entries(1 - b1)),
        decayed_square(square, gradient, step.entries(b2), step.entries(1 - b2)),
    )


def direction(step: Step, mean: Tensor, square: Tensor) -> Tensor:
    """The bias-corrected mean over the root of the bias-corrected square, times `-lr` where there is a rate."""
    of_mean = (-step.exact("lr") if "lr" in step.values else 1.0) / (1 - step.exact("b1") ** step.count)
    # A power and no sqrt(): so has torch.optim, and it differs in the last bit for one step in sixty.
    of_root = (1 - step.exact("b2") ** step.count) ** 0.5
    return over_root(step.entries(of_mean) * mean, square, step["eps"], scale=step.entries(of_root))
