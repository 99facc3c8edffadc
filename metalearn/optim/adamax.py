"""Adamax: Adam by the largest gradient in place of the root mean square."""

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.optim.adam import BETAS
from metalearn.optim.base import GradientTransformation
from metalearn.optim.hypers import Hypers, hyper_parameters
from metalearn.optim.numerics import lerp, quotient
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
from metalearn.types import Hyper, Tensors


class AdamaxState(NamedTuple):
    """The state of Adamax.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        mean: decaying mean of the gradients, by parameter name.
        largest: decaying maximum of the gradients' absolute values.
    """

    num_steps: Tensor
    mean: Tensors
    largest: Tensors


@hyper_parameters
def adamax(
    lr: Hyper = 2e-3,
    *,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Adamax, equal to `torch.optim.Adamax`.

    $u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon)$ and $\theta_t = \theta_{t-1} - \eta m_t / ((1 - \beta_1^t) u_t)$
    with Adam's mean $m_t$. The derivative of the absolute value at 0 is 0; where both arguments of the maximum are
    equal, each has half of it.

    Args:
        lr: learning rate $\eta$, a `metalearn.types.Hyper` like all the others.
        b1: decay of the mean $\beta_1$, in [0, 1).
        b2: decay of the maximum $\beta_2$, in [0, 1).
        eps: added to the absolute value.
        weight_decay: L2 regularisation added to the gradient.
        maximize: climb instead.

    Reference: Kingma and Ba 2015, arXiv:1412.6980, Algorithm 2 (with torch's $\epsilon$).
    """
    hypers = Hypers({"lr": lr, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}, BETAS)
    return from_rule(Rule(_move, {"mean": zeros, "largest": zeros}), AdamaxState, hypers, maximize=maximize)


def _move(step: Step, gradient: Tensor, param: Tensor, mean: Tensor, largest: Tensor) -> tuple[Tensor, Slots]:
    b1 = step.exact("b1")
    mean = lerp(mean, gradient, step.entries(1 - b1))
    eps = step["eps"]
    largest = torch.maximum(step["b2"] * largest, gradient.abs() + eps)
    scaled = step.entries(-step.exact("lr") / (1 - b1**step.count)) * mean
    is_never_zero = isinstance(eps, float) and eps > 0
    return scaled / largest if is_never_zero else quotient(scaled, largest, 0.0), (mean, largest)
