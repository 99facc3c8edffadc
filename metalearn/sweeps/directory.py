"""The folder of a sweep: one process at a time, which points lie in it, and the file that asks them to stop."""

import hashlib
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from metalearn.errors import UsageError
from metalearn.sweeps.points import POINT, Point, read_point
from metalearn.training.run_directory import LOCK, check_writable

STOP = ".stop"


def digest_of(data: Any) -> str:
    """A name for plain data, the same in every process.

    Example:
        >>> digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
        True
    """
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def stopping(directory: Path) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the points in other processes to stop, the second raises `KeyboardInterrupt`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if asked_to_stop(directory):
            raise KeyboardInterrupt
        ask_to_stop(directory)
        print("metalearn: stopping; the running points are saved first.", file=sys.stderr, flush=True)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Keeps a sweep's folder for this process while the block lasts.

    Raises:
        UsageError: another process has it, or it can not be written.
    """
    try:
        check_writable(directory)
    except UsageError as error:
        raise UsageError(str(error).replace("hydra.run.dir", "hydra.sweep.dir")) from None
    lock = FileLock(directory / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"{directory} is in use: the same sweep is running. Wait for its end, or choose another hydra.sweep.dir."
        ) from None
    try:
        (directory / STOP).unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):
            (directory / STOP).unlink(missing_ok=True)
            # Before the release: whoever opened the file in between holds the lock of no name, and is told so.
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def ask_to_stop(directory: Path) -> None:
    """Asks the running points to save and stop, and those that wait not to start."""
    with suppress(OSError):
        (directory / STOP).touch()


def asked_to_stop(directory: Path) -> bool:
    """Whether the sweep is to stop."""
    return (directory / STOP).exists()


def known_points(directory: Path) -> dict[str, Point]:
    """The points that were ever begun in a sweep's folder, by the digests of their configurations."""
    found = sorted(directory.rglob(POINT)) if directory.exists() else []
    points = [point for path in found if (point := read_point(path.parent)) is not None]
    return {point.digest: point for point in points}
