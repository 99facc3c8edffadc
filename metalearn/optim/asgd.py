"""Averaged stochastic gradient descent."""

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.optim.base import GradientTransformation
from metalearn.optim.hypers import ANY, Hypers, hyper_parameters
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
from metalearn.types import Hyper, Tensors


class ASGDState(NamedTuple):
    """The state of ASGD.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        average: of the parameters over the steps since `t0`, by parameter name: what to judge in the end.
    """

    num_steps: Tensor
    average: Tensors


@hyper_parameters
def asgd(
    lr: Hyper = 1e-2,
    *,
    lambd: Hyper = 1e-4,
    alpha: Hyper = 0.75,
    t0: Hyper = 1e6,
    weight_decay: Hyper = 0.0,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Averaged SGD, equal to `torch.optim.ASGD`.

    $\eta_t = \eta / (1 + \lambda \eta (t - 1))^\alpha$ and $\theta_t = (1 - \lambda \eta_t) \theta_{t-1} - \eta_t g_t$;
    the average moves by $(\theta_t - \bar\theta_{t-1}) / \max(1, t - 1 - t_0)$. With a schedule, the rate is that of
    its current value (torch's lags one step behind).

    Args:
        lr: learning rate $\eta$, a `metalearn.types.Hyper` like all the others.
        lambd: $\lambda$, how fast the rate decays, and the decay of the parameters.
        alpha: the power $\alpha$ of the rate's decay.
        t0: the step after which the average begins.
        weight_decay: L2 regularisation added to the gradient.
        maximize: climb instead.

    References: Polyak and Juditsky 1992, SIAM Journal on Control and Optimization 30(4); Bottou 2010, "Large-scale
    machine learning with stochastic gradient descent", section 5.
    """
    hypers = Hypers({"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay}, {"alpha": ANY})
    return from_rule(Rule(_move, {"average": zeros}), ASGDState, hypers, maximize=maximize)


def _move(step: Step, gradient: Tensor, param: Tensor, average: Tensor) -> tuple[Tensor, Slots]:
    lr, lambd, past = step.exact("lr"), step.exact("lambd"), step.count - 1
    rate = lr / (1 + lambd * lr * past) ** step.exact("alpha")
    update = step.entries(-lambd * rate) * param - step.entries(rate) * gradient
    since = past - step.exact("t0")
    weight = 1 / (since.clamp_min(1) if isinstance(since, Tensor) else max(1.0, since))
    return update, (torch.lerp(average, param + update, step.entries(weight)),)
