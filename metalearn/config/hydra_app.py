"""The command lines' engine: where the YAML lies, composing it through Hydra, and exit codes instead of tracebacks."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, Protocol

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metalearn.config.choices import (
    config_directory,
    config_folders,
    register_schemas,
    unreadable,
    warn_of_broken_packages,
)
from metalearn.config.explain import HYDRA_ERRORS, explain
from metalearn.config.overrides import changes, check_folders, opened, texts_kept, without_nulls
from metalearn.config.settings import settings_of
from metalearn.config.sweeper import register_sweeper
from metalearn.errors import PluginError, UsageError
from metalearn.sweeps import DONE as POINT_DONE
from metalearn.sweeps import Point, PointRun, read_point, run_point
from metalearn.training import Interrupted
from metalearn.training.guard import in_a_line, own_traceback

DONE, MISTAKE, INTERRUPTED = 0, 2, 130
_BY_THE_SECOND = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
_LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "submitit": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}


@dataclass(frozen=True)
class Composed:
    """What a job is given.

    Attributes:
        config: an instance of the schema's dataclass.
        run_directory: the job's own folder.
        changed: the keys that the command line set.
        config_dir: the folder of `--config-dir`.
        point: what goes with it if the job is a point of a sweep.
        folder_is_ours: nobody asked for that folder: it is named by the second in which the job started.
    """

    config: Any
    run_directory: Path
    changed: frozenset[str] = field(default_factory=frozenset)
    config_dir: str | None = None
    point: PointRun | None = None
    folder_is_ours: bool = False


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Hydra's own command line, with an error that is ours.

    Raises:
        UsageError: an option that there is not.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UsageError(f"{message}. See --help.")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(list(argv))


def run_hydra(name: str, argv: Sequence[str], job: Callable[[Composed], None]) -> int:
    """Composes `name`.yaml with the overrides of `argv` and runs `job`, once or, with -m, for every combination.

    Returns:
        The exit code.
    """
    register_schemas()
    register_sweeper()
    warn_of_broken_packages()
    arguments = parse(argv)
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        raise UsageError(f"--config-dir={arguments.config_dir} is not a folder.")
    options = [each for each in argv if each not in arguments.overrides]
    check_folders(arguments.overrides)
    arguments.overrides = opened(without_nulls(texts_kept(arguments.overrides), groups=_groups(arguments)))
    _check_sweep(arguments)

    def task(config: DictConfig) -> None:
        if _is_multirun() and (point := read_point(Path(HydraConfig.get().runtime.output_dir))) is not None:
            _run_as_point(point, lambda run: job(replace(_composed(config, arguments.config_dir), point=run)))
            return
        # Hydra would print an exception in its own way; SystemExit passes through, and ends a multirun at a failure.
        code = guarded(lambda: _without_exit(job, _composed(config, arguments.config_dir)), prefix=_job_prefix())
        if code != DONE:
            raise SystemExit(code)

    config_path = str(config_directory())
    # Hydra's own parser wants the overrides in one piece, and refuses `task=sinusoid -m seed=0,1`.
    with _command_line(name, [*options, *arguments.overrides]):
        try:
            hydra.main(version_base="1.3", config_path=config_path, config_name=name)(task)()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else DONE
        except HYDRA_ERRORS as error:
            # Only a training chooses from groups; the other commands have keys alone.
            groups = _groups(arguments) if name == "train" else set()
            message = explain(error, compose=_without_values(name, arguments), groups=groups)
            raise UsageError(message) from None
        except yaml.YAMLError as error:
            raise UsageError(unreadable(error)) from None
        except OSError as error:  # Hydra making the run directory: the job's own errors are told inside
            raise UsageError(
                f"The run directory {error.filename} can not be written ({error.strerror}). Choose another with "
                "hydra.run.dir=…."
            ) from None
    return DONE


def guarded(action: Callable[[], int | None], *, prefix: str = "") -> int:
    """Runs `action`; a user's mistake becomes a line on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        return action() or DONE
    except UsageError as error:
        if isinstance(error, PluginError) and error.own_traceback:
            print(error.own_traceback, file=sys.stderr)
        _say(f"{prefix}{error}")
        return MISTAKE
    except Interrupted as error:
        _say(f"{prefix}{error}")
        return INTERRUPTED
    except KeyboardInterrupt:
        _say(f"{prefix}stopped before anything could be saved.")
        return INTERRUPTED
    except OSError as error:
        if error.filename is None:
            raise
        _say(f"{prefix}{error.filename}: {error.strerror}.")
        return MISTAKE


