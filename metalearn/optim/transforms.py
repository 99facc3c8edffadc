"""The pieces that optimizers are chained from."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.optim.base import CountState, GradientTransformation, check_names, stateless, zero_count
from metalearn.optim.hypers import ANY, Hypers, Value, hyper_parameters
from metalearn.optim.numerics import add_scaled, is_readable
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


@hyper_parameters
def scale(factor: Hyper) -> GradientTransformation:
    r"""Multiplies the updates: $u \leftarrow c_t u$, with a factor of any sign, such as a schedule that ends at 0."""
    return counting(Hypers({"factor": factor}, {"factor": ANY}), lambda value, param, of: of("factor") * value)


@hyper_parameters
def scale_by_learning_rate(lr: Hyper) -> GradientTransformation:
    r"""Turns a direction of ascent into a step downhill: $u \leftarrow -\eta_t u$."""
    hypers = Hypers({"lr": lr})
    part = counting(hypers, lambda value, param, of: -of("lr") * value)

    def fused(updates: Tensors, state: CountState, params: Tensors) -> tuple[Tensors, Tensors, CountState]:
        check_names(updates, params)
        now = hypers.at(state.num_steps)
        moved, scaled = {}, {}
        for name, value in updates.items():
            rate = now.of("lr", name)
            moved[name] = add_scaled(params[name], value, -rate)
            scaled[name] = -rate * value
        return moved, scaled, CountState(state.num_steps + 1)

    return GradientTransformation(part.init, part.update, fused)


@hyper_parameters
def add_decayed_weights(weight_decay: Hyper) -> GradientTransformation:
    r"""L2 regularisation as a part of the gradient: $u \leftarrow u + \lambda_t \theta$."""
    hypers = Hypers({"weight_decay": weight_decay})
    return counting(hypers, lambda value, param, of: add_scaled(value, param, of("weight_decay")))


@hyper_parameters
def trace(decay: Hyper, *, nesterov: bool = False, dampening: Hyper = 0.0) -> GradientTransformation:
    r"""Momentum as `torch.optim.SGD` has it: $m_t = \mu_t m_{t-1} + (1 - \tau_t) u_t$, and $m_1 = u_1$ undamped.

    Nesterov's passes on $u_t + \mu_t m_t$.
    """
    hypers = Hypers({"momentum": decay, "dampening": dampening}, {"dampening": ANY})

    def init(params: Tensors) -> TraceState:
        count = zero_count(params)
        hypers.check(params, count)
        return TraceState(count, {name: torch.zeros_like(value) for name, value in params.items()})

    def update(updates: Tensors, state: TraceState, params: Tensors) -> tuple[Tensors, TraceState]:
        check_names(updates, params)
        now = hypers.at(state.num_steps)
        moved, passed = {}, {}
        for name, value in updates.items():
            decay, damping = now.of("momentum", name), now.of("dampening", name)
            moved[name] = add_scaled(decay * state.trace[name], value, _weight(damping, state.num_steps))
            passed[name] = add_scaled(value, moved[name], decay) if nesterov else moved[name]
        return passed, TraceState(state.num_steps + 1, moved)

    return GradientTransformation(init, update)


def _weight(damping: Value, num_steps: Tensor) -> Value:
    if not isinstance(damping, Tensor) and damping == 0:
        return 1.0
    if is_readable(num_steps):
        return 1.0 if int(num_steps) == 0 else 1 - damping
    undamped = torch.ones((), dtype=getattr(damping, "dtype", torch.float64), device=num_steps.device)
    return torch.where(num_steps == 0, undamped, 1 - damping)


def counting(
    hypers: Hypers, change: Callable[[Tensor, Tensor, Callable[[str], Value]], Tensor]
) -> GradientTransformation:
    """A transformation whose only memory is the number of steps, of `(update, parameter, hyper's name -> value)`."""

    def init(params: Tensors) -> CountState:
        count = zero_count(params)
        hypers.check(params, count)
        return CountState(count)

    def update(updates: Tensors, state: CountState, params: Tensors) -> tuple[Tensors, CountState]:
        check_names(updates, params)
        now = hypers.at(state.num_steps)
        changed = {
            name: change(value, params[name], lambda hyper, name=name: now.of(hyper, name))  # type: ignore[misc]
            for name, value in updates.items()
        }
        return changed, CountState(state.num_steps + 1)

    return GradientTransformation(init, update)
