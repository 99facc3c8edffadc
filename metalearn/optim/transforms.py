"""The pieces that optimizers are chained from."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.optim.base import CountState, GradientTransformation, check_names, check_state, stateless, zero_count
from metalearn.optim.hypers import ANY, Hypers, Value, hyper_parameters
from metalearn.optim.numerics import add_scaled, wide
from metalearn.optim.rules import Rule, Slots, Step, from_rule, zeros
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
        check_state(state, CountState)
        now = hypers.at(state.num_steps)
        moved, scaled = {}, {}
        for name, value in updates.items():
            rate = now.of("lr", name)
            moved[name] = add_scaled(params[name], value, -rate)
            scaled[name] = (-rate * value).to(value.dtype)  # a scalar gives way to a rate in double
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
    rule = Rule(partial(by_momentum, nesterov=nesterov), {"trace": zeros}, is_light=True)
    return from_rule(rule, TraceState, hypers)


def by_momentum(step: Step, gradient: Tensor, param: Tensor, trace: Tensor, *, nesterov: bool) -> tuple[Tensor, Slots]:
    """The rule of `trace`, with the hyper-parameters `momentum` and `dampening`."""
    summed = add_scaled(step["momentum"] * trace, gradient, _weight(step))
    return (add_scaled(gradient, summed, step["momentum"]) if nesterov else summed), (summed,)


def _weight(step: Step) -> Value:
    """How much of a gradient enters the momentum: all of the first."""
    damping = step["dampening"]
    if not isinstance(damping, Tensor) and damping == 0:
        return 1.0
    if isinstance(step.number, int):
        return 1.0 if step.number == 1 else 1 - damping
    # In double first: a where() of two floats is a float32.
    left = wide(1 - step.exact("dampening"), step.like.device)
    return step.entries(torch.where(step.number == 1, 1.0, left))


def counting(
    hypers: Hypers, change: Callable[[Tensor, Tensor, Callable[[str], Value]], Tensor]
) -> GradientTransformation:
    """A transformation whose only memory is the number of steps, of `(update, parameter, hyper's name -> value)`."""

    def update(updates: Tensors, state: CountState, params: Tensors) -> tuple[Tensors, CountState]:
        check_names(updates, params)
        check_state(state, CountState)
        now = hypers.at(state.num_steps)
        changed = {
            name: change(value, params[name], lambda hyper, name=name: now.of(hyper, name))  # type: ignore[misc]
            for name, value in updates.items()
        }
        changed = {name: value.to(updates[name].dtype) for name, value in changed.items()}
        return changed, CountState(state.num_steps + 1)

    return GradientTransformation(partial(first_count, hypers), update)


def first_count(hypers: Hypers, params: Tensors) -> CountState:
    """The first state of what remembers the number of steps alone, once its hyper-parameters were found to fit."""
    count = zero_count(params)
    hypers.check(params, count)
    return CountState(count)
