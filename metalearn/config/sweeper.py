"""The Hydra sweeper behind -m: every point runs once, a failed one ends nothing, and a table ends the sweep."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, flag_override

from metalearn import sweeps
from metalearn.config.build import build_source, without_foreign_defaults
from metalearn.config.draft import Draft, Drawer
from metalearn.config.grid import Swept, read_sweep, text_of
from metalearn.config.overrides import changes
from metalearn.config.schema import SWEEPER
from metalearn.errors import UsageError
from metalearn.sweeps import Choices, Outcome, Point, Study

AUTO = "auto"
_BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"

Found = list[tuple[Point, Outcome]]


def register_sweeper() -> None:
    """Tells Hydra what `hydra/sweeper: metalearn` makes; `choices.register_schemas` tells it the keys."""
    # Into the table, not by `register`: that would take the class's own module, which Hydra refuses; and a module
    # hydra_plugins.metalearn would be imported by every program of the environment that uses Hydra.
    Plugins.instance().class_name_to_class[SWEEPER] = MetalearnSweeper


class MetalearnSweeper(Sweeper):
    """Runs the points of a sweep that are not there yet, by whatever launcher, and ends with a table."""

    def __init__(
        self, params: DictConfig, num_trials: int | None = None, batch_size: int | None = None, **settings: Any
    ) -> None:
        """Takes the keys of `SweeperConfig`."""
        for name, value in (("num_trials", num_trials), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise UsageError(f"hydra.sweeper.{name}={value}: expected a number of at least 1.")
        self._params = {str(key): value for key, value in params.items()}
        self._num_trials, self._batch_size, self._settings = num_trials, batch_size, settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        arguments = list(config.hydra.overrides.task)
        swept = read_sweep(self._params, arguments, loader=hydra_context.config_loader)
        if config.hydra.sweep.dir == AUTO:
            named = _named_by_command(config, self._params, arguments, swept, study=self._num_trials is not None)
            with flag_override(config, ["struct", "readonly"], [False, False]):
                config.hydra.sweep.dir = named
        self._config, self._swept = config, swept
        self._drawer = Drawer(hydra_context, config, swept)
        self._directory = Path(str(config.hydra.sweep.dir)).resolve()
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self._in_process = config.hydra.launcher.get("_target_") == _BASIC
        self._workers = 1 if self._in_process else _workers(config.hydra.launcher)

    def sweep(self, arguments: list[str]) -> None:
        """Runs what is missing.

        Raises:
            SystemExit: 2 if a point failed, 130 after an interrupt; the table is printed by then.
            UsageError: the folder or its study is in use, or what is swept makes no sense.
        """
        if self._num_trials is None:
            drafts = [self._drawer.draft(texts, number=number) for number, texts in enumerate(self._swept.grid())]
        else:
            sweeps.check_installed()
            space, settings = self._swept.space(), sweeps.Settings(**self._settings)
            metric = self._objective(space)
        with sweeps.claimed(self._directory):
            OmegaConf.save(self._config, self._directory / "multirun.yaml")
            if self._num_trials is None:
                found = self._run_grid(drafts)
            else:
                study = Study(self._directory, space=space, settings=settings, metric=metric)
                found = self._run_study(study, self._num_trials)
            stopped = sweeps.asked_to_stop(self._directory)
            sweeps.finish(sweeps.summarise(found, self._swept.keys), self._directory, command=" ".join(arguments))
        if stopped:
            print("metalearn: interrupted; what is there is kept, and the same command goes on.", file=sys.stderr)
            raise SystemExit(130)
        if any(outcome.status not in sweeps.DONE for _, outcome in found):
            raise SystemExit(2)

    def _run_grid(self, drafts: Sequence[Draft]) -> Found:
        different = list({draft.digest: draft for draft in drafts}.values())
        placed = self._placed(different, total=len(different))
        missing = [each for each in placed if sweeps.read_outcome(each[0].folder).status not in sweeps.DONE]
        if len(missing) < len(placed):
            print(f"{len(placed) - len(missing)} of {len(placed)} points are there already.", flush=True)
        size = self._batch_size or max(len(missing), 1)
        for start in range(0, len(missing), size):
            self._launch(missing[start : start + size])
        return [(point, sweeps.read_outcome(point.folder)) for point, _ in placed]

    def _run_study(self, study: Study, num_trials: int) -> Found:
        left = num_trials - study.num_done
        if study.num_done:
            print(f"{study.num_done} of {num_trials} trials are there already.", flush=True)
        size = self._batch_size or self._workers
        while left > 0 and not sweeps.asked_to_stop(self._directory):
            proposals = [study.ask() for _ in range(min(size, left))]
            placed = self._placed([self._proposed(each.values) for each in proposals], total=num_trials)
            trials = [study.trial(each) for each in proposals]
            jobs = {
                point.digest: (replace(point, trial=replace(trial, last_step=draft.settings.meta.num_steps)), draft)
                for (point, draft), trial in zip(placed, trials, strict=True)
                if sweeps.read_outcome(point.folder).status not in sweeps.DONE
            }
            self._launch(list(jobs.values()))
            for proposal, (point, _) in zip(proposals, placed, strict=True):
                study.tell(proposal, sweeps.read_outcome(point.folder))
            left -= len(proposals)
        past = [self._proposed(each.values) for each in study.past()]
        different = list({draft.digest: draft for draft in past}.values())
        return [
            (point, sweeps.read_outcome(point.folder)) for point, _ in self._placed(different, total=len(different))
        ]

    def _proposed(self, values: Mapping[str, Any]) -> Draft:
        texts = {key: text_of(value) for key, value in values.items()}
        return self._drawer.draft(texts, number=0)

    def _placed(self, drafts: Sequence[Draft], *, total: int) -> list[tuple[Point, Draft]]:
        """The drafts with their folders: where they were begun before, else new ones with the next free numbers."""
        known = sweeps.known_points(self._directory)
        free = max((point.number for point in known.values()), default=-1) + 1
        placed: dict[str, Point] = {}
        folders = {point.folder for point in known.values()}
        for draft in drafts:
            if draft.digest in placed:
                continue
            if (point := known.get(draft.digest)) is None:
                folder = self._drawer.folder(draft, self._directory, number=free)
                if folder in folders:
                    raise UsageError(f"hydra.sweep.subdir gives two points the folder {folder}. Leave it out.")
                folders.add(folder)
                point = Point(folder=folder, number=free, digest=draft.digest, values=draft.values)
                free += 1
            placed[draft.digest] = replace(point, values=draft.values, total=total, workers=self._workers, trial=None)
        return [(placed[draft.digest], draft) for draft in drafts]

    def _launch(self, jobs: Sequence[tuple[Point, Draft]]) -> None:
        if not jobs or sweeps.asked_to_stop(self._directory):
            return
        overrides = [self._drawer.job(draft, self._directory, point.folder) for point, draft in jobs]
        for point, _ in jobs:
            point.write()
        why = "its process ended without a word (killed, or out of memory?)"
        try:
            # In this process a run has handlers of its own.
            with nullcontext() if self._in_process else sweeps.stopping(self._directory):
                self._launcher.launch(overrides, initial_job_idx=jobs[0][0].number)
        except KeyboardInterrupt:
            sweeps.ask_to_stop(self._directory)
        except (HydraException, UsageError):
            raise
        except Exception as error:  # joblib's, submitit's: a process that died, a scheduler that is not there
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            print(f"metalearn: the launcher failed: {why}", file=sys.stderr, flush=True)
        if sweeps.asked_to_stop(self._directory):
            return
        for point, _ in jobs:
            if sweeps.read_outcome(point.folder).status not in (*sweeps.DONE, "failed"):
                Outcome(status="failed", message=why).write(point.folder)

    def _objective(self, space: sweeps.Space) -> str:
        """The validation metric that the task has; a first point is composed, and its task built, to find out."""
        first = {key: text_of(each.values[0] if isinstance(each, Choices) else each.low) for key, each in space.items()}
        draft = self._drawer.draft(first, number=0)
        if not (draft.settings.eval.every > 0 and draft.settings.eval.val_episodes > 0):
            raise UsageError("A study compares validations: eval.every and eval.val_episodes have to be above 0.")
        config, _ = without_foreign_defaults(draft.settings, changes(draft.overrides))
        return "accuracy" if build_source(config).kind == "classification" else "loss"


def _workers(launcher: DictConfig) -> int:
    """The points that a launcher runs at once, as far as it says: joblib's n_jobs, submitit's array_parallelism."""
    number = launcher.get("n_jobs", launcher.get("array_parallelism", 2))
    return (os.cpu_count() or 1) if number < 1 else max(int(number), 2)


def _named_by_command(
    config: DictConfig, params: Mapping[str, Any], arguments: Sequence[str], swept: Swept, *, study: bool
) -> str:
    """outputs/multirun/<task>-<sweep>-<digest>: the same for the same command, however it is launched."""
    choices = config.hydra.runtime.choices
    task = "tasks" if "task" in swept.keys else str(choices.get("task"))
    names = [task, *([str(choices.sweep)] if choices.get("sweep") else []), *(["study"] if study else [])]
    quiet = ("logger", "device")
    said = sorted(text for text in arguments if text.split("=")[0].lstrip("+~").split(".")[0] not in quiet)
    digest = sweeps.digest_of([said, {key: str(value) for key, value in params.items()}, study])[:8]
    return f"outputs/multirun/{'-'.join(dict.fromkeys(names))}-{digest}"
