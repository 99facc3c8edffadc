"""What the benchmarks share: how a case is written, time and memory of a process."""

import ctypes
import gc
import json
import statistics
import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SECONDS = 0.02
"""At least so long is a measurement of `interleaved`: work is repeated until it takes it."""


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
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return found


def interleaved(
    works: dict[str, Callable[[], object]],
    repeats: int,
    before: dict[str, Callable[[], object]] = {},  # noqa: B006 (nothing writes into it)
) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of process time of each, and in multiples of the first one's in the same repetition.

    What is to be done `before` each call of one of them is not counted.
    """
    counts = {way: _count(work) for way, work in works.items()}
    times: dict[str, list[float]] = {way: [] for way in works}
    for _ in range(repeats):
        for way, work in works.items():
            spent = 0.0
            for _ in range(counts[way]):
                before.get(way, _nothing)()
                start = time.process_time()
                work()
                spent += time.process_time() - start
            times[way].append(spent / counts[way])
    first = next(iter(times.values()))
    return {
        way: {"seconds": spread(each), "times_ours": spread([a / b for a, b in zip(each, first, strict=True)])}
        for way, each in times.items()
    }


def _nothing() -> None:
    pass


def _count(work: Callable[[], object]) -> int:
    work()
    start = time.process_time()
    work()
    return max(1, round(_SECONDS / max(time.process_time() - start, 1e-6)))


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
    interpreter: str, case: str, arguments: Sequence[str], *, called: str
) -> Iterator[dict[str, Any]]:
    """What a case's `part` prints, a row of JSON a line, in a process of its own; `called` so if it fails."""
    bench = Path(__file__).resolve().parents[1] / "bench.py"
    command = [interpreter, str(bench), case, "--part", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):  # a library may print something when it is imported
                yield json.loads(line)
    if process.returncode:
        raise SystemExit(f"bench: {called} failed in {interpreter}")
