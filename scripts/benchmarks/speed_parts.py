"""What a process of the speed benchmark does: it checks every way against the plain loop before it times it."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from benchmarks import machine, speed_cases, speed_ways
from benchmarks.common import clock_of, interleaved_seconds, peak_megabytes
from benchmarks.loops import Gradient, error, plain
from benchmarks.speed_cases import Problem
from benchmarks.speed_ways import WAYS, Way
from metalearn.training.equality import KINKS, most_moved, nudged

MOST_ERROR = {"float32": 1e-5, "float64": 1e-9}
NUM_CHECKED_IN_DOUBLE = 2
PATIENCE = 20.0
"""Seconds after which a way is not repeated any more."""

Rows = Iterator[dict[str, Any]]


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def part(arguments: list[str]) -> None:
    """Prints rows of JSON; what a process of `speed` does."""
    # Equal numerics on a GPU: torch's convolutions would be in TF32, others' products are not (in_jax does the same).
    torch.backends.cudnn.allow_tf32 = False
    if arguments == ["check"]:
        return require_peers()
    what, name, device, *rest = arguments
    problem = speed_cases.CASES[name]
    rows = times(problem, device, int(rest[0]), rest[1:]) if what == "times" else first_step(problem, device, *rest)
    for row in rows:
        print(json.dumps(row), flush=True)
    return None


def require_peers() -> None:
    """Ends the process where a way that is not ours can not run, or is wrong, on a small sinusoid problem."""
    small = replace(speed_cases.CASES["sinusoid-1"], tasks=2, steps=2)
    found = {name: checked(WAYS[name], small, "cpu")[0] for name in WAYS if speed_ways.whose(name) != "ours"}
    wrong = {
        name: row.get("reason") or row.get("wrong") for name, row in found.items() if len(row) > 1 or "reason" in row
    }
    if wrong:
        raise SystemExit(f"bench: of the peers can not be used: {wrong}")


def times(problem: Problem, device: str, repeats: int, ways: Sequence[str]) -> Rows:
    """What the case is; each way's errors, or why it has none; then the seconds of those that are right."""
    yield about(problem, device)
    ready: dict[str, Gradient] = {}
    for way in ways:
        row, gradient = checked(WAYS[way], problem, device)
        say(f"  {way}: {row.get('reason') or row.get('wrong') or row['relative_error']}")
        yield {"way": way, **row}
        if gradient is not None:
            ready[way] = gradient
    works: dict[str, Callable[[], object]] = {**machine.probes(device), **ready}
    say(f"  timing {len(ready)} ways")
    found = interleaved_seconds(
        works, repeats, clock=clock_of(device), patience=PATIENCE, warm=True,
        after=lambda: print(json.dumps({"alive": True}), flush=True),
    )  # fmt: skip
    yield {
        "roofs": machine.roofs(*(statistics.median(found.pop(probe)) for probe in (machine.GEMM, machine.COPY)), device)
    }
    for way, seconds in found.items():
        yield {"way": way, "seconds_each": seconds}


def about(problem: Problem, device: str) -> dict[str, Any]:
    """The size of the work, its operations as the plain loop does them, and the machine."""
    work = problem.work(torch.float32, device, tasks=1)
    return {
        "tasks": problem.tasks, "steps": problem.steps, "rate": problem.rate, "loss": work.loss, "device": device,
        "parameters": sum(param.numel() for param in work.module.parameters()),
        "support": list(work.support[0].shape[1:]), "query": list(work.query[0].shape[1:]),
        "flops": problem.tasks * machine.flops(plain(work)), "machine": machine.described(device),
    }  # fmt: skip


def checked(way: Way, problem: Problem, device: str) -> tuple[dict[str, Any], Gradient | None]:
    """How far a way is from the plain loop, in float64 on some tasks and in float32 on all; and, if right, itself.

    In float32 it may be further off where kinks make the plain loop's own gradient jump that far by rounding alone
    (`metalearn.training.equality`); how far that was is told.
    """
    errors: dict[str, float] = {}
    row: dict[str, Any]
    gradient: Gradient | None = None
    for name, tasks in (("float64", min(NUM_CHECKED_IN_DOUBLE, problem.tasks)), ("float32", problem.tasks)):
        dtype = getattr(torch, name)
        reason = way.left_out(problem.work(dtype, device, tasks=tasks))
        if reason is not None:
            return {"reason": reason}, None
        try:
            gradient = way.gradient(problem.work(dtype, device, tasks=tasks))
            found = gradient()
        except Exception as failure:  # of another library's: told in the table
            told = str(failure).strip().splitlines() or [""]
            return {"reason": f"{type(failure).__name__}: {told[0]}"}, None
        errors[name] = error(found, plain(problem.work(dtype, device, tasks=tasks))())
        if errors[name] <= MOST_ERROR[name]:
            continue
        row = {"relative_error": errors}
        if name == "float32":
            row["plain_by_rounding"] = most_moved(partial(_moved, problem, device), errors[name])
        if name == "float64" or not errors[name] <= KINKS * row["plain_by_rounding"]:
            return {**row, "wrong": f"another gradient: {name}, {errors[name]:.1e}"}, None
        return row, gradient
    return {"relative_error": errors}, gradient


@cache
def _moved(problem: Problem, device: str, number: int) -> float:
    """How far the plain loop's gradient moves when parameters move by rounding."""
    work = problem.work(torch.float32, device)
    before = [grad.clone() for grad in plain(work)()]
    params = dict(work.module.named_parameters())
    with torch.no_grad():
        for name, value in nudged(params, seed=number).items():
            params[name].copy_(value)
    return error(plain(work)(), before)


def first_step(problem: Problem, device: str, name: str) -> Rows:
    """The seconds of the first call, of all processes that it starts, and the peak memory of the second."""
    way, work = WAYS[name], problem.work(torch.float32, device)
    way.gradient(work)  # what a library loads is not its first step
    wall, spent = time.perf_counter(), _cpu_seconds()
    gradient = way.gradient(work)
    gradient()
    if device == "cuda":
        torch.cuda.synchronize()
    row = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": _cpu_seconds() - spent}
    yield {**row, "peak_megabytes": _peak(gradient, device, way)}


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def _peak(gradient: Gradient, device: str, way: Way) -> float:
    if device == "cpu":
        return peak_megabytes(gradient)
    if way.of == "jax":  # its allocator tells the peak since the process began
        import jax

        gradient()
        return float(jax.devices()[0].memory_stats()["peak_bytes_in_use"]) / 2**20
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradient()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
