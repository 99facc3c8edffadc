"""The inner loop: a fold of pure steps over parameters, buffers and optimizer state."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.func import vjp

from metalearn.captured import refuse_captured
from metalearn.diagnosis import explained
from metalearn.errors import UsageError
from metalearn.optim import GradientTransformation
from metalearn.optim.base import check_parts
from metalearn.problem import Episode, Problem, check_num_steps
from metalearn.types import Aux, Batch, Tensors

LossFunction: TypeAlias = Callable[[Tensors, Tensors, Batch], tuple[Tensor, Aux]]
"""`(params, buffers, batch) -> (loss, Aux)`, a scalar loss."""

FreeLossFunction: TypeAlias = Callable[[Tensors, Tensors, Batch], Tensor | tuple[Tensor, Aux | Mapping[str, Tensor]]]
"""The same, or `-> (loss, buffers)`, or `-> loss` for a model whose buffers do not change."""


class InnerState(NamedTuple):
    """What an inner step maps to its next value."""

    params: Tensors
    buffers: Tensors
    opt_state: Any


class TraceStep(NamedTuple):
    """What happened in one inner step.

    Attributes:
        params: the parameters before the step, at which the gradient was taken.
        grads: the gradient of the loss.
        updates: what the optimizer made of it; `params + updates` are the next step's parameters, but for the last
            bit, which is that of torch.optim.
        loss: the loss before the step, a scalar.
        metrics: what else the loss reported.
    """

    params: Tensors
    grads: Tensors
    updates: Tensors
    loss: Tensor
    metrics: Tensors


@dataclass(frozen=True)
class Adapted:
    """The result of an inner loop; differentiable in everything that went in.

    Attributes:
        params: the adapted parameters.
        buffers: the buffers after the last step.
        opt_state: the optimizer's state, from which `adapt` can go on.
        trace: one `TraceStep` an inner step where it was asked for, else None.
    """

    params: Tensors
    buffers: Tensors
    opt_state: Any
    trace: tuple[TraceStep, ...] | None = None


def adapt(
    loss_fn: FreeLossFunction,
    params: Tensors,
    buffers: Tensors,
    support: Batch,
    *,
    optimizer: GradientTransformation,
    num_inner_steps: int,
    opt_state: Any = None,
    trace: bool = False,
) -> Adapted:
    r"""Runs $\theta_{k+1} = \theta_k + u(\nabla_\theta L(\theta_k))$ for `num_inner_steps` steps, leaving inputs alone.

    Plain autograd and `torch.func` differentiate through the result, by `params`, `buffers`, `support`, the
    optimizer's hyper-parameters and its state. For first-order gradients chain `optim.stop_gradient()` before the
    optimizer; to adapt some parameters only, pass those and merge the others in inside `loss_fn`.

    Args:
        loss_fn: `(params, buffers, support) -> loss`, `-> (loss, buffers)` or `-> (loss, Aux(buffers, metrics))`.
        params: the parameters to adapt, floating-point tensors by name.
        buffers: the model's other state.
        support: what `loss_fn` is given at each step.
        optimizer: a `GradientTransformation`, such as `metalearn.optim.sgd(0.01)`.
        num_inner_steps: 0 returns the input unchanged.
        opt_state: to go on from an earlier `Adapted.opt_state`; by default a fresh one.
        trace: keep every step's parameters, gradients, updates and loss.

    Raises:
        UsageError: a parameter's name is among the buffers, a loss is not a scalar, a step count is negative.

    Example:
        >>> from metalearn.optim import sgd
        >>> square = lambda params, buffers, target: (params["w"] - target).square().sum()
        >>> adapted = adapt(square, {"w": torch.zeros(1)}, {}, torch.ones(1), optimizer=sgd(0.25), num_inner_steps=2)
        >>> adapted.params["w"]
        tensor([0.7500])
    """
    check_num_steps(num_inner_steps)
    check_parts("adapt", optimizer)
    state = InnerState(dict(params), dict(buffers), optimizer.init(params) if opt_state is None else opt_state)
    steps = []
    for _ in range(num_inner_steps):
        state, step = inner_step(with_aux(loss_fn), optimizer, state, support)
        if trace:
            steps.append(step)
    return Adapted(*state, trace=tuple(steps) if trace else None)


def inner_step(
    loss_fn: LossFunction, optimizer: GradientTransformation, state: InnerState, batch: Batch
) -> tuple[InnerState, TraceStep]:
    """One pure step: the gradient of the loss, the optimizer's updates, the next state."""
    refuse_shadowed(state.params, state.buffers)

    def loss_of(params: Tensors) -> tuple[Tensor, Aux]:
        return _checked(loss_fn(params, state.buffers, batch), "the loss")

    with explained({**state.params, **state.buffers}):
        grads, loss, aux = _gradient(loss_of, state.params)
    refuse_shadowed(state.params, aux.buffers)
    params, updates, opt_state = optimizer.step(grads, state.opt_state, state.params)
    step = TraceStep(state.params, grads, updates, loss, aux.metrics)
    return InnerState(params, aux.buffers, opt_state), step


def _gradient(loss_of: Callable[[Tensors], tuple[Tensor, Aux]], params: Tensors) -> tuple[Tensors, Tensor, Aux]:
    """As `torch.func.grad_and_value`, which keeps a graph of the gradient in `torch.no_grad()` too, for nobody."""
    loss, pull, aux = vjp(loss_of, params, has_aux=True)  # type: ignore[misc]
    return pull(torch.ones_like(loss), create_graph=torch.is_grad_enabled())[0], loss, aux


def start(problem: Problem, meta: Tensors, episode: Episode) -> InnerState:
    """The state that a problem's inner loop starts from."""
    params, buffers = problem.init(meta, episode)
    return InnerState(params, buffers, problem.optimizer(meta).init(params))


