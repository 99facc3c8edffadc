"""One meta step: episodes, the meta-gradient, the outer optimizer.

On a CPU the numbers of a step (its loss, its metrics, the norm of its gradient) are read before the optimizer moves.
On a GPU that would make the host wait for the device at every step, so there they are read *late*: when the next
step's gradient has been launched, or when something is due that needs them. A step may then have been taken that turns
out to have been none; the tensors that it moved were copied before, and are put back.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.execution import BatchedMetaGradient
from metalearn.metagrad import Outcome, StrategyWarning
from metalearn.training.drawing import MetaBatches
from metalearn.training.experiment import Experiment
from metalearn.training.guard import blamed
from metalearn.training.laboratory import Laboratory
from metalearn.training.numbers import Numbers
from metalearn.training.profiling import NO_PHASES, Phases
from metalearn.training.state import SavedCarry, TrainState
from metalearn.types import Episodes, Tensors


class Diverged(UsageError):  # noqa: N818 - says what happened
    """The meta-loss, or its gradient, is no longer a number; nothing was stepped with it."""


@dataclass(frozen=True)
class Gradient:
    """A meta-gradient as it came, for whoever looks at it before the outer optimizer takes it.

    Attributes:
        state: at which it was taken.
        episodes: over which.
        strategy: by which.
        carry: from which.
        outcome: what came.
    """

    state: TrainState
    episodes: Episodes
    strategy: Any
    carry: Any
    outcome: Outcome


@dataclass
class MetaStep:
    """The function from a state to the next one.

    It remembers the meta-gradient's function: making one is not free where tasks are compiled. Buffers, which change
    from step to step, are given to it where the problem can hold others than it was made with.

    Attributes:
        laboratory: of the run.
        phases: told what the step is at.
        look: called with every meta-gradient.
        late: whether the numbers of a step are read with the next one; by default where the device is no CPU.
    """

    laboratory: Laboratory
    phases: Phases = NO_PHASES
    look: Callable[[Gradient], None] | None = None
    late: bool | None = None
    _batches: MetaBatches = field(init=False)
    _held: Tensors | None = field(default=None, init=False)
    _made_by: tuple[Any, Any] | None = field(default=None, init=False)
    _gradient: BatchedMetaGradient | None = field(default=None, init=False)
    _can_hold: bool = field(default=False, init=False)
    _unread: "_Unread | None" = field(default=None, init=False)
    _rolled_back: TrainState | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.late = self.laboratory.device.type != "cpu" if self.late is None else self.late
        settings = self.laboratory.experiment.settings
        self._batches = MetaBatches(self.laboratory.train_source, settings.batch_size, settings.seed)

    def __call__(self, state: TrainState) -> TrainState:
        """The state after one more meta step; its metrics are in the window then, or after `settled`.

        Raises:
            Diverged: `kept` gives the state from before it.
            PluginError: the same, after a failure in a user's own code.
        """
        source, indices = self.laboratory.train_source, self._batches.indices(state.batches)
        self.phases.enter("sampling")
        # No step takes more than one batch.
        last = state.batches + self.laboratory.experiment.settings.num_steps - state.step - 1
        episodes = self._batches(state.batches, last=last)
        self.phases.enter("meta-gradient")
        with source.suspected("train", indices, episodes), blamed():
            outcome = self._outcome(state, episodes)
            self.phases.enter("logging")
            numbers = Numbers.of(outcome)
            if not self.late:
                # In the block: inputs that are no numbers are told before any rate is blamed.
                _refuse_divergence(numbers.read(), state, self.laboratory.experiment)
        state = self.settled(state)
        if self.late:
            self._unread = _Unread(numbers, state, indices, episodes, _Copies.of(state))
        self.phases.enter("optimizer")
        _step(state, outcome.grads, norm=numbers.norm, experiment=self.laboratory.experiment)
        self.phases.enter("logging")
        # A parameter that forward assigned to is a task's own state, and does not return to the model.
        merged = {name: value for name, value in outcome.aux.buffers.items() if name in state.buffers}
        after = replace(
            state,
            step=state.step + 1,
            batches=state.batches + (outcome.carry is None),
            carry=outcome.carry,
            buffers={**state.buffers, **merged} if merged else state.buffers,
        )
        return after if self.late else _counted(after, numbers.read())

    def settled(self, state: TrainState) -> TrainState:
        """The state with the numbers of all its steps read; it is known then that none of them was taken wrongly.

        Raises:
            Diverged, PluginError: the last step was none; `kept` gives the state from before it.
        """
        if self._unread is None:
            return state
        unread, self._unread = self._unread, None
        metrics = unread.numbers.read()
        try:
            with self.laboratory.train_source.suspected("train", unread.indices, unread.episodes):
                _refuse_divergence(metrics, unread.before, self.laboratory.experiment)
        except UsageError:
            unread.copies.put_back(unread.before)
            self._rolled_back = unread.before
            raise
        return _counted(state, metrics)

    def kept(self, state: TrainState) -> TrainState:
        """What to save after a failure: the state after the last step that was right, settled.

        Raises:
            Diverged: the step before the one that failed turns out to have been none; `kept` then gives that before it.
        """
        rolled_back, self._rolled_back = self._rolled_back, None
        return self.settled(state) if rolled_back is None else rolled_back

    def _outcome(self, state: TrainState, episodes: Any) -> Outcome:
        strategy = self.laboratory.experiment.strategy_at(state.step)
        gradient, carry = self._gradient_at(strategy, state), state.carry
        if isinstance(carry, SavedCarry):
            _, structure = tree.flatten(gradient(state.meta, episodes).carry)
            carry = tree.unflatten(carry.leaves, structure)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StrategyWarning)  # told with the metrics, once, by the trainer
            outcome = gradient(state.meta, episodes, carry)
            if self.look is not None:
                self.phases.enter("rest")
                self.look(Gradient(state, episodes, strategy, carry, outcome))
            return outcome

    def _gradient_at(self, strategy: Any, state: TrainState) -> Callable[..., Outcome]:
        algorithm = self.laboratory.experiment.algorithm_at(state.step)
        held = self.laboratory.held(state.buffers, state.step)
        is_kept = self._held is held or self._can_hold
        if self._gradient is None or not is_kept or self._made_by != (strategy, algorithm):
            problem = self.laboratory.train_problem(state.buffers, state.step)
            self._gradient = self.phases.gradient(self.laboratory.experiment.execution, strategy, problem)
            self._held, self._made_by = held, (strategy, algorithm)
            self._can_hold = problem.holding is not None
        # Also at first: compiled code is made for arguments of one form.
        return partial(self._gradient, held=held) if self._can_hold and held else self._gradient


def make_optimizer(experiment: Experiment, meta: Tensors) -> torch.optim.Optimizer:
    """The outer optimizer over `meta`.

    Raises:
        UsageError: its arguments are wrong, or it is one that needs to evaluate the loss itself.
    """
    try:
        optimizer = experiment.outer_optimizer(list(meta.values()))
    except (TypeError, ValueError) as error:
        raise UsageError(f"the outer optimizer does not take its arguments: {error}. Check meta.lr.") from None
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError(
            "meta.optimizer LBFGS evaluates the loss several times a step, which meta-training does not do. Use adam."
        )
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        # All tensors a call instead of one: a sixth less time on a CPU, to the same bits (torch's default on a GPU).
        if type(optimizer) is torch.optim.Adam and group["foreach"] is None and not group["fused"]:
            group["foreach"] = True
    return optimizer


@dataclass(frozen=True)
class _Copies:
    """What a meta step is about to overwrite: the meta-parameters, the optimizer's state and rates."""

    meta: list[Tensor]
    optimizer: dict[Tensor, dict[str, Any]]
    rates: list[Any]

    @staticmethod
    def of(state: TrainState) -> "_Copies":
        slots = {owner: dict(slot) for owner, slot in state.optimizer.state.items()}
        tensors, closed = tree.opened((list(state.meta.values()), list(slots.values())))
        meta, copied = closed(_cloned(tensors))
        slots = dict(zip(slots, copied, strict=True))
        return _Copies(meta, slots, [group["lr"] for group in state.optimizer.param_groups])

    def put_back(self, state: TrainState) -> None:
        for value, copy in zip(state.meta.values(), self.meta, strict=True):
            value.copy_(copy)
        state.optimizer.state.clear()
        state.optimizer.state.update(self.optimizer)
        for group, rate in zip(state.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate


@dataclass(frozen=True)
class _Unread:
    """A step whose numbers have not been read.

    Attributes:
        numbers: they are on the device still.
        before: the state before it; its tensors are the step's, until `copies` are put back.
        indices: of its episodes.
        episodes: themselves, to be looked at where the numbers are none.
        copies: what the step overwrote.
    """

    numbers: Numbers
    before: TrainState
    indices: Sequence[int]
    episodes: Episodes
    copies: _Copies


def _cloned(tensors: list[Tensor]) -> list[Tensor]:
    """Copies, with one launch for those of the device; a count of steps may be on the host."""
    with torch.no_grad():
        copies = {
            device: iter(torch._foreach_clone([tensor for tensor in tensors if tensor.device == device]))
            for device in {tensor.device for tensor in tensors}
        }
    return [next(copies[tensor.device]) for tensor in tensors]


def _counted(state: TrainState, metrics: dict[str, float]) -> TrainState:
    """The state with the metrics of one step more in its window."""
    window = {name: state.window.get(name, 0.0) + value for name, value in metrics.items()}
    return replace(state, window=window, window_steps=state.window_steps + 1)


def _refuse_divergence(metrics: dict[str, float], state: TrainState, experiment: Experiment) -> None:
    what = {"loss": "meta-loss", "grad_norm": "norm of the meta-gradient"}
    for name, words in what.items():
        if not math.isfinite(metrics[name]):
            inner_lr = getattr(experiment.algorithm, "inner_lr", None)
            now = f" (now {inner_lr:g})" if isinstance(inner_lr, (int, float)) else ""
            # No clipping mends a loss that is no number.
            clip = ", or set meta.clip" if name == "grad_norm" else ""
            raise Diverged(
                f"the {words} is {metrics[name]} at meta step {state.step + 1}; the state before it is kept in "
                f"checkpoints/last. Lower inner.lr{now} or meta.lr "
                f"(now {state.optimizer.param_groups[0]['lr']:g}){clip}."
            )


def _step(state: TrainState, grads: Tensors, *, norm: float | Tensor, experiment: Experiment) -> None:
    # In place, as torch optimizers work; `state` is not used again after it.
    scale = _scale(norm, experiment.settings.clip)
    for name, value in state.meta.items():
        value.grad = grads[name].detach() if scale is None else grads[name].detach() * scale
    if experiment.schedule is not None:
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * experiment.schedule(state.step)
    state.optimizer.step()
    for value in state.meta.values():
        value.grad = None  # as zero_grad does, which asks a profiler each time


def _scale(norm: float | Tensor, clip: float | None) -> float | Tensor | None:
    """What clips a gradient of this norm, as torch.nn.utils.clip_grad_norm_ has it; None for nothing."""
    if clip is None:
        return None
    scale = clip / (norm + 1e-6)
    if isinstance(scale, Tensor):  # still on the device: no look at it
        return scale.clamp_max(1.0)
    return scale if scale < 1 else None
