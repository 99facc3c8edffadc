"""The meta-gradients of a run outside its meta steps: which it has, and what a step would compute."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from metalearn.algorithms import Algorithm
from metalearn.metagrad import Outcome, Strategy
from metalearn.problem import Problem
from metalearn.training.experiment import Experiment
from metalearn.training.laboratory import Laboratory
from metalearn.types import Episodes, Tensors


class Form(NamedTuple):
    """One of the meta-gradients that a run computes; most runs have one.

    Attributes:
        strategy: by which.
        step: the first meta step that takes it.
    """

    strategy: Any
    step: int


def named(strategy: Any, problem: Problem) -> str:
    """A meta-gradient's text, the same in every process."""
    text = re.sub(" at 0x[0-9a-f]+", "", repr(strategy))
    # Not the weights themselves: they change from meta step to meta step.
    return f"{text}, a loss after every step" if problem.outer_weights is not None else text


def forms_of(experiment: Experiment, first: int) -> list[Form]:
    """The meta-gradients of the meta steps from `first` on, in their order."""
    strategy, algorithm = experiment.strategy, experiment.algorithm
    changes = (isinstance(strategy, Strategy) and type(strategy).at is not Strategy.at) or (
        isinstance(algorithm, Algorithm) and type(algorithm).at is not Algorithm.at
    )
    found: list[Form] = []
    known: list[tuple[Any, Any]] = []
    for step in range(first, max(experiment.settings.num_steps, first + 1)):
        now = experiment.strategy_at(step), experiment.algorithm_at(step)
        if now not in known:
            known.append(now)
            found.append(Form(now[0], step))
        if not changes:
            break
    return found


def warm_up(laboratory: Laboratory) -> None:
    """Compiles all that a run needs, which leaves it in torch's cache on disk.

    Raises:
        UsageError: something can not be traced or compiled.
    """
    meta, buffers = laboratory.initial_meta(), laboratory.initial_buffers()
    episodes = episodes_of(laboratory, 0)
    for form in forms_of(laboratory.experiment, 0):
        gradient = gradient_of(laboratory.experiment.execution, laboratory, form, buffers)
        carry = gradient(meta, episodes).carry
        if carry is not None:  # windows go on from there by code of their own
            gradient(meta, episodes, carry)


def gradient_of(execution: Any, laboratory: Laboratory, form: Form, buffers: Tensors) -> Callable[..., Outcome]:
    """The function `(meta, episodes, carry=None) -> Outcome` as a meta step calls it."""
    problem, held = laboratory.train_problem(buffers, form.step), laboratory.held(buffers, form.step)
    gradient: Callable[..., Outcome] = execution.value_and_grad(form.strategy, problem)
    return partial(gradient, held=held) if problem.holding is not None and held else gradient


def episodes_of(laboratory: Laboratory, batch: int) -> Episodes:
    """The episodes of a meta-batch."""
    settings = laboratory.experiment.settings
    indices = range(batch * settings.batch_size, (batch + 1) * settings.batch_size)
    return laboratory.train_source.episodes("train", indices, seed=settings.seed)
