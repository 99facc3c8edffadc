"""NAdam: Adam with Nesterov's momentum."""

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.optim.adam import BETAS, moments
from metalearn.optim.base import GradientTransformation
from metalearn.optim.hypers import Hypers, hyper_parameters
from metalearn.optim.numerics import over_root
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
from metalearn.types import Hyper, Tensors


class NAdamState(NamedTuple):
    """The state of NAdam.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        mean: decaying mean of the gradients, by parameter name.
        square: decaying mean of the squared gradients, by parameter name.
        product: of the momenta so far, entry by entry, as each may have its own.
    """

    num_steps: Tensor
    mean: Tensors
    square: Tensors
    product: Tensors


@hyper_parameters
def nadam(
    lr: Hyper = 2e-3,
    *,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    momentum_decay: Hyper = 4e-3,
    weight_decay: Hyper = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> GradientTransformation:
    r"""NAdam, equal to `torch.optim.NAdam`.

    With Adam's moments and $\mu_t = \beta_1 (1 - \frac{1}{2} 0.96^{t \psi})$ the mean is replaced by
    $\mu_{t+1} m_t / (1 - \prod_{i \le t+1} \mu_i) + (1 - \mu_t) g_t / (1 - \prod_{i \le t} \mu_i)$.

    Args:
        lr: learning rate, a `metalearn.types.Hyper` like all the others.
        b1: decay of the mean $\beta_1$, in [0, 1).
        b2: decay of the mean square, in [0, 1).
        eps: added to the root.
        momentum_decay: $\psi$.
        weight_decay: added to the gradient times the parameter; or, decoupled, taken off the parameter.
        decoupled_weight_decay: as AdamW does it.
        maximize: climb instead.

    Reference: Dozat 2016, "Incorporating Nesterov momentum into Adam", Algorithm 2 with the schedule of its section 3.
    """
    hypers = {"lr": lr, "b1": b1, "b2": b2, "eps": eps, "momentum_decay": momentum_decay, "weight_decay": weight_decay}
    rule = Rule(_move, {"mean": zeros, "square": zeros, "product": _ones})
    return from_rule(rule, NAdamState, Hypers(hypers, BETAS), decoupled=decoupled_weight_decay, maximize=maximize)


def _ones(step: Step, param: Tensor) -> Tensor:
    return torch.ones_like(param)


def _move(
    step: Step, gradient: Tensor, param: Tensor, mean: Tensor, square: Tensor, product: Tensor
) -> tuple[Tensor, Slots]:
    mean, square = moments(step, gradient, mean, square)
    b1, decay, rate = (step.exact(name) for name in ("b1", "momentum_decay", "lr"))
    now, after = (b1 * (1 - 0.5 * 0.96 ** (count * decay)) for count in (step.count, step.count + 1))
    product = product * step.entries(now)
    unbiased = square / step.entries(1 - step.exact("b2") ** step.count)
    of_gradient = step.entries(-rate * (1 - now)) / (1 - product)
    of_mean = step.entries(-rate * after) / (1 - product * step.entries(after))
    return over_root(of_gradient * gradient + of_mean * mean, unbiased, step["eps"]), (mean, square, product)
