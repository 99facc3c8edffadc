"""Meta-training as a fold: a meta step maps a `TrainState` to the next one, and a checkpoint of it is the whole run.

Step s trains on the episodes s * batch_size … (s + 1) * batch_size - 1, so there is no position to save. Validation,
records and checkpoints are due at fixed steps. So an interrupted and resumed run does what an uninterrupted one does,
in the same order, and ends with the same bits.
"""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from metalearn.training.checkpoint import load_checkpoint, save_checkpoint
from metalearn.training.evaluation import check_split
from metalearn.training.experiment import Experiment
from metalearn.training.interrupts import Interrupted, StopFlag, StopRequested, stop_flag
from metalearn.training.laboratory import Laboratory, prepare_laboratory, repeatable
from metalearn.training.loggers import Logger, Several
from metalearn.training.meta_step import Diverged, MetaStep, make_optimizer
from metalearn.training.progress import Phase, Progress, SilentProgress, shown
from metalearn.training.records import Records
from metalearn.training.report import report, validation
from metalearn.training.results import Results
from metalearn.training.run_directory import CHECKPOINTS, METRICS, claimed, compare_configs
from metalearn.training.state import Best, TrainState, from_checkpoint, to_checkpoint


def train(
    experiment: Experiment,
    run_directory: str | os.PathLike[str],
    *,
    resume: bool = False,
    logger: Logger | None = None,
    progress: Progress | None = None,
    resume_command: str | None = None,
) -> Results:
    """Trains, validates and tests; fills the run directory.

    Args:
        experiment: what to do.
        run_directory: a folder without a run in it or, to resume, with an interrupted one.
        resume: go on with the run in the folder, from its last checkpoint.
        logger: told every record that goes into metrics.jsonl; `Several` for more than one.
        progress: where to report to; nowhere by default.
        resume_command: what the text of `Interrupted` says goes on with the run.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the step is done and saved.
        KeyboardInterrupt: a second signal came; the last checkpoint is valid.
        UsageError: the folder, the device, a split or a checkpoint is not what is needed, or the training diverged.
    """
    folder = Path(run_directory)
    with claimed(folder, resume=resume):
        laboratory = prepare_laboratory(experiment)
        _check_splits(laboratory)
        results: Results | None = None
        with stop_flag() as stop, repeatable():
            run, state = _open_run(laboratory, folder, resume, logger or Several(), progress or SilentProgress(), stop)
            try:
                run.logger.start(folder, experiment.config, step=state.step)
                if not resume:
                    # Only now is there a run in the folder: a logger that did not start leaves it free for the next.
                    run.save(state)
                _fold(run, state)
                results = report(
                    laboratory, folder, log=run.log, progress=run.progress, wall_time=run.wall_time, stop=stop
                )
            except StopRequested:
                raise Interrupted(folder, step=run.saved_step, resume_command=resume_command) from None
            finally:
                run.records.close()
                run.logger.finish(None if results is None else results.data)
    return results


@dataclass(kw_only=True)
class _Run:
    """The surroundings of the fold: where it reports to, and what it has saved."""

    laboratory: Laboratory
    folder: Path
    records: Records
    logger: Logger
    progress: Progress
    stop: StopFlag
    seconds_before: float
    saved_step: int
    started: float = field(default_factory=time.monotonic)

    def log(self, step: int, metrics: Mapping[str, float], *, split: str) -> None:
        """Writes one record to metrics.jsonl and tells the loggers."""
        self.records.log(step, metrics, split=split)
        self.logger.log(step, metrics, split=split)

    def wall_time(self) -> float:
        """Seconds of the run so far, over all its parts."""
        return self.seconds_before + time.monotonic() - self.started

    def save(self, state: TrainState, name: str = "last") -> None:
        """Writes a checkpoint; "best" is only to be measured, and needs no optimizer."""
        self.records.sync()
        checkpoint = to_checkpoint(
            state,
            config=self.laboratory.experiment.config,
            num_records=self.records.count,
            wall_time=self.wall_time(),
        )
        kept = checkpoint if name == "last" else replace(checkpoint, optimizer=None)
        save_checkpoint(kept, self.folder / CHECKPOINTS / name)
        if name == "last":
            self.saved_step = state.step


def _open_run(
    laboratory: Laboratory, folder: Path, resume: bool, logger: Logger, progress: Progress, stop: StopFlag
) -> tuple[_Run, TrainState]:
    meta = laboratory.initial_meta()
    optimizer = make_optimizer(laboratory.experiment, meta)
    state = TrainState(step=0, meta=meta, optimizer=optimizer, buffers=laboratory.initial_buffers())
    num_records, seconds = 0, 0.0
    if resume:
        path = folder / CHECKPOINTS / "last"
        checkpoint = load_checkpoint(path, device=laboratory.device)
        compare_configs(checkpoint.config, laboratory.experiment.config, folder=folder)
        state = from_checkpoint(checkpoint, state, path=path)
        num_records, seconds = int(checkpoint.loop["num_records"]), float(checkpoint.loop["wall_time"])
    run = _Run(
        laboratory=laboratory,
        folder=folder,
        records=Records(folder / METRICS, keep=num_records),
        logger=logger,
        progress=progress,
        stop=stop,
        seconds_before=seconds,
        saved_step=state.step,
    )
    return run, state


def _fold(run: _Run, state: TrainState) -> TrainState:
    settings = run.laboratory.experiment.settings
    with run.progress.phase("meta-training", settings.num_steps, done=state.step, unit="steps") as phase:
        step = MetaStep(run.laboratory)
        while True:
            due = settings.validates and _is_due(state.step, settings.eval_every, settings.num_steps)
            if due and state.validated != state.step:
                state = _validated(run, state)
                run.save(state)
            elif state.step > run.saved_step and _is_due(state.step, settings.checkpoint_every, settings.num_steps):
                run.save(state)
            if state.step >= settings.num_steps:
                return state
            if run.stop.requested:
                run.save(state)
                raise StopRequested
            try:
                state = _logged(run, step(state), phase)
            except Diverged:
                run.save(state)
                raise


def _logged(run: _Run, state: TrainState, phase: Phase) -> TrainState:
    settings = run.laboratory.experiment.settings
    means = {name: total / state.window_steps for name, total in state.window.items()}
    phase.advance(1, means)
    if not _is_due(state.step, settings.log_every, settings.num_steps):
        return state
    run.log(state.step, means, split="train")
    return replace(state, window={}, window_steps=0)


def _validated(run: _Run, state: TrainState) -> TrainState:
    try:
        found = validation(run.laboratory, state.meta, state.buffers, progress=run.progress, stop=run.stop)
    except StopRequested:
        run.save(state)  # not validated yet: the resumed run begins with that
        raise
    means = {name: _number(summary["mean"]) for name, summary in found.items()}
    run.log(state.step, means, split="val")
    now = Best(step=state.step, metrics=found)
    better = now.beats(state.best)
    state = replace(state, validated=state.step, best=now if better else state.best)
    if better:
        run.save(state, "best")
    run.progress.message(f"step {state.step}: validation {', '.join(shown(means))}{' (best so far)' if better else ''}")
    return state


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _is_due(step: int, every: int, last: int) -> bool:
    return step > 0 and (step % every == 0 or step == last)


def _check_splits(laboratory: Laboratory) -> None:
    check_split(laboratory.source, "train", wanted_for="meta-training")
    check_split(laboratory.test_source, "test", wanted_for="the final test")
    if laboratory.experiment.settings.validates:
        check_split(laboratory.test_source, "val", wanted_for="validation (eval.val_episodes=0 for none)")
