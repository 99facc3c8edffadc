"""Peak memory and time of a meta-gradient by the number of inner steps: every strategy, and other libraries (Linux)."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Case, peak_megabytes, rows_of_a_process
from benchmarks.loops import PEERS, RATE, Gradient, error, one_image_task, plain
from metalearn import functionalize, losses, optim, random
from metalearn.algorithms import MAML
from metalearn.metagrad import (
    EvolutionStrategies,
    FirstOrder,
    ForwardMode,
    Implicit,
    Reptile,
    Stepwise,
    Strategy,
    Truncated,
    Unrolled,
    plan,
)
from metalearn.metagrad.memory import free_bytes
from metalearn.problem import Episode, Problem
from metalearn.types import Episodes, Tensors

STEPS = (1, 5, 20, 100, 500)
CHECKED = (1, 5)
MOST_ERROR = 1e-5
NEEDED = (2e9, 15e6)  # bytes that must be free: some, and some for each inner step

EXACT: dict[str, Strategy] = {
    "Unrolled": Unrolled(),
    "Stepwise(every=1)": Stepwise(),
    "Stepwise(every=2)": Stepwise(every=2),
    "Stepwise(every='sqrt')": Stepwise(every="sqrt"),
    "Stepwise(mode='forward')": Stepwise(mode="forward"),
}
INEXACT: dict[str, Strategy] = {"FirstOrder": FirstOrder(), "Truncated(5)": Truncated(5), "Reptile": Reptile()}
IMPLICIT = "Implicit, with a proximal term"
OF_A_RATE: dict[str, Strategy] = {
    "ForwardMode, a learned rate alone": ForwardMode(),
    "EvolutionStrategies(num_pairs=1), a learned rate alone": EvolutionStrategies(num_pairs=1, chunk_size=1),
}
OURS = ("plain loop", *EXACT, *INEXACT, IMPLICIT, *OF_A_RATE)


def measure(options: Namespace) -> dict[str, Any]:
    """Each way at each number of steps: MB over the process's base, seconds, and what `plan` predicts."""
    found: dict[str, Any] = {}
    interpreters = {sys.executable: OURS, **({str(options.peers): tuple(PEERS)} if options.peers else {})}
    for interpreter, ways in interpreters.items():  # all of them are checked before any is measured
        for row in _parts(interpreter, "check", ways):
            found[row["way"]] = {"relative_error": row["error"]}
    for interpreter, ways in interpreters.items():
        for row in _parts(interpreter, "measure", ways):
            found[row["way"]][str(row["steps"])] = {key: row[key] for key in ("peak_megabytes", "seconds")}
            print(f"{row['way']}, {row['steps']} steps: {row['peak_megabytes']:.1f} MB", file=sys.stderr, flush=True)
    for row in _parts(sys.executable, "predict", ("plan",)):
        found[row["way"]][str(row["steps"])]["predicted_megabytes"] = row["predicted_megabytes"]
    for rows in found.values():
        for steps in (each for each in map(str, STEPS) if each in rows):
            rows[steps]["times_unrolled"] = rows[steps]["seconds"] / found["Unrolled"][steps]["seconds"]
    return found


def _parts(interpreter: str, what: str, ways: Sequence[str]) -> Iterator[dict[str, Any]]:
    return rows_of_a_process(interpreter, "memory", [what, *ways], called=what)


def _part(arguments: list[str]) -> None:
    what, *ways = arguments
    for way in ways:
        for row in _in_a_new_process(_check, way) if what == "check" else ():
            print(json.dumps(row), flush=True)
        for steps in STEPS if what == "measure" else ():
            for row in _in_a_new_process(_measure, way, steps):
                print(json.dumps(row), flush=True)
    if what == "predict":
        for row in _predictions():
            print(json.dumps(row), flush=True)


def _in_a_new_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> list[dict[str, Any]]:
    """What a forked process finds: it starts from this one, which has imported all and computed nothing."""
    context = get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put(function(*arguments)))
    process.start()
    process.join()  # a row is short enough to lie in the pipe meanwhile
    if process.exitcode:
        raise SystemExit(f"bench: {function.__name__}{arguments} failed")
    return [queue.get()]


