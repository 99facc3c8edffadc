"""What the benchmarks share: how a case is written, time and memory of a process."""

import ctypes
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metalearn.training.protocol import device_name

_SECONDS = 0.02
"""At least so long is a measurement of `interleaved`: work is repeated until it takes it."""

Clock = Callable[[Callable[[], object]], float]
"""How many seconds some work takes."""


def between_marks(page: str, mark: str, text: str) -> str:
    """A page in Markdown with `text` between its comments "MARK" and "end of MARK".

    Example:
        >>> between_marks("<!-- a --><!-- end of a --> b", "a", "1")
        '<!-- a -->\\n\\n1\\n\\n<!-- end of a --> b'
    """
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the page has no {begin} and {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def process_seconds(work: Callable[[], object]) -> float:
    """Of all of the process's threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def event_seconds(work: Callable[[], object]) -> float:
    """On the GPU, from before the first of the work's kernels until after the last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def clock_of(device: str) -> Clock:
    return process_seconds if device == "cpu" else event_seconds


@dataclass(frozen=True)
class Case:
    """A benchmark.

    Attributes:
        measure: the command line's options -> what was measured, by name.
        lines: a name and what was measured -> text to print.
        picture: draws all of it into a file.
        part: what a new process that `measure` starts does with its arguments.
    """

    measure: Callable[[Namespace], dict[str, Any]]
    lines: Callable[[str, dict[str, Any]], str]
    picture: Callable[[dict[str, Any], Path], None] | None = None
    part: Callable[[list[str]], None] | None = None


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """The process time of each repetition, after one that is not counted."""
    work()
    return [process_seconds(work) for _ in range(repeats)]


def interleaved(
    works: dict[str, Callable[[], object]],
    repeats: int,
    before: dict[str, Callable[[], object]] = {},  # noqa: B006 (nothing writes into it)
) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of process time of each, and in multiples of the first one's in the same repetition.

    What is to be done `before` each call of one of them is not counted.
    """
    times = interleaved_seconds(works, repeats, before=before)
    first = next(iter(times.values()))
    return {way: {"seconds": spread(each), "times_ours": spread(ratios(each, first))} for way, each in times.items()}


def interleaved_seconds(
    works: dict[str, Callable[[], object]],
    repeats: int,
    *,
    before: dict[str, Callable[[], object]] = {},  # noqa: B006
    clock: Clock = process_seconds,
    patience: float = math.inf,
    warm: bool = False,
    after: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """The seconds of each repetition, one of each of the works after another.

    What has taken `patience` seconds in all is not repeated any more, so the later repetitions may lack it. What has
    been called before (`warm`) needs no first call that is not counted. `after` each measurement is for signs of life.
    """
    for work in () if warm else works.values():
        work()
    counts = {way: _count(work, clock) for way, work in works.items()}
    times: dict[str, list[float]] = {way: [] for way in works}
    for _ in range(repeats):
        for way, work in works.items():
            if sum(times[way]) * counts[way] > patience:
                continue
            spent = 0.0
            for _ in range(counts[way]):
                before.get(way, _nothing)()
                spent += clock(work)
            times[way].append(spent / counts[way])
            (after or _nothing)()
    return times


def ratios(times: Sequence[float], others: Sequence[float]) -> list[float]:
    """Of the repetitions that both have."""
    return [a / b for a, b in zip(times, others, strict=False)]


def _nothing() -> None:
    pass


def _count(work: Callable[[], object], clock: Clock) -> int:
    return max(1, round(_SECONDS / max(clock(work), 1e-6)))


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def peak_megabytes(work: Callable[[], object]) -> float:
    """The largest resident memory while the work is done, over that just before it (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that is kept would hide what the work takes
    Path("/proc/self/clear_refs").write_text("5")  # resets the mark of the highest resident memory
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])  # kB


def rows_of_a_process(
    interpreter: str,
    case: str,
    arguments: Sequence[str],
    *,
    called: str,
    environment: Mapping[str, str] = {},
    limit: float = threading.TIMEOUT_MAX,
) -> Iterator[dict[str, Any]]:
    """What a case's `part` prints, a row of JSON a line, in a process of its own; `called` so if it fails.

    Raises:
        TimeoutError: no row for `limit` seconds; the process is ended.
    """
    bench = Path(__file__).resolve().parents[1] / "bench.py"
    command = [interpreter, str(bench), case, "--part", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        assert process.stdout is not None
        watch = _Watch(process, limit)
        for line in process.stdout:
            watch.restart()
            if line.startswith("{"):  # a library may print something when it is imported
                yield json.loads(line)
        watch.stop()
    if watch.ended:
        raise TimeoutError(f"nothing for {limit:.0f} s")
    if process.returncode:
        raise SystemExit(f"bench: {called} failed in {interpreter}")


class _Watch:
    """Ends a process that is silent for too long: a compiler can not be interrupted from inside."""

    def __init__(self, process: subprocess.Popen[str], limit: float) -> None:
        self.process, self.limit, self.ended = process, limit, False
        self.restart()

    def restart(self) -> None:
        self.stop()
        self.timer = threading.Timer(self.limit, self._end)
        self.timer.daemon = True
        self.timer.start()

    def stop(self) -> None:
        if hasattr(self, "timer"):
            self.timer.cancel()

    def _end(self) -> None:
        self.ended = True
        self.process.kill()


def write_report(path: Path, case: str, found: dict[str, Any]) -> None:
    """What a case has measured, as JSON, with the machine that it was measured on."""
    machine = {"device": device_name(torch.device("cpu")), "threads": 1, "python": platform.python_version()}
    report = {"case": case, "machine": machine, "torch": str(torch.__version__), "measured": found}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
