"""Running one point, in whatever process a launcher has put it: nothing it meets ends the sweep."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from metalearn.errors import PluginError, UsageError
from metalearn.sweeps import study
from metalearn.sweeps.directory import ask_to_stop, asked_to_stop
from metalearn.sweeps.points import OUTCOME, TRACEBACK, Outcome, Point, read_outcome
from metalearn.training import Interrupted, LineProgress, Progress, SilentProgress, StopFlag, Stopped, run_status
from metalearn.training.results import describe
from metalearn.training.run_directory import METRICS

_POLL_SECONDS = 0.2
_MARK = "metalearn: "


@dataclass(frozen=True, kw_only=True)
class PointRun:
    """What a run is given beside its configuration when it is a point of a sweep.

    Attributes:
        resume: whether its folder holds an interrupted run, to go on with.
        stop: set when the sweep is to stop.
        progress: where it reports to instead of its own bars; `None` when it runs alone.
        on_validation: what `train` calls after a validation.
    """

    resume: bool
    stop: StopFlag
    progress: Progress | None
    on_validation: Callable[[int, Mapping[str, float]], None] | None

    def reports_to(self, own: Progress) -> Progress:
        """Where the run reports to, which has `own` progress when it runs alone; silence stays silence."""
        return own if self.progress is None or isinstance(own, SilentProgress) else self.progress


def run_point(point: Point, action: Callable[[PointRun], None], *, directory: Path) -> Outcome:
    """Runs `action` as a point of the sweep in `directory`, and writes down and tells what became of it.

    Args:
        point: which one.
        action: trains in `point.folder`.
        directory: of the sweep.

    Returns:
        The outcome. A mistake, a broken plug-in, an interrupt: all are outcomes, none is raised.
    """
    if asked_to_stop(directory):
        return read_outcome(point.folder)
    (point.folder / OUTCOME).unlink(missing_ok=True)
    outcome = _attempt(point, action, directory=directory)
    outcome.write(point.folder)
    if outcome.status == "failed":
        print(f"{_MARK}{point.label}: {outcome.message}", file=sys.stderr, flush=True)
    else:
        print(told(point, outcome), flush=True)
    return outcome


def told(point: Point, outcome: Outcome) -> str:
    """A line about a point that ended."""
    measured = {"validation": outcome.val, "test": outcome.test}
    parts = [
        f"{split} {name} {describe(found[name], percent=name == 'accuracy')}"
        for split, found in measured.items()
        for name in ("accuracy", "loss")
        if name in found and not (name == "loss" and "accuracy" in found)
    ]
    said = outcome.message if outcome.status != "finished" else ""
    return f"{point.label}: {', '.join([outcome.status, *parts, *([said] if said else [])])}"


def _attempt(point: Point, action: Callable[[PointRun], None], *, directory: Path) -> Outcome:
    began = time.monotonic()
    try:
        with _surroundings(point, directory) as run:
            action(run)
        return read_outcome(point.folder)
    except Stopped as stopped:
        message = f"pruned at meta step {stopped.step}"
        return _ended("pruned", point, message, began)
    except (Interrupted, KeyboardInterrupt) as error:
        ask_to_stop(directory)
        where = f"saved at meta step {error.step}" if isinstance(error, Interrupted) else "stopped before it was saved"
        return _ended("interrupted", point, where, began)
    except PluginError as error:
        return _broken(point, str(error), error.own_traceback, began)
    except UsageError as error:
        return _ended("failed", point, str(error), began)
    except OSError as error:
        if error.filename is not None:
            return _ended("failed", point, f"{error.filename}: {error.strerror}.", began)
        return _unforeseen(point, error, began)
    # A plug-in can raise anything. Its traceback is kept for its author, and the other points go on.
    except (Exception, SystemExit) as error:
        return _unforeseen(point, error, began)


def _unforeseen(point: Point, error: BaseException, began: float) -> Outcome:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return _broken(point, text, "".join(traceback.format_exception(error)), began)


def _broken(point: Point, text: str, stack: str, began: float) -> Outcome:
    path = point.folder / TRACEBACK
    path.write_text(stack, encoding="utf-8")
    return _ended("failed", point, f"{text} (traceback in {path})", began)


def _ended(status: str, point: Point, message: str, began: float) -> Outcome:
    seconds = round(time.monotonic() - began, 1)
    outcome = Outcome(status=status, message=message, seconds=seconds)  # type: ignore[arg-type]
    return replace(outcome, val=study.best_validation(point.folder))


@contextmanager
def _surroundings(point: Point, directory: Path) -> Iterator[PointRun]:
    alone = point.workers == 1
    stop = StopFlag()
    report = None
    if point.trial is not None:
        report = study.reporter(directory, point.trial)
    progress = None if alone else LineProgress(_Prefixed(f"[{point.number}] "))  # type: ignore[arg-type]
    status = run_status(point.folder)
    if status == "empty":  # perhaps of a process that was killed before its first checkpoint: it starts anew
        (point.folder / METRICS).unlink(missing_ok=True)
    run = PointRun(resume=status == "interrupted", stop=stop, progress=progress, on_validation=report)
    if alone:
        yield run
        return
    # The terminal sends Ctrl-C to every process; between two points it must not end this one. In a run, `train`
    # has a handler of its own, and the file asks too where no signal comes (another machine, `kill` of the parent).
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(directory, stop, ended), daemon=True)
    watch.start()
    try:
        yield run
    finally:
        ended.set()
        watch.join()


def _watch(directory: Path, stop: StopFlag, ended: threading.Event) -> None:
    while not ended.wait(_POLL_SECONDS):
        if asked_to_stop(directory):
            stop.requested = True
            return


class _Prefixed:
    """Standard error, a whole line at a time: several processes write to it."""

    def __init__(self, prefix: str) -> None:
        self._prefix, self._line = prefix, ""

    def write(self, text: str) -> int:
        self._line += text
        *whole, self._line = self._line.split("\n")
        for line in whole:
            os.write(2, f"{self._prefix}{line}\n".encode())
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def isatty(self) -> bool:
        return False
