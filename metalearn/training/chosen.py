"""The strategy that `metagrad=auto` stands for in a run: chosen once, kept in the run directory."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from metalearn import metagrad, tree
from metalearn.training.experiment import Experiment
from metalearn.training.guard import blamed
from metalearn.training.kept import read_kept, write_kept
from metalearn.training.laboratory import Laboratory
from metalearn.training.progress import Progress
from metalearn.training.state import TrainState

CHOSEN = "metagrad.json"
_KINDS = {kind.__name__: kind for kind in (metagrad.Unrolled, metagrad.Stepwise)}


def with_chosen_strategy(laboratory: Laboratory, folder: Path, state: TrainState, progress: Progress) -> Laboratory:
    """The laboratory with the strategy that was chosen in this folder, or is chosen now; as it is where none is."""
    experiment = laboratory.experiment
    if not isinstance(experiment.strategy, metagrad.Auto):
        return laboratory
    if not (folder / CHOSEN).exists():
        _choose(laboratory, folder, state, progress)
    return replace(laboratory, experiment=as_chosen(experiment, folder))


def as_chosen(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with the strategy that was chosen in a run directory, or in the one that a checkpoint lies in.

    Raises:
        UsageError: what was written there can not be read.
    """
    if not isinstance(experiment.strategy, metagrad.Auto):
        return experiment
    for place in (folder, *folder.parents[:2]):
        if (place / CHOSEN).exists():
            return replace(experiment, strategy=_read(place / CHOSEN))
    return experiment


def _choose(laboratory: Laboratory, folder: Path, state: TrainState, progress: Progress) -> None:
    experiment = laboratory.experiment
    settings, execution = experiment.settings, experiment.execution
    # A loop has no size of chunks: one task is in memory at a time.
    num_tasks = (execution.chunk_size or settings.batch_size) if hasattr(execution, "chunk_size") else 1
    episode = tree.entry(laboratory.train_source.episodes("train", range(1), seed=settings.seed), 0)
    with blamed():
        planned = experiment.strategy.plan(
            laboratory.train_problem(state.buffers, state.step),
            state.meta,
            episode,
            num_tasks=min(num_tasks, settings.batch_size),
        )
    strategy = planned.recommended
    for line in str(planned).splitlines():
        progress.message(f"metagrad=auto: {line}")
    record = {"strategy": type(strategy).__name__, "arguments": asdict(strategy), "plan": str(planned).splitlines()}
    write_kept(folder / CHOSEN, record)


def _read(path: Path) -> Any:
    return read_kept(
        path,
        lambda record: _KINDS[record["strategy"]](**record["arguments"]),
        holds="the strategy that metagrad=auto chose for this run",
        fix="Start a new run, with metagrad=unrolled or metagrad=stepwise.",
    )
