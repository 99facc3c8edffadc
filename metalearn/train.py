"""`python -m metalearn.train [overrides]`: compose, build, train; with run=DIR, go on with an interrupted run."""

import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    # The imports below take seconds; a signal during them is no traceback. `command_line` installs what follows.
    def _stop(number: int, frame: object) -> NoReturn:
        os.write(2, b"metalearn: stopped before anything was started.\n")
        os._exit(130)

    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _stop)

from metalearn import config as configuration
from metalearn.config import Composed, TrainConfig
from metalearn.errors import UsageError
from metalearn.sweeps import PointRun
from metalearn.training import Results, train
from metalearn.training.run_directory import claimed, claimed_beside, run_argument, run_status

_MAY_CHANGE = (
    "meta.num_steps", "meta.log_every", "meta.checkpoint_every", "eval", "logger", "device", "task.root",
    "execution.profile",
)  # fmt: skip


def resume_command(run_directory: Path) -> str:
    """What goes on with the run in a folder, for a shell in the current one.

    Example:
        >>> resume_command(Path("outputs/glyphs/1"))
        'python -m metalearn.train run=outputs/glyphs/1'
    """
    return f"python -m metalearn.train {run_argument(run_directory)}"


def _run(argv: Sequence[str]) -> int:
    options = configuration.parse(argv)
    asked = configuration.changes(options.overrides)
    if asked.get("run") is None or options.help or options.hydra_help or options.cfg:
        return configuration.run_hydra("train", argv, _start)
    if options.multirun:
        raise UsageError("run=DIR goes on with one run: leave -m out.")
    configuration.check_folders(options.overrides)
    configuration.without_nulls(options.overrides, groups=("logger", "eval", "meta", "task"))  # for what it refuses
    _resume(Path(str(asked.pop("run"))), asked)
    return 0


def _start(composed: Composed) -> None:
    folder = composed.run_directory
    resume = composed.point is not None and composed.point.resume
    try:
        config, left_out = configuration.without_foreign_defaults(composed.config, composed.changed)
        if left_out:
            print(f"metalearn: left out what the new class does not take: {', '.join(left_out)}", file=sys.stderr)
        config = configuration.resolved(config, config_dir=composed.config_dir)
        claim = claimed_beside(folder) if composed.folder_is_ours else claimed(folder, resume=resume)
        with claim as folder:
            _train(config, folder, resume=resume, point=composed.point)
    except UsageError:
        with suppress(OSError):  # a mistake found while building leaves no empty folder behind
            folder.rmdir()
        raise


def _resume(folder: Path, asked: Mapping[str, Any]) -> None:
    for key in asked:
        if not any(key == free or key.startswith(f"{free}.") for free in _MAY_CHANGE):
            raise UsageError(
                f"{key} can not change when a run goes on: its numbers would be of two different runs. "
                f"Free to change: {', '.join(_MAY_CHANGE)}."
            )
    changes = dict(asked)
    for group in ("logger", "eval"):
        if isinstance(changes.get(group), str):
            changes[group] = configuration.group_choice(group, changes[group])
    config = configuration.read_config(folder, changes.items())
    if "meta.num_steps" in changes and config.meta.schedule.value != "constant":
        raise UsageError("meta.num_steps can not change when a run goes on: its schedule of rates depends on it.")
    with claimed(folder.resolve(), resume=True):
        _train(config, folder.resolve(), resume=True, changes=changes)


def _train(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool,
    point: PointRun | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    experiment = configuration.build_experiment(config)
    # torch.func loads torch's compiler, a second, at its first call: before training, once there is no mistake to tell.
    importlib.import_module("torch._dynamo")
    logger, progress = configuration.build_logger(config)
    if not resume:
        configuration.write_config(config, folder)
    try:
        results = train(
            experiment,
            folder,
            resume=resume,
            logger=logger,
            progress=progress if point is None else point.reports_to(progress),
            resume_command=resume_command(folder),
            on_validation=None if point is None else point.on_validation,
            stop=None if point is None else point.stop,
            compile_command=[sys.executable, "-m", "metalearn.compile_ahead", str(folder), json.dumps(changes or {})],
        )
    except UsageError:
        if not resume and run_status(folder) == "empty":  # refused before it began: what was just written goes again
            (folder / configuration.CONFIG).unlink(missing_ok=True)
        raise
    if resume:
        configuration.write_config(config, folder)
    if point is None:  # a sweep says it in its own way
        _report(results, folder)


def _report(results: Results, folder: Path) -> None:
    print(results.summary())
    print(f"Results, curves and checkpoints: {folder}")


main, command = configuration.command_line(_run)

if __name__ == "__main__":
    command()
