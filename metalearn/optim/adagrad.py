"""Adagrad: a rate that shrinks with the gradients an entry has seen."""

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.optim.base import GradientTransformation
from metalearn.optim.hypers import Hypers, hyper_parameters
from metalearn.optim.numerics import over_root
from metalearn.optim.rules import Rule, Slots, Step, from_rule
from metalearn.types import Hyper, Tensors


class AdagradState(NamedTuple):
    """The state of Adagrad.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        sum: of the squared gradients, by parameter name.
    """

    num_steps: Tensor
    sum: Tensors


@hyper_parameters
def adagrad(
    lr: Hyper = 1e-2,
    *,
    lr_decay: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    initial_accumulator_value: Hyper = 0.0,
    eps: Hyper = 1e-10,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Adagrad, equal to `torch.optim.Adagrad` for dense gradients.

    $s_t = s_{t-1} + g_t^2$ and $\theta_t = \theta_{t-1} - \eta_t g_t / (\sqrt{s_t} + \epsilon)$ with
    $\eta_t = \eta / (1 + (t - 1) \gamma)$.

    Args:
        lr: learning rate $\eta$, a `metalearn.types.Hyper` like all the others.
        lr_decay: $\gamma$.
        weight_decay: L2 regularisation added to the gradient.
        initial_accumulator_value: $s_0$.
        eps: added to the root.
        maximize: climb instead.

    Reference: Duchi, Hazan and Singer 2011, JMLR 12, equation 1 and figure 1 (diagonal).
    """
    hypers = Hypers(
        {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps,
            "initial_accumulator_value": initial_accumulator_value,
        }
    )  # fmt: skip
    return from_rule(Rule(_move, {"sum": _first}), AdagradState, hypers, maximize=maximize)


def _first(step: Step, param: Tensor) -> Tensor:
    return torch.zeros_like(param) + step["initial_accumulator_value"]


def _move(step: Step, gradient: Tensor, param: Tensor, total: Tensor) -> tuple[Tensor, Slots]:
    total = torch.addcmul(total, gradient, gradient)
    rate = step.exact("lr") / (1 + (step.count - 1) * step.exact("lr_decay"))
    return over_root(step.entries(-rate) * gradient, total, step["eps"]), (total,)
