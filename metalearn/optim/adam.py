"""Adam."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.optim.base import GradientTransformation, chain, check_values, value_of, zero_count
from metalearn.optim.sgd import check_not_negative
from metalearn.optim.transforms import add_decayed_weights
from metalearn.types import Hyper, Tensors


def adam(
    lr: Hyper = 1e-3, *, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8, weight_decay: Hyper | None = None
) -> GradientTransformation:
    r"""Adam, equal to `torch.optim.Adam`, differentiable in everything, without NaN for dead units.

    $\theta_t = \theta_{t-1} - \eta \hat m_t / (\sqrt{\hat v_t} + \epsilon)$; see `scale_by_adam` for the moments.

    Args:
        lr: learning rate $\eta$: a float, a tensor, a dict by parameter name, or a schedule; the other
            hyper-parameters likewise.
        b1: decay of the mean, in [0, 1).
        b2: decay of the mean square, in [0, 1).
        eps: added to the root; above 0, or a unit without gradient is 0 / 0.
        weight_decay: L2 regularisation added to the gradient (as in torch's Adam; not the decoupled form of AdamW).

    Raises:
        UsageError: a float out of its range.

    Reference: Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1.
    """
    check_not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
    for name, beta in (("b1", b1), ("b2", b2)):
        if isinstance(beta, int | float) and not 0 <= beta < 1:
            raise UsageError(f"{name} is {beta}, but must be in [0, 1): the moments are divided by 1 - {name}**t.")
    decay = () if weight_decay is None else (add_decayed_weights(weight_decay),)
    # One part with the rate in it, not a chain with `scale_by_learning_rate`: torch.optim.Adam rounds in this order.
    return chain(*decay, _by_adam(b1, b2, eps, lr, sign=-1.0))


class AdamState(NamedTuple):
    """The state of `scale_by_adam`.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        mean: decaying mean of the gradients, by parameter name.
        square: decaying mean of the squared gradients, by parameter name.
    """

    num_steps: Tensor
    mean: Tensors
    square: Tensors


def scale_by_adam(b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8) -> GradientTransformation:
    r"""Adam's direction (Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1).

    $m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t$, $v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2$, and the result is
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$ with the bias-corrected $\hat m_t = m_t / (1 - \beta_1^t)$ and
    $\hat v_t = v_t / (1 - \beta_2^t)$. With a schedule for a beta, $\beta^t$ is taken at its current value.
    """
    return _by_adam(b1, b2, eps, 1.0, sign=1.0)


def _by_adam(b1: Hyper, b2: Hyper, eps: Hyper, rate: Hyper, *, sign: float) -> GradientTransformation:
    """Adam's direction times `sign * rate`, in the operations and the order of torch.optim.Adam."""

    def init(params: Tensors) -> AdamState:
        check_values(params, b1, b2, eps, rate)
        zeros = {name: torch.zeros_like(value) for name, value in params.items()}
        return AdamState(zero_count(params), zeros, {name: torch.zeros_like(value) for name, value in params.items()})

    def update(updates: Tensors, state: AdamState, params: Tensors) -> tuple[Tensors, AdamState]:
        count = state.num_steps + 1
        now = [hyper(state.num_steps) if callable(hyper) else hyper for hyper in (b1, b2, eps, rate)]
        by_name = any(isinstance(hyper, Mapping) for hyper in now)
        mean, square, scaled = {}, {}, {}
        corrections: tuple[Tensor, Tensor] | None = None
        for name, gradient in updates.items():
            beta1, beta2, epsilon, scale = (value_of(hyper, name, state.num_steps) for hyper in now)
            if corrections is None or by_name:
                corrections = _corrections(beta1, beta2, sign * scale, count)
            of_mean, of_root, beta2, epsilon = (_factor(each, gradient) for each in (*corrections, beta2, epsilon))
            mean[name] = _lerp(state.mean[name], gradient, 1 - beta1)
            square[name] = torch.addcmul(beta2 * state.square[name], (1 - beta2) * gradient, gradient)
            scaled[name] = of_mean * mean[name] / (safe_sqrt(square[name]) / of_root + epsilon)
        return scaled, AdamState(count, mean, square)

    return GradientTransformation(init, update)


def _lerp(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    if isinstance(weight, Tensor):
        weight = weight.to(end)
    mixed: Tensor = torch.lerp(start, end, weight)
    return mixed


def _corrections(
    beta1: Tensor | float, beta2: Tensor | float, rate: Tensor | float, count: Tensor
) -> tuple[Tensor, Tensor]:
    """The rate over 1 - beta1 ** count, and the root of 1 - beta2 ** count.

    In double as Python has it: at the first step 1 - 0.999 would keep 13 bits in float32.
    """
    bias1, bias2 = (1 - _wide(beta, count) ** _wide(count, count) for beta in (beta1, beta2))
    # A power and no sqrt(): so has torch.optim, and it differs in the last bit for one step in sixty.
    return _wide(rate, count) / bias1, bias2 ** _wide(0.5, count)


def _wide(value: Tensor | float, count: Tensor) -> Tensor:
    # A tensor also of a float, because `float / tensor` is the float times the reciprocal, rounded twice.
    dtype = torch.float32 if count.device.type == "mps" else torch.float64  # the former has no double
    return value.to(dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=count.device)


def _factor(value: Tensor | float, gradient: Tensor) -> Tensor | float:
    """A factor on a gradient that leaves it its dtype: a tensor of another one does so only as a scalar on a tensor."""
    is_scalar_on_tensor = isinstance(value, Tensor) and not value.dim() and gradient.dim()
    return value.to(gradient.dtype) if isinstance(value, Tensor) and not is_scalar_on_tensor else value


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root, with derivative 0 (not infinity) at 0.

    A dead unit has a second moment of exactly zero; an infinite derivative there times a zero one upstream would make
    the whole meta-gradient NaN. The value is that of `sqrt` everywhere.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), torch.zeros_like(x))
