"""Lion: the sign of a momentum."""

from torch import Tensor

from metalearn.optim.base import GradientTransformation, MeanState
from metalearn.optim.hypers import FRACTION, Hypers, hyper_parameters
from metalearn.optim.numerics import lerp
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
from metalearn.types import Hyper


@hyper_parameters
def lion(
    lr: Hyper = 1e-4,
    *,
    b1: Hyper = 0.9,
    b2: Hyper = 0.99,
    weight_decay: Hyper = 0.0,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Lion.

    $\theta_t = \theta_{t-1} - \eta (\mathrm{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t) + \lambda \theta_{t-1})$ and
    $m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t$. The sign has derivative 0 everywhere: nothing flows through the
    gradient, the mean or the betas, but through the rate, the decay and the parameters themselves.

    Args:
        lr: learning rate $\eta$, a `metalearn.types.Hyper` like all the others.
        b1: $\beta_1$, how much of the mean is in the step, in [0, 1).
        b2: decay of the mean $\beta_2$, in [0, 1).
        weight_decay: $\lambda$, decoupled.
        maximize: climb instead; the decay still shrinks.

    Reference: Chen et al. 2023, arXiv:2302.06675, Algorithm 2.
    """
    hypers = Hypers({"lr": lr, "b1": b1, "b2": b2, "weight_decay": weight_decay}, {"b1": FRACTION, "b2": FRACTION})
    return from_rule(Rule(_move, {"mean": zeros}), MeanState, hypers, decoupled=True, maximize=maximize)


def _move(step: Step, gradient: Tensor, param: Tensor, mean: Tensor) -> tuple[Tensor, Slots]:
    ahead, after = (lerp(mean, gradient, step.entries(1 - step.exact(name))) for name in ("b1", "b2"))
    return -step["lr"] * ahead.sign(), (after,)
