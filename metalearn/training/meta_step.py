"""One meta step: episodes, the meta-gradient, the outer optimizer."""

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.execution import BatchedMetaGradient
from metalearn.metagrad import Outcome, Strategy, StrategyWarning
from metalearn.training.experiment import Experiment
from metalearn.training.guard import blamed
from metalearn.training.laboratory import Laboratory
from metalearn.training.state import SavedCarry, TrainState
from metalearn.types import Tensors


class Diverged(UsageError):  # noqa: N818 - says what happened
    """The meta-loss, or its gradient, is no longer a number; nothing was stepped with it."""


@dataclass
class MetaStep:
    """The function from a state to the next one.

    It remembers the meta-gradient's function for as long as the buffers stay as they are: making one is not free where
    tasks are compiled.
    """

    laboratory: Laboratory
    _buffers: Tensors | None = field(default=None, init=False)
    _strategy: Strategy | None = field(default=None, init=False)
    _gradient: BatchedMetaGradient | None = field(default=None, init=False)

    def __call__(self, state: TrainState) -> TrainState:
        """The state after one more meta step, its metrics added to the window.

        Raises:
            Diverged: the state is then as it was.
            PluginError: the same, after a failure in a user's own code.
        """
        settings = self.laboratory.experiment.settings
        first = state.batches * settings.batch_size
        source, indices = self.laboratory.source, range(first, first + settings.batch_size)
        episodes = source.episodes("train", indices, seed=settings.seed)
        with source.suspected("train", indices, episodes), blamed():
            outcome = self._outcome(state, episodes)
            metrics = _scalars(outcome.value, outcome.grads, outcome.aux.metrics)
            # In the block: inputs that are no numbers are told before any rate is blamed.
            _refuse_divergence(metrics, state, self.laboratory.experiment)
        _step(state, outcome.grads, norm=metrics["grad_norm"], experiment=self.laboratory.experiment)
        # A parameter that forward assigned to is a task's own state, and does not return to the model.
        merged = {name: value for name, value in outcome.aux.buffers.items() if name in state.buffers}
        return replace(
            state,
            step=state.step + 1,
            batches=state.batches + (outcome.carry is None),
            carry=outcome.carry,
            buffers={**state.buffers, **merged} if merged else state.buffers,
            window={name: state.window.get(name, 0.0) + value for name, value in metrics.items()},
            window_steps=state.window_steps + 1,
        )

    def _outcome(self, state: TrainState, episodes: Any) -> Outcome:
        strategy = self.laboratory.experiment.strategy
        strategy = strategy.at(state.step) if isinstance(strategy, Strategy) else strategy
        gradient, carry = self._gradient_of(strategy, state.buffers), state.carry
        if isinstance(carry, SavedCarry):
            _, structure = tree.flatten(gradient(state.meta, episodes).carry)
            carry = tree.unflatten(carry.leaves, structure)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StrategyWarning)  # told with the metrics, once, by the trainer
            return gradient(state.meta, episodes, carry)

    def _gradient_of(self, strategy: Strategy, buffers: Tensors) -> BatchedMetaGradient:
        if self._gradient is None or self._buffers is not buffers or self._strategy != strategy:
            problem = self.laboratory.train_problem(buffers)
            self._gradient = self.laboratory.experiment.execution.value_and_grad(strategy, problem)
            self._buffers, self._strategy = buffers, strategy
        return self._gradient


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
    return optimizer


def _scalars(value: Tensor, grads: Tensors, metrics: Tensors) -> dict[str, float]:
    # One transfer from the device instead of one a number.
    named = {
        "loss": value,
        **{name: task.double().mean() for name, task in metrics.items()},
        "grad_norm": tree.norm(grads),
    }
    numbers = torch.stack([scalar.detach().double() for scalar in named.values()]).tolist()
    return dict(zip(named, numbers, strict=True))


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


def _step(state: TrainState, grads: Tensors, *, norm: float, experiment: Experiment) -> None:
    # In place, as torch optimizers work; `state` is not used again after it.
    clip = experiment.settings.clip
    # As torch.nn.utils.clip_grad_norm_ has it.
    scale = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
    for name, value in state.meta.items():
        value.grad = grads[name].detach() * scale if scale < 1 else grads[name].detach()
    if experiment.schedule is not None:
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * experiment.schedule(state.step)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
