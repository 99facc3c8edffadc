"""Compiling in a process of its own, into torch's cache on disk, while training goes on."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Protocol

import torch


@dataclass(frozen=True)
class Ready:
    """What came of compiling.

    Attributes:
        seconds: how long it took, starting the process included.
        error: why there is no compiled code, in a line; empty where there is.
    """

    seconds: float
    error: str = ""


class Ahead(Protocol):
    """Compiling that goes on beside the run."""

    def poll(self) -> Ready | None:
        """What came of it; None while it goes on."""

    def close(self) -> None:
        """Ends it; nothing of it is left running."""


def shared_threads() -> tuple[int, int]:
    """How many threads of torch the run takes while it is compiled beside it, and how many compilers run at once.

    Threads of one operation wait for one another: where there are more of them than cores, each step takes many times
    as long. (Threads that sleep while they wait would do as well here, but make steps slower at all other times.)
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    compilers = max(1, cores // 2)
    return max(1, min(torch.get_num_threads(), cores - compilers)), compilers


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Within it torch takes so many threads; None leaves it as it is."""
    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class CompilingProcess:
    """A niced process that fills the cache; in a session of its own, so that a Ctrl-C is the run's alone."""

    def __init__(self, command: Sequence[str]) -> None:
        """Starts `command`, which is given the number of threads that code is to be compiled for.

        It says at the end of its output, as a line of JSON, what came of it, and ends itself when its standard input
        is closed: so it does not outlive a run that is killed.
        """
        self._began = time.monotonic()
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [*command, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"TORCHINDUCTOR_COMPILE_THREADS": str(shared_threads()[1]), **os.environ},
        )

    def poll(self) -> Ready | None:
        """See `Ahead.poll`."""
        code = self._process.poll()
        if code is None:
            return None
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines() or [""]
        return Ready(time.monotonic() - self._began, _error(lines[-1], code))

    def close(self) -> None:
        """See `Ahead.close`."""
        if self._process.poll() is None:
            if sys.platform == "win32":
                self._process.kill()
            else:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)  # with the compilers that it started
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._output.close()


def _error(last_line: str, code: int) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(last_line)["error"])
    return f"the process that compiled ended with code {code}: {last_line[:200] or 'it said nothing'}"