class Main(Protocol):
    """A command line as a function."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Runs the command line.

        Args:
            argv: the arguments after the command's name; `None` for the process's own.

        Returns:
            The exit code: 0 done, 2 the user's mistake, 130 interrupted, with what can be saved saved.
        """


def command_line(run: Callable[[Sequence[str]], int]) -> tuple[Main, Callable[[], NoReturn]]:
    """A command line that does `run(argv)`, as a function, and as the process that it is, which leaves with its code.

    In a process SIGTERM counts as Ctrl-C.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        arguments = list(sys.argv[1:] if argv is None else argv)
        with importable_folder():
            return guarded(lambda: run(arguments))

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    def command() -> NoReturn:
        for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: `metalearn.train` handles both until here
            signal.signal(number, interrupt)
        sys.exit(main())

    return main, command


@contextmanager
def importable_folder() -> Iterator[None]:
    """The current folder on the import path, as `python -m` has it and a console script does not."""
    folder = os.getcwd()
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added:
            sys.path.remove(folder)


def _check_sweep(arguments: argparse.Namespace) -> None:
    chosen = changes(arguments.overrides).get("sweep")
    runs = not (arguments.help or arguments.hydra_help or arguments.cfg or arguments.info)
    if chosen is not None and runs and not arguments.multirun:
        raise UsageError(f"sweep={chosen} is several runs: add -m.")
    launcher = str(changes(arguments.overrides).get("hydra/launcher"))
    for name, (package, extra) in _LAUNCHERS.items():
        if launcher.startswith(name) and not _is_installed(package):
            raise UsageError(f'hydra/launcher={launcher} needs a package: pip install "metalearn-torch[{extra}]".')


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # there are no plug-ins of Hydra at all
        return False


def _say(text: str) -> None:
    print(f"metalearn: {text}", file=sys.stderr, flush=True)


def _composed(config: DictConfig, config_dir: str | None) -> Composed:
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    asked = "hydra.run.dir" in changes(list(job.overrides.hydra))
    return Composed(
        config=settings_of(config),
        run_directory=folder,
        changed=frozenset(changes(list(job.overrides.task))),
        config_dir=config_dir,
        # An experiment's YAML may name a folder too: that one has no time in it.
        folder_is_ours=not asked and not _is_multirun() and _BY_THE_SECOND.fullmatch(folder.name) is not None,
    )


def _job_prefix() -> str:
    job = HydraConfig.get()
    if not _is_multirun():
        return ""
    return f"job {job.job.num} ({' '.join(job.overrides.task)}): "


class _NotFinished(Exception):  # noqa: N818 - the outcome is written and told; this marks the job as failed for Hydra
    pass


def _run_as_point(point: Point, action: Callable[[PointRun], None]) -> None:
    outcome = run_point(point, action, directory=Path(HydraConfig.get().sweep.dir))
    if outcome.status not in POINT_DONE:
        raise _NotFinished(outcome.message)


def _without_exit(job: Callable[[Composed], None], composed: Composed) -> None:
    try:
        job(composed)
    except SystemExit as error:  # of a plug-in's: the exit code is ours to choose, and the job is not done
        raise PluginError(f"the job ended itself ({in_a_line(error)})", own_traceback(error)) from error


def _is_multirun() -> bool:
    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


@contextmanager
def _command_line(name: str, argv: Sequence[str]) -> Iterator[None]:
    # Hydra reads sys.argv, and prints its own traceback unless HYDRA_FULL_ERROR asks for the exception itself.
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [name, *argv], "1"
    try:
        yield
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.__setitem__("HYDRA_FULL_ERROR", full)


def _without_values(name: str, arguments: argparse.Namespace) -> Callable[[], DictConfig]:
    def compose() -> DictConfig:
        groups = _groups(arguments)
        choices = [text for text in arguments.overrides if text.partition("=")[0] in groups and "," not in text]
        extra = [f"hydra.searchpath=['file://{_extra_folder(arguments)}']"] if arguments.config_dir else []
        with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
            try:
                return hydra.compose(name, overrides=choices + extra)
            except HYDRA_ERRORS:
                return hydra.compose(name)

    return compose


def _groups(arguments: argparse.Namespace) -> set[str]:
    folders = config_folders(arguments.config_dir)
    return {each.name for folder in folders for each in folder.iterdir() if each.is_dir() and each.name.isidentifier()}


def _extra_folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.config_dir).resolve()
