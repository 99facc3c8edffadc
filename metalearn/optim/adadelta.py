"""Adadelta: steps of the size of past steps."""

from typing import NamedTuple

from torch import Tensor

from metalearn.optim.base import GradientTransformation
from metalearn.optim.hypers import CLOSED_FRACTION, Hypers, hyper_parameters
from metalearn.optim.numerics import decayed_square, quotient, safe_sqrt
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
from metalearn.types import Hyper, Tensors


class AdadeltaState(NamedTuple):
    """The state of Adadelta.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        square: decaying mean of the squared gradients, by parameter name.
        moved: decaying mean of the squared steps before the rate.
    """

    num_steps: Tensor
    square: Tensors
    moved: Tensors


@hyper_parameters
def adadelta(
    lr: Hyper = 1.0,
    *,
    rho: Hyper = 0.9,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Adadelta, equal to `torch.optim.Adadelta`.

    $v_t = \rho v_{t-1} + (1 - \rho) g_t^2$, $d_t = \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}} g_t$,
    $u_t = \rho u_{t-1} + (1 - \rho) d_t^2$ and $\theta_t = \theta_{t-1} - \eta d_t$.

    Args:
        lr: $\eta$, a `metalearn.types.Hyper` like all the others.
        rho: decay of both means $\rho$, in [0, 1].
        eps: added under both roots; the first step is of the size of its root.
        weight_decay: L2 regularisation added to the gradient.
        maximize: climb instead.

    Reference: Zeiler 2012, arXiv:1212.5701, Algorithm 1.
    """
    hypers = Hypers({"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}, {"rho": CLOSED_FRACTION})
    return from_rule(Rule(_move, {"square": zeros, "moved": zeros}), AdadeltaState, hypers, maximize=maximize)


def _move(step: Step, gradient: Tensor, param: Tensor, square: Tensor, moved: Tensor) -> tuple[Tensor, Slots]:
    rho, new, eps = step["rho"], step.entries(1 - step.exact("rho")), step["eps"]
    square = decayed_square(square, gradient, rho, new)
    change = quotient(safe_sqrt(moved + eps), safe_sqrt(square + eps), 0.0) * gradient
    return -step["lr"] * change, (square, decayed_square(moved, change, rho, new))
