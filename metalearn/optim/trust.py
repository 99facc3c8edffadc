"""Rates by layer, from the sizes of its parameters and of its updates: LARS and LAMB."""

from collections.abc import Callable

import torch
from torch import Tensor

from metalearn.optim.adam import scale_by_adam
from metalearn.optim.base import GradientTransformation, chain
from metalearn.optim.hypers import Hypers, Value, hyper_parameters
from metalearn.optim.numerics import add_scaled, norm
from metalearn.optim.transforms import add_decayed_weights, counting, scale_by_learning_rate, trace
from metalearn.types import Hyper


@hyper_parameters
def scale_by_trust_ratio(
    coefficient: Hyper = 1.0, *, weight_decay: Hyper = 0.0, eps: Hyper = 0.0
) -> GradientTransformation:
    r"""Makes each tensor's update as large as the tensor: $u \leftarrow r (u + \lambda \theta)$.

    $r = c \|\theta\| / (\|u\| + \lambda \|\theta\| + \epsilon)$, and $r = 1$ where either norm is zero (as at the start
    of a bias), with derivative 0. Biases and norms' scales are often left out: `masked(scale_by_trust_ratio(),
    "*.weight")`.

    Args:
        coefficient: $c$, LARS's $\eta$; a float, a tensor, a dict by parameter name or pattern, or a schedule; the
            others likewise.
        weight_decay: $\lambda$, of L2 regularisation with LARS's denominator, the sum of two norms. 0 leaves decay to
            another part of the chain, and takes the norm of the sum, as LAMB does.
        eps: $\epsilon$.

    Raises:
        UsageError: a value is negative.

    Reference: LARS: You et al. 2017, arXiv:1708.03888, equation 6; LAMB: You et al. 2019, arXiv:1904.00962, Algorithm 2
    with the identity for $\phi$.
    """

    def change(value: Tensor, param: Tensor, of: Callable[[str], Value]) -> Tensor:
        decay = of("weight_decay")
        ratio = _ratio(norm(param), norm(value), of("coefficient"), decay, of("eps"))
        decayed = add_scaled(value, param, decay) if isinstance(decay, Tensor) or decay != 0 else value
        return (ratio * decayed).to(value.dtype)

    return counting(Hypers({"coefficient": coefficient, "weight_decay": weight_decay, "eps": eps}), change)


@hyper_parameters
def lars(
    lr: Hyper = 1.0,
    *,
    coefficient: Hyper = 1e-3,
    momentum: Hyper = 0.9,
    weight_decay: Hyper = 5e-4,
    eps: Hyper = 0.0,
) -> GradientTransformation:
    r"""Momentum with a rate for every layer, for large batches.

    $v_t = m v_{t-1} + \gamma r_t (g_t + \beta \theta_{t-1})$ with
    $r_t = \eta \|\theta_{t-1}\| / (\|g_t\| + \beta \|\theta_{t-1}\| + \epsilon)$, and $\theta_t = \theta_{t-1} - v_t$.

    Args:
        lr: global rate $\gamma$; the other hyper-parameters likewise a float, a tensor, a dict or a schedule.
        coefficient: trust coefficient $\eta$.
        momentum: $m$.
        weight_decay: $\beta$.
        eps: $\epsilon$, 0 in the paper.

    Raises:
        UsageError: a value is negative.

    Reference: You et al. 2017, arXiv:1708.03888, Algorithm 1.
    """
    return chain(
        scale_by_trust_ratio(coefficient, weight_decay=weight_decay, eps=eps),
        scale_by_learning_rate(lr),
        trace(momentum),
    )


@hyper_parameters
def lamb(
    lr: Hyper = 1e-3,
    *,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 1e-2,
) -> GradientTransformation:
    r"""Adam's direction with a rate for every layer, for large batches.

    $\theta_t = \theta_{t-1} - \eta \frac{\|\theta_{t-1}\|}{\|u_t\|} u_t$ with
    $u_t = \hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda \theta_{t-1}$; the moments are those of `adam`.

    Args:
        lr: $\eta$; the other hyper-parameters likewise a float, a tensor, a dict or a schedule.
        b1: decay of the mean, in [0, 1).
        b2: decay of the mean square, in [0, 1).
        eps: $\epsilon$, added to the root.
        weight_decay: $\lambda$.

    Raises:
        UsageError: a value out of its range.

    Reference: You et al. 2019, arXiv:1904.00962, Algorithm 2 with the identity for $\phi$.
    """
    return chain(
        scale_by_adam(b1, b2, eps),
        add_decayed_weights(weight_decay),
        scale_by_trust_ratio(),
        scale_by_learning_rate(lr),
    )


def _ratio(of_param: Tensor, of_update: Tensor, coefficient: Value, decay: Value, eps: Value) -> Tensor:
    is_given = (of_param > 0) & (of_update > 0)
    size = torch.where(is_given, of_update + decay * of_param + eps, 1.0)
    return torch.where(is_given, coefficient * of_param / size, 1.0)