def _check(way: str) -> dict[str, Any]:
    errors = {}
    for steps in CHECKED:
        found = gradient_of(way, steps)()
        expected = _by_the_rate(steps) if way in OF_A_RATE else plain(one_image_task(steps))()
        errors[str(steps)] = error(found, expected)
    if way not in (*INEXACT, IMPLICIT) and "Evolution" not in way and max(errors.values()) > MOST_ERROR:
        raise SystemExit(f"bench: {way} computes another gradient than the plain loop (relative errors {errors})")
    return {"way": way, "error": errors}


def _measure(way: str, steps: int) -> dict[str, Any]:
    needed, free = NEEDED[0] + NEEDED[1] * steps, free_bytes("cpu")
    if free is None or free < needed:
        raise SystemExit(f"bench: {steps} steps may need {needed / 1e9:.0f} GB, and {free} bytes are free")
    gradient_of(way, 2)()  # what torch loads at its first calls is not the strategy's
    gradient, times = gradient_of(way, steps), []

    def timed() -> None:
        start = time.process_time()
        gradient()
        times.append(time.process_time() - start)

    peak = peak_megabytes(timed)
    for _ in range({1: 10, 5: 4, 20: 2}.get(steps, 0)):
        timed()
    return {"way": way, "steps": steps, "peak_megabytes": peak, "seconds": min(times)}


def gradient_of(way: str, steps: int) -> Gradient:
    """The meta-gradient of the work in one of the ways, in the order of the model's parameters."""
    if way == "plain loop":
        return plain(one_image_task(steps))
    if way in PEERS:
        return PEERS[way](one_image_task(steps))
    problem, meta, episode = learned_rate(steps) if way in OF_A_RATE else learned_start(steps, proximal=way == IMPLICIT)
    strategy = {**EXACT, **INEXACT, IMPLICIT: Implicit(tolerance=1e9), **OF_A_RATE}[way]
    gradient = strategy.value_and_grad(problem)
    return lambda: list(gradient(meta, episode).grads.values())


def learned_start(steps: int, *, proximal: bool = False) -> tuple[Problem, Tensors, Episode]:
    work = one_image_task(steps)
    (support, query), model = next(work.tasks()), functionalize(work.module)
    maml = MAML(loss=losses.cross_entropy, inner_lr=RATE, num_inner_steps=steps, proximal=1.0 if proximal else 0.0)
    return maml.problem(model), maml.init(model), Episodes(support, query, key=random.key(0))


def learned_rate(steps: int) -> tuple[Problem, Tensors, Episode]:
    """The same with the start fixed, and the inner rate as the only meta-parameter."""
    problem, start, episode = learned_start(steps)
    of_a_rate = replace(
        problem,
        init=lambda meta, episode: problem.init(start, episode),
        optimizer=lambda meta: optim.sgd(meta["lr"]),
    )
    return of_a_rate, {"lr": torch.tensor(RATE)}, episode


def _by_the_rate(steps: int) -> list[torch.Tensor]:
    problem, meta, episode = learned_rate(steps)
    return list(Unrolled().value_and_grad(problem)(meta, episode).grads.values())


def _predictions() -> Iterator[dict[str, Any]]:
    for steps in STEPS:
        for way, row in zip(EXACT, plan(*learned_start(steps), strategies=list(EXACT.values())).rows, strict=True):
            assert row.peak_bytes is not None
            yield {"way": way, "steps": steps, "predicted_megabytes": row.peak_bytes / 2**20}


def _lines(way: str, measured: dict[str, Any]) -> str:
    cells = [
        f"{steps:>4}: {measured[str(steps)]['peak_megabytes']:7.1f} MB {measured[str(steps)]['seconds']:7.2f} s"
        f" ({measured[str(steps)]['times_unrolled']:.2f} x)"
        for steps in STEPS
    ]
    return f"{way:<54} {'  '.join(cells)}"


def _picture(found: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    for index, (way, rows) in enumerate(found.items()):
        other = way in PEERS or way == "plain loop"
        style = {"marker": "x" if other else "o", "linestyle": ":" if other else "-", "color": f"C{index % 10}"}
        style |= {"label": way, "markersize": 4 if index < 10 else 8}
        axes[0].loglog(STEPS, [max(rows[str(steps)]["peak_megabytes"], 1) for steps in STEPS], **style)
        axes[1].loglog(STEPS, [rows[str(steps)]["seconds"] for steps in STEPS], **style)
    axes[0].set(title="peak memory over the process's base", xlabel="inner steps", ylabel="MB")
    axes[1].set(title="time of one meta-gradient", xlabel="inner steps", ylabel="seconds of process time")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


CASE = Case(measure, _lines, _picture, _part)
