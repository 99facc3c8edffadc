"""The time of a meta-gradient in every way: the cases, one after another, in processes of `speed_parts`."""

import json
import math
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import speed_cases, speed_ways
from benchmarks.common import Case, ratios, rows_of_a_process, spread, write_report
from benchmarks.speed_parts import Rows, part, say
from benchmarks.speed_table import lines, picture
from benchmarks.speed_ways import PLAIN, WAYS

LIMIT = 600.0
"""Seconds that a way may take to be ready, compiled and checked."""


def measure(options: Namespace) -> dict[str, Any]:
    """All chosen cases, added to those that the JSON file has already and written into it one by one."""
    try:
        names, ways = speed_cases.chosen(options.cases), _ways(options)
    except ValueError as mistake:
        raise SystemExit(f"bench: {mistake}") from mistake
    found, failed = _kept(options.json), []
    for name in names:
        say(f"{name}:")
        try:
            found[name] = _case(name, ways, options)
        except SystemExit as failure:  # one that runs out of memory must not cost the others
            say(str(failure))
            failed.append(name)
            continue
        found = {case: found[case] for case in speed_cases.CASES if case in found}
        if options.json:
            write_report(options.json, "speed", _report(found))
    if failed:
        raise SystemExit(f"bench: not measured: {', '.join(failed)}")
    return _report(found)


def _kept(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    cases: dict[str, Any] = json.loads(path.read_text())["measured"]["cases"]
    return cases


def _report(found: dict[str, Any]) -> dict[str, Any]:
    return {"cases": found, "slopes": slopes(found)}


def _ways(options: Namespace) -> list[str]:
    """The plain loop, which all are checked against, and those that are chosen."""
    ways = speed_ways.names(with_peers=bool(options.peers), device=options.device)
    for way in options.ways or ():
        if way not in ways:
            raise ValueError(f"{way!r} is no way here; there are {', '.join(ways)}")
    return [way for way in ways if options.ways is None or way in (PLAIN, *options.ways)]


def _case(name: str, ways: Sequence[str], options: Namespace) -> dict[str, Any]:
    interpreter, device = str(options.peers or sys.executable), options.device
    found = _times_of(
        name, ways, lambda left: _parts(interpreter, ["times", name, device, str(options.repeats), *left])
    )
    compare(found)
    for way, measured in found["ways"].items() if not options.times_only else ():
        if "seconds" in measured:
            measured.update(_in_new_processes(interpreter, name, device, way))
    return found


def _times_of(name: str, ways: Sequence[str], process: Callable[[Sequence[str]], Rows]) -> dict[str, Any]:
    """What a process finds out about the ways; one in which it is stuck is left out of another one."""
    stuck: dict[str, str] = {}
    while True:
        found: dict[str, Any] = {"ways": {way: {} for way in ways}}
        left = [way for way in ways if way not in stuck]
        try:
            for row in process(left):
                found["ways"][row.pop("way")].update(row) if "way" in row else found.update(row)
        except TimeoutError as limit:
            waiting = next((way for way in left if not found["ways"][way]), None)
            if waiting in (None, PLAIN):
                raise SystemExit(f"bench: {name} is stuck: {limit}") from limit
            stuck[waiting] = f"not ready: {limit}"
            say(f"  {waiting}: {stuck[waiting]}")
            continue
        found.pop("alive", None)
        for way, reason in stuck.items():
            found["ways"][way] = {"reason": reason}
        return found


def _parts(interpreter: str, arguments: Sequence[str], environment: dict[str, str] | None = None) -> Rows:
    # Ways of one process must leave room for one another on a GPU.
    environment = {"OMP_NUM_THREADS": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **(environment or {})}
    called = " ".join(arguments)
    return rows_of_a_process(interpreter, "speed", arguments, called=called, environment=environment, limit=LIMIT)


def compare(found: dict[str, Any]) -> None:
    """Writes what follows from the seconds: ratios of the same repetitions, and shares of what the machine can do."""
    each = {way: row["seconds_each"] for way, row in found["ways"].items() if "seconds_each" in row}
    own = [way for way in each if speed_ways.whose(way) == "ours"]
    fastest = min(own, key=lambda way: statistics.median(each[way]), default=None)
    found["fastest_of_ours"] = fastest
    for way, times in each.items():
        row = found["ways"][way]
        row["seconds"] = spread(times)
        row["times_plain"] = spread(ratios(times, each[PLAIN]))
        if fastest is not None:
            row["times_ours"] = spread(ratios(times, each[fastest]))
        row["gflops_per_second"] = found["flops"] / row["seconds"]["median"] / 1e9
        row["share_of_gemm"] = row["gflops_per_second"] / found["roofs"]["gemm_gflops_per_second"]


def _in_new_processes(interpreter: str, name: str, device: str, way: str) -> dict[str, Any]:
    """The first step with empty caches and then with full ones, and the peak memory of a later one."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton",
            "METALEARN_CACHE": f"{folder}/metalearn", "JAX_COMPILATION_CACHE_DIR": f"{folder}/jax",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            # torch keeps its precompiled headers beside other temporary files, whatever its cache's folder is.
            "TORCHINDUCTOR_COMPILE_THREADS": "1", "TMPDIR": folder,
        }  # fmt: skip
        states = ("cold", "warm") if WAYS[way].compiles else ("cold",)
        first, peak = {}, math.nan
        for state in states:
            try:
                (row,) = _parts(interpreter, ["first", name, device, way], caches)
            except TimeoutError as limit:
                return {"first_step": first, "peak_megabytes": peak, "not_ready": f"{state}: {limit}"}
            first[state], peak = {key: row[key] for key in ("wall_seconds", "cpu_seconds")}, row["peak_megabytes"]
            say(f"  {way}: first step, {state}, after {row['wall_seconds']:.2f} s; peak {peak:.0f} MB")
    return {"first_step": first, "peak_megabytes": peak}


def slopes(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By series and way: the exponent with which the time grows with the size (least squares of the logarithms)."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, measured in found.items():
        size = speed_cases.CASES[name].size
        for way, row in measured["ways"].items() if size is not None else ():
            if "seconds" in row:
                points = series.setdefault(speed_cases.group_of(name), {}).setdefault(way, [])
                points.append((size, row["seconds"]["median"]))
    return {
        group: {way: slope(points) for way, points in ways.items() if len(points) > 1} for group, ways in series.items()
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through the points' logarithms."""
    sizes, values = ([math.log(part) for part in parts] for parts in zip(*points, strict=True))
    return statistics.linear_regression(sizes, values).slope


CASE = Case(measure, lines, picture, part)
