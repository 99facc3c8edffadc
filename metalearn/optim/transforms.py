"""The pieces that optimizers are chained from."""

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.optim.base import (
    CountState,
    GradientTransformation,
    add_scaled,
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

    def fused(updates: Tensors, state: CountState, params: Tensors) -> tuple[Tensors, Tensors, CountState]:
        check_names(updates, params)
        moved = {
            name: add_scaled(params[name], value, -value_of(lr, name, state.num_steps))
            for name, value in updates.items()
        }
        return moved, *update(updates, state, params)

    return GradientTransformation(init, update, fused)


def add_decayed_weights(weight_decay: Hyper) -> GradientTransformation:
    r"""L2 regularisation as a part of the gradient: $u \leftarrow u + \lambda_t \theta$."""

    def init(params: Tensors) -> CountState:
        check_values(params, weight_decay)
        return CountState(zero_count(params))

    def update(updates: Tensors, state: CountState, params: Tensors) -> tuple[Tensors, CountState]:
        check_names(updates, params)
        decayed = {
            name: add_scaled(value, params[name], value_of(weight_decay, name, state.num_steps))
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
        passed = {name: add_scaled(updates[name], moved[name], rates[name]) for name in updates} if nesterov else moved
        return passed, TraceState(state.num_steps + 1, moved)

    return GradientTransformation(init, update)
