"""Stochastic gradient descent."""

from metalearn.errors import UsageError
from metalearn.optim.base import GradientTransformation, chain
from metalearn.optim.transforms import add_decayed_weights, scale_by_learning_rate, trace
from metalearn.types import Hyper


def sgd(
    lr: Hyper, *, momentum: Hyper | None = None, nesterov: bool = False, weight_decay: Hyper | None = None
) -> GradientTransformation:
    r"""Gradient descent, equal to `torch.optim.SGD`, differentiable in everything.

    $g_t = \nabla L(\theta_{t-1}) + \lambda \theta_{t-1}$, $m_t = \mu m_{t-1} + g_t$,
    $\theta_t = \theta_{t-1} - \eta m_t$ (Nesterov: $\theta_t = \theta_{t-1} - \eta (g_t + \mu m_t)$).

    Args:
        lr: learning rate $\eta$, a factor on the gradient: a float, a tensor, a dict by parameter name, or a schedule.
        momentum: $\mu$; None (or 0.0) keeps no trace.
        nesterov: look ahead along the momentum.
        weight_decay: $\lambda$; None (or 0.0) for none.

    Raises:
        UsageError: Nesterov without momentum, or a negative float.

    Example:
        >>> import torch
        >>> optimizer, params = sgd(0.1), {"w": torch.tensor(1.0)}
        >>> updates, state = optimizer.update({"w": torch.tensor(2.0)}, optimizer.init(params), params)
        >>> round(updates["w"].item(), 3)
        -0.2
    """
    check_not_negative(lr=lr, momentum=momentum, weight_decay=weight_decay)
    if nesterov and not _is_used(momentum):
        raise UsageError("nesterov=True needs a momentum: pass momentum=0.9, or nesterov=False.")
    parts = []
    if weight_decay is not None and _is_used(weight_decay):
        parts.append(add_decayed_weights(weight_decay))
    if momentum is not None and _is_used(momentum):
        parts.append(trace(momentum, nesterov=nesterov))
    return chain(*parts, scale_by_learning_rate(lr))


def check_not_negative(**hypers: Hyper | None) -> None:
    """Raises UsageError for a float below zero or NaN; tensors and schedules are the outer loop's to keep in range."""
    for name, value in hypers.items():
        if isinstance(value, int | float) and not value >= 0:
            raise UsageError(f"{name} is {value}, but must be a number of at least 0.")


def _is_used(hyper: Hyper | None) -> bool:
    return hyper is not None and not (isinstance(hyper, int | float) and hyper == 0)
