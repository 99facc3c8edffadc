"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - not an error: what was asked for was done
    """A run stopped at a signal, after its state was saved.

    Attributes:
        run_directory: where it was saved.
        step: the meta steps done.
        resume_command: what goes on from there, if the caller of `train` named it.
    """

    def __init__(self, run_directory: Path, *, step: int, resume_command: str | None = None) -> None:
        """Makes the text from the facts."""
        self.run_directory = run_directory
        self.step = step
        self.resume_command = resume_command
        how = f" Go on with:\n  {resume_command}" if resume_command else ""
        super().__init__(f"Interrupted after meta step {step}; saved in {run_directory}.{how}")


class StopRequested(Exception):  # noqa: N818 - as above
    """Unwinds a phase that can be repeated (validation, test) to the place that saves."""


class Stopped(Exception):  # noqa: N818 - as above
    """What a caller's `on_validation` raises to end a run early: it is saved, and it has no results.

    Attributes:
        step: the meta steps done.
    """

    def __init__(self, step: int) -> None:
        """Makes the text from the step."""
        self.step = step
        super().__init__(f"Stopped after the validation of meta step {step}.")


@dataclass
class StopFlag:
    """Whether the run was asked to stop, by a signal or by another thread; so it can not be a frozen value."""

    requested: bool = False

    def check(self) -> None:
        """Raises `StopRequested` if a signal came."""
        if self.requested:
            raise StopRequested


@contextmanager
def stop_flag(flag: StopFlag | None = None) -> Iterator[StopFlag]:
    """A flag that the first SIGINT or SIGTERM sets; the second raises `KeyboardInterrupt` at once.

    `flag` is one that the caller may set too, which is no signal. The previous handlers are back when the block is
    left. Outside the main thread Python allows no handlers: the flag is then the caller's alone.
    """
    flag = flag or StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    signalled = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        if signalled:
            raise KeyboardInterrupt
        signalled = flag.requested = True

    previous: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number in _SIGNALS:
            signal.signal(number, handle)
        yield flag
    finally:
        for number, handler in previous.items():
            # None: a handler that was not installed from Python, which Python can not put back either.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
