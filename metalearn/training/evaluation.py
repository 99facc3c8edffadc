"""Measuring on many episodes, a batch of tasks at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from metalearn.errors import UsageError, did_you_mean
from metalearn.training.experiment import Source
from metalearn.training.guard import GuardedSource, blamed
from metalearn.training.progress import Progress
from metalearn.types import Episodes, Tensors


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Which episodes are measured, and how.

    Attributes:
        source: where they come from.
        split: of which split.
        seed: of the episodes.
        num_episodes: the episodes 0 … num_episodes - 1.
        batch_size: tasks at once.
        num_inner_steps: inner steps of adaptation.
    """

    source: GuardedSource
    split: str
    seed: int
    num_episodes: int
    batch_size: int
    num_inner_steps: int

    def __post_init__(self) -> None:
        """Refuses numbers that measure nothing."""
        if self.num_episodes < 1:
            raise UsageError(f"eval.num_episodes is {self.num_episodes}; it has to be at least 1.")
        if self.num_inner_steps < 0:
            raise UsageError(f"eval.num_inner_steps is {self.num_inner_steps}; it has to be at least 0.")


def measure(
    measurement: Measurement,
    *,
    execution: Any,
    problem: Any,
    meta: Tensors,
    name: str,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
    watch: Callable[[Episodes], None] = lambda episodes: None,
) -> Tensors:
    """Every metric of every episode after 0 … K inner steps, `[task, K + 1]` on the CPU.

    Args:
        measurement: which episodes.
        execution: how tasks are run.
        problem: the algorithm's problem, for a model in evaluation mode.
        meta: the meta-parameters.
        name: what `progress` calls it.
        progress: where to report to.
        check: called before each batch; what it raises ends the measurement.
        watch: called with each batch of episodes.

    Raises:
        PluginError: a user's own code failed, or the episodes are not what they have to be.
    """
    batches: list[Tensors] = []
    source = measurement.source
    with progress.phase(name, measurement.num_episodes, unit="episodes") as phase:
        for start in range(0, measurement.num_episodes, measurement.batch_size):
            check()
            indices = range(start, min(start + measurement.batch_size, measurement.num_episodes))
            episodes = source.episodes(measurement.split, indices, seed=measurement.seed)
            watch(episodes)
            with source.suspected(measurement.split, indices, episodes), blamed():
                found = execution.evaluate(problem, meta, episodes, num_inner_steps=measurement.num_inner_steps)
            batches.append({metric: values.detach().cpu() for metric, values in found.items()})
            if not all(bool(values.isfinite().all()) for values in batches[-1].values()):
                source.check_batch(measurement.split, indices, episodes)
            phase.advance(len(indices))
    return {metric: torch.cat([batch[metric] for batch in batches]) for metric in batches[0]}


def check_split(source: Source, split: str, *, wanted_for: str) -> None:
    """Refuses a split that the source does not have.

    Raises:
        UsageError: with the splits that it has.
    """
    if split not in source.splits:
        raise UsageError(f"{wanted_for} needs a split {split!r} of the task. {did_you_mean(split, source.splits)}")