def problem_step(problem: Problem, meta: Tensors, episode: Episode, state: InnerState, step: int) -> InnerState:
    """A problem's inner step number `step` (from 0), a pure function of `meta`, the episode and the state."""

    def loss_fn(params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, Aux]:
        return _inner_loss(problem, meta, params, buffers, batch, step)

    return inner_step(loss_fn, problem.optimizer(meta), state, problem.batch(episode, step))[0]


def inner_loss_of(
    problem: Problem, meta: Tensors, episode: Episode, state: InnerState, step: int
) -> tuple[Tensor, Aux]:
    """The loss that a problem's inner step number `step` descends, at a state, checked for its form."""
    refuse_shadowed(state.params, state.buffers)
    return _inner_loss(problem, meta, state.params, state.buffers, problem.batch(episode, step), step)


def _inner_loss(
    problem: Problem, meta: Tensors, params: Tensors, buffers: Tensors, batch: Batch, step: int
) -> tuple[Tensor, Aux]:
    loss, aux = _checked(problem.inner_loss(meta, params, buffers, batch, step), "the inner loss")
    refuse_captured(loss)  # here and not of the outer loss alone: a first-order strategy cuts it off
    return loss, aux


def unroll(problem: Problem, meta: Tensors, episode: Episode) -> Iterator[InnerState]:
    """The states after 0, 1, … `problem.num_inner_steps` inner steps, differentiable in `meta`."""
    state = start(problem, meta, episode)
    yield state
    for step in range(problem.num_inner_steps):
        state = problem_step(problem, meta, episode, state, step)
        yield state


def outer_loss_of(
    problem: Problem, meta: Tensors, episode: Episode, state: InnerState, step: int
) -> tuple[Tensor, Aux]:
    """A problem's outer loss of the state after `step` inner steps, checked for its form."""
    return _checked(problem.outer_loss(meta, state.params, state.buffers, episode, step), "the outer loss")


def outer_value(problem: Problem, meta: Tensors, episode: Episode) -> tuple[Tensor, Aux]:
    """The objective of one episode: the outer loss of the adapted state, or its weighted sum over the steps."""
    return objective_of(problem, meta, episode, enumerate(unroll(problem, meta, episode)))


def objective_of(
    problem: Problem, meta: Tensors, episode: Episode, states: Iterable[tuple[int, InnerState]]
) -> tuple[Tensor, Aux]:
    """What `states` add to the objective, by the number of inner steps that each has had; the last one is judged."""
    total: Tensor | None = None
    aux: Aux | None = None
    for step, state, is_last in _with_last(states):
        weight = weight_of(problem, step)
        if weight is None and not is_last:
            continue
        loss, aux = outer_loss_of(problem, meta, episode, state, step)
        weighted = loss if weight is None else weight * loss
        total = weighted if total is None else total + weighted
    assert total is not None
    assert aux is not None
    return total, aux


def weight_of(problem: Problem, step: int) -> float | Tensor | None:
    """The weight of the outer loss after `step` steps; None where only the last state is judged, and is in full."""
    return None if problem.outer_weights is None or step == 0 else problem.outer_weights[step - 1]


def _with_last(states: Iterable[tuple[int, InnerState]]) -> Iterator[tuple[int, InnerState, bool]]:
    before: tuple[int, InnerState] | None = None
    for step, state in states:
        if before is not None:
            yield *before, False
        before = (step, state)
    if before is not None:
        yield *before, True


def evaluate(problem: Problem, meta: Tensors, episode: Episode) -> Tensors:
    """The outer loss (`"loss"`) and metrics after 0, 1, … `num_inner_steps` steps, `[step]` each, without history."""
    rows: list[Tensors] = []
    with torch.no_grad():
        for step, state in enumerate(unroll(problem, meta, episode)):
            loss, aux = outer_loss_of(problem, meta, episode, state, step)
            rows.append({"loss": loss, **aux.metrics})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _checked(result: Any, what: str) -> tuple[Tensor, Aux]:
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Aux)):
        raise UsageError(f"{what} returned {type(result).__name__}: expected (loss, Aux(buffers, metrics)).")
    loss, aux = result
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(f"{what} is of {got}, but must be a scalar tensor: take its mean or sum.")
    for name, value in aux.metrics.items():
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise UsageError(f"the metric {name!r} must be a scalar tensor (not loss.item(), which vmap can not run).")
    return loss, aux


def with_aux(loss_fn: FreeLossFunction) -> LossFunction:
    """The loss in the form that a step calls, whichever of the forms it was given in."""

    def whole(params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, Aux]:
        result = loss_fn(params, buffers, batch)
        if isinstance(result, Tensor):
            return result, Aux(buffers, {})
        if isinstance(result, tuple) and len(result) == 2:
            loss, aux = result
            if isinstance(aux, Aux):
                return loss, aux
            if isinstance(aux, Mapping):
                return loss, Aux(dict(aux), {})
        raise UsageError(f"loss_fn returned {type(result).__name__}: expected loss, (loss, buffers) or (loss, Aux).")

    return whole


def refuse_shadowed(params: Tensors, buffers: Tensors) -> None:
    """Raises UsageError for a parameter that is among the buffers too."""
    shadowed = params.keys() & buffers.keys()
    if shadowed:
        name = min(shadowed)
        raise UsageError(
            f"{name!r} is among the buffers too, and a buffer comes first, so optimising it would do nothing. "
            "A parameter that forward itself changes becomes state: leave it out of `params`, as "
            f'metalearn.state.partition(model.params, {name!r}) does, or MAML(adapted=["*", "!{name}"]).'
        )
