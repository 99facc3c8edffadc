"""Meta-training as a fold: a meta step maps a `TrainState` to the next one, and a checkpoint of it is the whole run.

Batch b has the episodes b * batch_size … (b + 1) * batch_size - 1, and a meta step takes one: b is a number to save,
for strategies that take several meta steps for one batch, and no position in a stream. Validation,
records and checkpoints are due at fixed steps. So an interrupted and resumed run does what an uninterrupted one does,
in the same order, and ends with the same bits.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from metalearn.errors import PluginError
from metalearn.training.chaos import Watch, where_it_explodes
from metalearn.training.checkpoint import load_checkpoint, save_checkpoint
from metalearn.training.chosen import with_chosen_strategy
from metalearn.training.compiling import Switching, switching_of
from metalearn.training.data_identity import check_data, write_data
from metalearn.training.experiment import Experiment, TrainingSettings
from metalearn.training.interrupts import Interrupted, StopFlag, StopRequested, stop_flag
from metalearn.training.laboratory import Laboratory, prepare_laboratory, repeatable
from metalearn.training.loggers import Logger, Several
from metalearn.training.measuring import with_measured_execution
from metalearn.training.meta_step import Diverged, MetaStep, make_optimizer
from metalearn.training.precision_check import PrecisionCheck, precision_of
from metalearn.training.preflight import check_plugins
from metalearn.training.profiling import NO_PHASES, Profiler, profiler_of
from metalearn.training.progress import Phase, Progress, SilentProgress, shown
from metalearn.training.protocol import device_name
from metalearn.training.records import Records
from metalearn.training.report import report, validation
from metalearn.training.results import Results
from metalearn.training.run_directory import CHECKPOINTS, METRICS, claimed, compare_configs
from metalearn.training.state import Best, TrainState, from_checkpoint, to_checkpoint
from metalearn.training.task_card import write_task_card


def train(
    experiment: Experiment,
    run_directory: str | os.PathLike[str],
    *,
    resume: bool = False,
    logger: Logger | None = None,
    progress: Progress | None = None,
    resume_command: str | None = None,
    on_validation: Callable[[int, Mapping[str, float]], None] | None = None,
    stop: StopFlag | None = None,
    compile_command: Sequence[str] | None = None,
) -> Results:
    """Trains, validates and tests; fills the run directory.

    Args:
        experiment: what to do.
        run_directory: a folder without a run in it or, to resume, with an interrupted one.
        resume: go on with the run in the folder, from its last checkpoint.
        logger: told every record that goes into metrics.jsonl; `Several` for more than one.
        progress: where to report to; nowhere by default.
        resume_command: what the text of `Interrupted` says goes on with the run.
        on_validation: called with the meta step and the means after each validation, when it is saved; it may raise
            `Stopped`, which ends the run there, without results.
        stop: a flag that another thread may set, to the same effect as a signal.
        compile_command: of a process that compiles this run's meta-gradients beside it, into torch's cache
            (`metalearn.training.ahead`); None compiles them in this process, which then waits for it.

    Raises:
        Interrupted: SIGINT or SIGTERM came, or `stop` was set; the step is done and saved.
        Stopped: by `on_validation`.
        KeyboardInterrupt: a second signal came; the last checkpoint is valid.
        UsageError: the folder, the device, a split or a checkpoint is not what is needed, or the training diverged; a
            `PluginError` where a user's own code raised. What was trained until then is saved.
    """
    folder = Path(run_directory)
    with claimed(folder, resume=resume):
        laboratory = prepare_laboratory(experiment)
        results: Results | None = None
        with stop_flag(stop) as stop, repeatable():
            check_plugins(laboratory)
            was_known = resume and check_data(experiment, folder)
            run, state = _open_run(laboratory, folder, resume, logger or Several(), progress or SilentProgress(), stop)
            run.on_validation = on_validation
            try:
                run.profiler = _profiler(run, state)
                run.logger.start(folder, experiment.config, step=state.step)
                write_task_card(experiment.source, folder)
                if not was_known:
                    write_data(experiment, folder)
                run.laboratory = with_chosen_strategy(laboratory, folder, state, run.progress)
                run.laboratory = with_measured_execution(run.laboratory, folder, state, run.progress, resume=resume)
                run.switching = _switching(run, compile_command, resume=resume)
                if run.switching is not None:
                    run.switching.prepare(state)
                if not resume:
                    # Only now is there a run in the folder: a logger that did not start leaves it free for the next.
                    run.save(state)
                _fold(run, state)
                if run.switching is not None:
                    run.switching.close()
                results = report(
                    run.laboratory, folder, log=run.log, progress=run.progress, wall_time=run.wall_time, stop=stop
                )
            except StopRequested:
                raise Interrupted(folder, step=run.saved_step, resume_command=resume_command) from None
            except PluginError as error:
                how = f" When it is mended, go on with:\n  {resume_command}" if resume_command else ""
                saved = f"\nSaved after meta step {run.saved_step} in {folder}.{how}"
                raise error.followed_by(saved) from error.__cause__
            finally:
                if run.switching is not None:
                    run.switching.close()
                if run.profiler is not None:
                    run.profiler.close()
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
    on_validation: Callable[[int, Mapping[str, float]], None] | None = None
    started: float = field(default_factory=time.monotonic)
    watch: Watch = field(default_factory=Watch)
    remarked: bool = False
    profiler: Profiler | None = None
    switching: Switching | None = None

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
        step = _meta_step(run)
        while True:
            due = settings.validates and _is_due(state.step, settings.eval_every, settings.num_steps)
            if due and state.validated != state.step:
                state, means = _validated(run, state)
                run.save(state)
                if run.on_validation is not None:
                    run.on_validation(state.step, means)
            elif state.step > run.saved_step and _is_due(state.step, settings.checkpoint_every, settings.num_steps):
                run.save(state)
            if state.step >= settings.num_steps:
                return state
            if run.switching is not None and not run.stop.requested:
                run.switching.begin(state.step)
            if run.stop.requested:
                state = _taken(run, step, step.settled, state)
                run.save(state)
                raise StopRequested
            if run.profiler is not None:
                run.profiler.begin()
            state = _taken(run, step, step, state)
            if run.stop.requested or _is_anything_due(settings, state.step):
                state = _taken(run, step, step.settled, state)
            state = _logged(run, state, phase)
            if run.profiler is not None:
                run.profiler.end()


def _meta_step(run: _Run) -> MetaStep:
    laboratory = run.laboratory
    is_exact = precision_of(laboratory.experiment.execution) == "float32"
    if run.switching is not None:
        laboratory = replace(laboratory, experiment=replace(laboratory.experiment, execution=run.switching))
    return MetaStep(
        laboratory,
        phases=run.profiler or NO_PHASES,
        look=None if is_exact else PrecisionCheck(run.laboratory, run.log, run.progress),
    )


def _switching(run: _Run, command: Sequence[str] | None, *, resume: bool) -> Switching | None:
    was_measured = bool(run.laboratory.experiment.settings.measures)  # and waited for then: what is compiled is ready
    return switching_of(
        run.laboratory,
        run.folder,
        progress=run.progress,
        stop=run.stop,
        command=None if was_measured else command,
        resume=resume or was_measured,
    )


def _profiler(run: _Run, state: TrainState) -> Profiler | None:
    experiment = run.laboratory.experiment
    if not experiment.settings.profile:
        return None
    return profiler_of(
        run.folder,
        run.laboratory.device,
        num_left=max(experiment.settings.num_steps - state.step, 0),
        done=state.step,
        tell=run.progress.message,
        described={
            "first_meta_step": state.step,
            "execution": repr(experiment.execution),
            "metagrad": repr(experiment.strategy),
            "device": device_name(run.laboratory.device),
            "num_threads": torch.get_num_threads(),
        },
    )


def _taken(run: _Run, step: MetaStep, function: Callable[[TrainState], TrainState], state: TrainState) -> TrainState:
    """`function(state)`; where it fails, the state from before what failed is saved."""
    try:
        return function(state)
    except Diverged as error:
        before = step.kept(state)  # what the outer optimizer had not touched
        run.save(before)
        where = where_it_explodes(run.laboratory, before)
        raise (error if where is None else Diverged(f"{error}\nLooked into: {where}.")) from None
    except PluginError:
        run.save(_taken(run, step, step.kept, state))
        raise


def _is_anything_due(settings: TrainingSettings, step: int) -> bool:
    """Whether a record, a validation or a checkpoint is due, which need the numbers of every step before."""
    everies = (settings.log_every, settings.checkpoint_every, *([settings.eval_every] if settings.validates else []))
    return any(_is_due(step, every, settings.num_steps) for every in everies)


def _logged(run: _Run, state: TrainState, phase: Phase) -> TrainState:
    settings = run.laboratory.experiment.settings
    means = {name: total / state.window_steps for name, total in state.window.items()}
    phase.advance(1, means)
    if not _is_due(state.step, settings.log_every, settings.num_steps):
        return state
    run.log(state.step, means, split="train")
    state = replace(state, window={}, window_steps=0)
    _tell_of_gradient(run, state, means)
    return state


def _tell_of_gradient(run: _Run, state: TrainState, means: Mapping[str, float]) -> None:
    """Says what the strategy finds wrong with its gradients, once, and where they explode, each time they do."""
    remark = getattr(run.laboratory.experiment.strategy, "remark", lambda metrics: None)(means)
    if remark is not None and not run.remarked:
        run.progress.message(f"step {state.step}: {remark}")
    run.remarked = remark is not None
    if run.watch.jumped(means["grad_norm"]):
        where = (
            where_it_explodes(run.laboratory, state)
            or "no single inner step stands out: lower meta.lr, or set meta.clip"
        )
        run.progress.message(f"step {state.step}: the meta-gradient's norm jumped to {means['grad_norm']:.3g}: {where}")


def _validated(run: _Run, state: TrainState) -> tuple[TrainState, dict[str, float]]:
    try:
        found = validation(run.laboratory, state.meta, state.buffers, progress=run.progress, stop=run.stop)
    except (StopRequested, PluginError):
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
    return state, means


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _is_due(step: int, every: int, last: int) -> bool:
    return step > 0 and (step % every == 0 or step == last)
