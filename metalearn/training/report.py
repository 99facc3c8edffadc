"""What a run ends with, and what an evaluation is: measurements, results.json, pictures."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from metalearn.training.checkpoint import Checkpoint, check_fits, find_checkpoint, load_checkpoint
from metalearn.training.chosen import as_chosen
from metalearn.training.evaluation import Measurement, check_split, measure
from metalearn.training.execution_record import execution_card
from metalearn.training.experiment import Experiment, refuse_inner_steps
from metalearn.training.fit import draw_fit
from metalearn.training.guard import GuardedSource
from metalearn.training.interrupts import StopFlag
from metalearn.training.laboratory import Laboratory, prepare_laboratory, repeatable
from metalearn.training.measuring import as_measured
from metalearn.training.plots import draw_curves
from metalearn.training.preflight import check_padded
from metalearn.training.progress import Progress, SilentProgress
from metalearn.training.protocol import protocol_card
from metalearn.training.records import read_records
from metalearn.training.results import Results, by_step, last_step, of_the_first
from metalearn.training.run_directory import CURVES, METRICS, RESULTS
from metalearn.training.state import check_loop
from metalearn.types import Episodes, Tensors


class Log(Protocol):
    """Takes one record."""

    def __call__(self, step: int, metrics: dict[str, float], *, split: str) -> None:
        """Writes it down."""


def validation(
    laboratory: Laboratory, meta: Tensors, buffers: Tensors, *, progress: Progress, stop: StopFlag
) -> dict[str, Any]:
    """The summaries of every metric after the last inner step on the run's validation episodes, always the same.

    They come from the training's source: what chooses the checkpoint must not have seen the source of the test.
    """
    settings = laboratory.experiment.settings
    measured = _measured(
        laboratory, meta, buffers, source=laboratory.source, split="val", seed=settings.seed,
        num_episodes=settings.val_episodes,
        num_inner_steps=settings.num_inner_steps_eval, name="validation", progress=progress, stop=stop,
    )  # fmt: skip
    return last_step(measured)


def report(
    laboratory: Laboratory,
    folder: Path,
    *,
    log: Log,
    progress: Progress,
    wall_time: Callable[[], float],
    stop: StopFlag,
) -> Results:
    """Tests the best checkpoint (else the last), writes results.json and draws the pictures."""
    settings = laboratory.experiment.settings
    path = find_checkpoint(folder)
    checkpoint = _load(laboratory, path)
    results = _results(
        laboratory, checkpoint, path, split="test", num_episodes=settings.test_episodes,
        num_inner_steps=settings.num_inner_steps_eval, baseline=settings.baseline, progress=progress, stop=stop,
        wall_time=wall_time, records=read_records(folder / METRICS),
    )  # fmt: skip
    means = {name: summary["mean"] for name, summary in results.data["test"].items() if summary["mean"] is not None}
    log(settings.num_steps, means, split="test")
    draw_curves(read_records(folder / METRICS), results.data, folder / CURVES)
    draw_fit(laboratory, checkpoint, folder)
    # Last: a folder with results in it is a finished run.
    results.save(folder / RESULTS)
    return results


def evaluate(
    experiment: Experiment,
    checkpoint: str | os.PathLike[str],
    *,
    num_episodes: int | None = None,
    num_inner_steps: int | None = None,
    split: str = "test",
    baseline: bool = True,
    progress: Progress | None = None,
    watch: Callable[[Episodes], None] = lambda episodes: None,
) -> Results:
    """Measures a checkpoint; writes nothing.

    Args:
        experiment: as it was trained; its settings say which seed the episodes have.
        checkpoint: a run directory (its best checkpoint, else its last) or a checkpoint's own folder.
        num_episodes: by default as many as the run's own test.
        num_inner_steps: by default as in the run's own test.
        split: of the task source.
        baseline: whether to measure the same adaptation from the untrained initialisation too.
        progress: where to report to; nowhere by default.
        watch: called with each batch of episodes that the checkpoint is measured on.

    Raises:
        UsageError: no such split, device or checkpoint, or one of another model.
        KeyboardInterrupt: a signal came.
    """
    found = find_checkpoint(checkpoint)
    laboratory = prepare_laboratory(as_measured(as_chosen(experiment, found), found))
    check_split(laboratory.test_source, split, wanted_for="the evaluation")
    check_padded(laboratory, laboratory.test_source, split)
    if num_inner_steps:
        refuse_inner_steps(experiment.algorithm, f"num_inner_steps={num_inner_steps}")
    settings = experiment.settings
    path = find_checkpoint(checkpoint)
    with repeatable():
        return _results(
            laboratory,
            _load(laboratory, path),
            path,
            split=split,
            num_episodes=settings.test_episodes if num_episodes is None else num_episodes,
            num_inner_steps=settings.num_inner_steps_eval if num_inner_steps is None else num_inner_steps,
            baseline=baseline,
            progress=progress or SilentProgress(),
            stop=StopFlag(),
            wall_time=None,
            watch=watch,
        )


def _results(
    laboratory: Laboratory,
    checkpoint: Checkpoint,
    path: Path,
    *,
    split: str,
    num_episodes: int,
    num_inner_steps: int,
    baseline: bool,
    progress: Progress,
    stop: StopFlag,
    wall_time: Callable[[], float] | None,
    records: Sequence[Mapping[str, Any]] = (),
    watch: Callable[[Episodes], None] = lambda episodes: None,
) -> Results:
    meta, loop = checkpoint.meta, checkpoint.loop
    how: dict[str, Any] = {
        "source": laboratory.test_source, "split": split, "num_episodes": num_episodes,
        "seed": laboratory.experiment.settings.seed_of_test,
        "num_inner_steps": num_inner_steps, "progress": progress, "stop": stop,
    }  # fmt: skip
    measured = _measured(laboratory, meta, checkpoint.buffers, name=split, watch=watch, **how)
    data: dict[str, Any] = {split: last_step(measured), f"{split}_by_step": by_step(measured)}
    data |= of_the_first(measured, split)
    if baseline:
        untrained = _measured(
            laboratory, laboratory.initial_meta(), laboratory.initial_buffers(), name="random initialisation", **how
        )
        data |= {"baseline": last_step(untrained), "baseline_by_step": by_step(untrained)}
    if loop["best"] is not None and split != "val":
        data["val"] = loop["best"]["metrics"]
    data["protocol"] = protocol_card(
        laboratory.experiment,
        source=laboratory.test_source,
        split=split,
        meta=meta,
        device=laboratory.device,
        num_inner_steps=num_inner_steps,
        checkpoint="best on validation" if path.name == "best" else path.name,
        meta_steps_done=checkpoint.step,
        wall_time=float(loop["wall_time"]) if wall_time is None else wall_time(),
        records=records,
    ) | execution_card(path)
    return Results(data=data, split=split, values=measured)


def _measured(
    laboratory: Laboratory,
    meta: Tensors,
    buffers: Tensors,
    *,
    source: GuardedSource,
    split: str,
    seed: int,
    num_episodes: int,
    num_inner_steps: int,
    name: str,
    progress: Progress,
    stop: StopFlag,
    watch: Callable[[Episodes], None] = lambda episodes: None,
) -> Tensors:
    settings = laboratory.experiment.settings
    return measure(
        Measurement(
            source=source,
            split=split,
            seed=seed,
            num_episodes=num_episodes,
            batch_size=settings.test_batch_size,
            num_inner_steps=num_inner_steps,
        ),
        execution=laboratory.experiment.execution,
        problem=laboratory.eval_problem(buffers),
        meta=meta,
        name=name,
        progress=progress,
        check=stop.check,
        watch=watch,
    )


def _load(laboratory: Laboratory, path: Path) -> Checkpoint:
    checkpoint = load_checkpoint(path, device=laboratory.device)
    check_loop(checkpoint.loop, path=path)
    check_fits(checkpoint.meta, laboratory.initial_meta(), path=path, what="meta-parameter")
    check_fits(checkpoint.buffers, laboratory.initial_buffers(), path=path, what="buffer")
    return checkpoint
