"""The pieces that optimizers are chained from."""

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.optim.base import (
    CountState,
    GradientTransformation,
    check_names,
    check_values,
    stateless,
    value_of,
    zero_count,
)
from metalearn.types import Hyper, Tensors


class TraceState(NamedTuple):
    """The state of `trace`.

    Attributes:
        num_steps: int64 scalar, the number of updates done.
        trace: the decaying sum of past updates, by parameter name.
    """

    num_steps: Tensor
    trace: Tensors


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


def stop_gradient() -> GradientTransformation:
    """Cuts the updates from their history: what follows takes the inner gradient for a constant (first-order MAML)."""
    return stateless(lambda updates, params: {name: value.detach() for name, value in updates.items()})


def scale_by_learning_rate(lr: Hyper) -> GradientTransformation:
    r"""Turns a direction of ascent into a step downhill: $u \leftarrow -\eta_t u$."""

    def init(params: Tensors) -> CountState:
        check_values(params, lr)
        return CountState(zero_count(params))

    def update(updates: Tensors, state: CountState, params: Tensors) -> tuple[Tensors, CountState]:
        scaled = {name: -value_of(lr, name, state.num_steps) * value for name, value in updates.items()}
        return scaled, CountState(state.num_steps + 1)

    return GradientTransformation(init, update)


def add_decayed_weights(weight_decay: Hyper) -> GradientTransformation:
    r"""L2 regularisation as a part of the gradient: $u \leftarrow u + \lambda_t \theta$."""

    def init(params: Tensors) -> CountState:
        check_values(params, weight_decay)
        return CountState(zero_count(params))

    def update(updates: Tensors, state: CountState, params: Tensors) -> tuple[Tensors, CountState]:
        check_names(updates, params)
        decayed = {
            name: value + value_of(weight_decay, name, state.num_steps) * params[name]
            for name, value in updates.items()
        }
        return decayed, CountState(state.num_steps + 1)

    return GradientTransformation(init, update)


def trace(decay: Hyper, *, nesterov: bool = False) -> GradientTransformation:
    r"""Momentum as `torch.optim.SGD` has it, $m_t = \mu_t m_{t-1} + u_t$; Nesterov's passes on $u_t + \mu_t m_t$."""

    def init(params: Tensors) -> TraceState:
        check_values(params, decay)
        return TraceState(zero_count(params), {name: torch.zeros_like(value) for name, value in params.items()})

    def update(updates: Tensors, state: TraceState, params: Tensors) -> tuple[Tensors, TraceState]:
        rates = {name: value_of(decay, name, state.num_steps) for name in updates}
        moved = {name: rates[name] * state.trace[name] + value for name, value in updates.items()}
        passed = {name: updates[name] + rates[name] * moved[name] for name in updates} if nesterov else moved
        return passed, TraceState(state.num_steps + 1, moved)

    return GradientTransformation(init, update)


def scale_by_adam(b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8) -> GradientTransformation:
    r"""Adam's direction (Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1).

    $m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t$, $v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2$, and the result is
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$ with the bias-corrected $\hat m_t = m_t / (1 - \beta_1^t)$ and
    $\hat v_t = v_t / (1 - \beta_2^t)$. With a schedule for a beta, $\beta^t$ is taken at its current value.
    """

    def init(params: Tensors) -> AdamState:
        check_values(params, b1, b2, eps)
        zeros = {name: torch.zeros_like(value) for name, value in params.items()}
        return AdamState(zero_count(params), zeros, {name: torch.zeros_like(value) for name, value in params.items()})

    def update(updates: Tensors, state: AdamState, params: Tensors) -> tuple[Tensors, AdamState]:
        count = state.num_steps + 1
        mean, square, scaled = {}, {}, {}
        for name, gradient in updates.items():
            beta1, beta2 = (value_of(beta, name, state.num_steps) for beta in (b1, b2))
            mean[name] = beta1 * state.mean[name] + (1 - beta1) * gradient
            square[name] = beta2 * state.square[name] + (1 - beta2) * gradient * gradient
            steps = count.to(gradient.dtype)
            root = safe_sqrt(square[name] / (1 - beta2**steps))
            scaled[name] = mean[name] / (1 - beta1**steps) / (root + value_of(eps, name, state.num_steps))
        return scaled, AdamState(count, mean, square)

    return GradientTransformation(init, update)


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root, with derivative 0 (not infinity) at 0.

    A dead unit has a second moment of exactly zero; an infinite derivative there times a zero one upstream would make
    the whole meta-gradient NaN. The value is that of `sqrt` everywhere.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), torch.zeros_like(x))
