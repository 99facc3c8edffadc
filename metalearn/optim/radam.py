"""RAdam: Adam without the adaptive rate while its variance is unknown."""

import torch
from torch import Tensor

from metalearn.optim.adam import BETAS, AdamState, moments
from metalearn.optim.base import GradientTransformation
from metalearn.optim.hypers import Hypers, Value, hyper_parameters
from metalearn.optim.numerics import over_root
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
from metalearn.types import Hyper


@hyper_parameters
def radam(
    lr: Hyper = 1e-3,
    *,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Rectified Adam, equal to `torch.optim.RAdam`.

    With $\rho_\infty = 2 / (1 - \beta_2) - 1$ and $\rho_t = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t)$ a step is
    $-\eta \hat m_t$ while $\rho_t \le 5$, and afterwards
    $-\eta r_t \hat m_t \sqrt{1 - \beta_2^t} / (\sqrt{v_t} + \epsilon)$ with
    $r_t^2 = \frac{(\rho_t - 4)(\rho_t - 2)\rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2)\rho_t}$. The derivative in
    $\beta_2$ is that of the branch a step is in.

    Args:
        lr: learning rate $\eta$, a `metalearn.types.Hyper` like all the others.
        b1: decay of the mean, in [0, 1).
        b2: decay of the mean square, in [0, 1).
        eps: added to the root.
        weight_decay: added to the gradient times the parameter; or, decoupled, taken off the parameter.
        decoupled_weight_decay: as AdamW does it.
        maximize: climb instead.

    Reference: Liu et al. 2020, arXiv:1908.03265, Algorithm 2 (with torch's bound of 5 where the paper has 4).
    """
    hypers = Hypers({"lr": lr, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}, BETAS)
    rule = Rule(_move, {"mean": zeros, "square": zeros})
    return from_rule(rule, AdamState, hypers, decoupled=decoupled_weight_decay, maximize=maximize)


def _move(step: Step, gradient: Tensor, param: Tensor, mean: Tensor, square: Tensor) -> tuple[Tensor, Slots]:
    mean, square = moments(step, gradient, mean, square)
    b2, count = step.exact("b2"), step.count
    correction = 1 - b2**count
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * count * b2**count / correction
    plain = step.entries(-step.exact("lr") / (1 - step.exact("b1") ** count)) * mean
    if not isinstance(length, Tensor) and length <= 5:
        return plain, (mean, square)
    adapted = over_root(plain * step.entries(_rectifier(length, longest, correction)), square, step["eps"])
    update = torch.where(length > 5, adapted, plain) if isinstance(length, Tensor) else adapted
    return update, (mean, square)


def _rectifier(length: Value, longest: Value, correction: Value) -> Value:
    """The rectification times the root of the bias correction; something harmless where it is not used."""
    if isinstance(length, Tensor):
        used = length > 5
        # Where it is not used it may be the root of a negative number, whose NaN would reach the derivative.
        length, longest = torch.where(used, length, 6.0), torch.where(used, longest, 6.0)
    rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return rectified**0.5 * correction**0.5
