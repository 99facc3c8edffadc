"""Stochastic gradient descent."""

from functools import partial

from torch import Tensor

from metalearn.errors import UsageError
from metalearn.optim.base import CountState, GradientTransformation
from metalearn.optim.hypers import ANY, Hypers, hyper_parameters
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
from metalearn.optim.transforms import TraceState, by_momentum
from metalearn.types import Hyper


@hyper_parameters
def sgd(
    lr: Hyper = 1e-3,
    *,
    momentum: Hyper | None = None,
    dampening: Hyper = 0.0,
    nesterov: bool = False,
    weight_decay: Hyper | None = None,
    maximize: bool = False,
) -> GradientTransformation:
    r"""Gradient descent, equal to `torch.optim.SGD`.

    $g_t = \nabla L(\theta_{t-1}) + \lambda \theta_{t-1}$, $m_t = \mu m_{t-1} + (1 - \tau) g_t$ ($m_1 = g_1$),
    $\theta_t = \theta_{t-1} - \eta m_t$ (Nesterov: $\theta_t = \theta_{t-1} - \eta (g_t + \mu m_t)$).

    Args:
        lr: learning rate $\eta$, a factor on the gradient: a float, a tensor, a dict by parameter name or pattern, or
            a schedule; the other hyper-parameters likewise.
        momentum: $\mu$; None (or 0.0) keeps no trace.
        dampening: $\tau$, how much less than the whole gradient enters the momentum, but for the first.
        nesterov: look ahead along the momentum.
        weight_decay: $\lambda$; None (or 0.0) for none.
        maximize: climb instead; the decay still shrinks.

    Raises:
        UsageError: Nesterov without momentum or with dampening, dampening without momentum, a value out of its range.

    Example:
        >>> import torch
        >>> optimizer, params = sgd(0.1), {"w": torch.tensor(1.0)}
        >>> updates, state = optimizer.update({"w": torch.tensor(2.0)}, optimizer.init(params), params)
        >>> round(updates["w"].item(), 3)
        -0.2
    """
    has_momentum, is_dampened = _is_used(momentum), _is_used(dampening)
    if nesterov and not has_momentum:
        raise UsageError("nesterov=True needs a momentum: pass momentum=0.9, or nesterov=False.")
    if is_dampened and not has_momentum:
        raise UsageError("dampening is of the momentum, and there is none: pass momentum=0.9, or no dampening.")
    if nesterov and is_dampened:
        raise UsageError("Nesterov's momentum has no dampening (nor in torch.optim): pass dampening=0.0.")
    given = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
    hypers = Hypers({name: value for name, value in given.items() if value is not None}, {"dampening": ANY})

    if not has_momentum:
        plain = Rule(_plain, is_light=True, is_direction=True)
        return from_rule(plain, CountState, hypers, maximize=maximize)
    rule = Rule(partial(by_momentum, nesterov=nesterov), {"trace": zeros}, is_light=True, is_direction=True)
    return from_rule(rule, TraceState, hypers, maximize=maximize)


def _plain(step: Step, gradient: Tensor, param: Tensor) -> tuple[Tensor, Slots]:
    return gradient, ()


def _is_used(hyper: Hyper | None) -> bool:
    return hyper is not None and not (isinstance(hyper, int | float) and hyper == 0)
