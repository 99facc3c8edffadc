"""The meta-gradients of a run outside its meta steps: which strategies it has, and what a step would compute."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from metalearn.metagrad import Outcome, Strategy
from metalearn.training.experiment import Experiment
from metalearn.training.laboratory import Laboratory
from metalearn.types import Episodes, Tensors


def named(strategy: Any) -> str:
    """A strategy's text, the same in every process."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(strategy))


def strategies_of(experiment: Experiment, first: int) -> list[Any]:
    """The strategies of the meta steps from `first` on, in their order; most runs have one."""
    strategy = experiment.strategy
    if not isinstance(strategy, Strategy) or type(strategy).at is Strategy.at:
        return [strategy]
    found: list[Any] = []
    for step in range(first, max(experiment.settings.num_steps, first + 1)):
        now = strategy.at(step)
        if now not in found:
            found.append(now)
    return found


def warm_up(laboratory: Laboratory) -> None:
    """Compiles all that a run needs, which leaves it in torch's cache on disk.

    Raises:
        UsageError: something can not be traced or compiled.
    """
    meta, buffers = laboratory.initial_meta(), laboratory.initial_buffers()
    episodes = episodes_of(laboratory, 0)
    for strategy in strategies_of(laboratory.experiment, 0):
        gradient = gradient_of(laboratory.experiment.execution, laboratory, strategy, buffers)
        carry = gradient(meta, episodes).carry
        if carry is not None:  # windows go on from there by code of their own
            gradient(meta, episodes, carry)


def gradient_of(execution: Any, laboratory: Laboratory, strategy: Any, buffers: Tensors) -> Callable[..., Outcome]:
    """The function `(meta, episodes, carry=None) -> Outcome` as a meta step calls it."""
    problem = laboratory.train_problem(buffers)
    gradient: Callable[..., Outcome] = execution.value_and_grad(strategy, problem)
    return partial(gradient, held=buffers) if problem.holding is not None and buffers else gradient


def episodes_of(laboratory: Laboratory, batch: int) -> Episodes:
    """The episodes of a meta-batch."""
    settings = laboratory.experiment.settings
    indices = range(batch * settings.batch_size, (batch + 1) * settings.batch_size)
    return laboratory.source.episodes("train", indices, seed=settings.seed)
