"""Runs the cells of the table, each at the budget of a CPU.

    python experiments/table/run.py calibrate             # seconds a meta step, and how many fit the budget: steps.json
    python experiments/table/run.py train --runs FOLDER   # what is missing, one after another; again: goes on
    python experiments/table/run.py table                 # the tables of README.md, of what there is

A cell is one command, printed as it starts; its results.json is kept here as results/BENCHMARK-ALGORITHM.json with the
command, the processor seconds and the peak memory. `--cells` takes parts of names; two processes with different cells
may work side by side.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import (
    ALGORITHMS,
    BENCHMARKS,
    CELLS,
    HERE,
    STEPS,
    command_of,
    known_steps,
    name_of,
    overrides_of,
    published_of,
)
from costs import BENCHMARK, COSTS

RESULTS, README = HERE / "results", HERE / "README.md"
SHORT = 4
ENOUGH_SECONDS = 8.0
"""A run of `SHORT` meta steps is compared with one that takes so much longer that starting up no longer matters."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("calibrate", "train", "table"))
    parser.add_argument("--cells", nargs="*", default=[""], help="parts of the names of cells")
    parser.add_argument("--runs", type=Path, help="the folder of the runs")
    options = parser.parse_args()
    chosen = [cell for cell in CELLS if any(_is_called(cell, part) for part in options.cells)]
    if not chosen:
        parser.error(f"no cell is called so; there are {', '.join(map(name_of, CELLS))}")
    if options.what == "train" and options.runs is None:
        parser.error("train needs --runs FOLDER")
    if options.what == "table":
        README.write_text(with_tables(README.read_text()))
    for cell in chosen:
        if options.what == "calibrate":
            calibrate(cell)
        elif options.what == "train":
            train(cell, options.runs)
    return 0


def _is_called(cell: tuple[str, str], part: str) -> bool:
    """By its whole name, or a part that is no other cell's whole name."""
    return part == name_of(cell) or (part in name_of(cell) and part not in map(name_of, CELLS))


def calibrate(cell: tuple[str, str]) -> None:
    """Finds out how many meta steps fit into the budget."""
    _seconds(cell, SHORT)  # the first may decode the data
    short, num_steps, more = _seconds(cell, SHORT), SHORT, 0.0
    while more < ENOUGH_SECONDS:
        num_steps *= 4
        more = _seconds(cell, num_steps) - short
    step = more / (num_steps - SHORT)
    fits = 60 * BENCHMARKS[cell[1]].minutes / step
    digits = 10 ** max(len(str(int(fits))) - 2, 0)
    steps = {**known_steps(), name_of(cell): {"seconds_a_step": step, "num_steps": int(fits // digits * digits)}}
    STEPS.write_text(json.dumps(dict(sorted(steps.items())), indent=2) + "\n")
    print(f"{name_of(cell)}: {step:.3f} s a meta step, {steps[name_of(cell)]['num_steps']} steps", flush=True)


def _seconds(cell: tuple[str, str], num_steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            *overrides_of(cell), f"meta.num_steps={num_steps}", "eval.every=0", "eval.val_episodes=0",
            "eval.num_episodes=1", "device=cpu", "logger=none", f"hydra.run.dir={folder}/run",
        ]  # fmt: skip
        return _run(arguments)["cpu_seconds"]


def train(cell: tuple[str, str], runs: Path) -> None:
    """Runs a cell in a folder of its own and of its length, or goes on with it, unless its result is there."""
    kept = RESULTS / f"{name_of(cell)}.json"
    if kept.exists():
        return
    num_steps = int(known_steps()[name_of(cell)]["num_steps"])
    folder, arguments = runs / f"{name_of(cell)}-{num_steps}", command_of(cell, num_steps)
    print(f"{name_of(cell)}: python -m metalearn.train {shlex.join(arguments)}", flush=True)
    resumes = (folder / "checkpoints" / "last" / "state.json").exists()
    spent = _run([f"run={folder}"] if resumes else [*arguments, f"hydra.run.dir={folder}"])
    RESULTS.mkdir(exist_ok=True)
    found = json.loads((folder / "results.json").read_text())
    record = {"command": f"python -m metalearn.train {shlex.join(arguments)}", "resumed": resumes, **spent, **found}
    kept.write_text(json.dumps(record, indent=2) + "\n")


def _run(arguments: list[str]) -> dict[str, float]:
    """A run of the command line on one thread; raises where it fails."""
    began, environment = time.monotonic(), {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "metalearn.train", *arguments]
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"failed: {shlex.join(command)}")
    return {
        "wall_seconds": time.monotonic() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_megabytes": usage.ru_maxrss / 1024,
    }


def with_tables(page: str) -> str:
    """The page with the tables of what there is in the place of those that it has."""
    from benchmarks.common import between_marks  # cells.py has put `scripts` on the path

    return between_marks(between_marks(page, "table", table()), "costs", "\n".join(_costs()))


def table() -> str:
    """Markdown: ours, marked as budgeted, and the published figure."""
    titles = [benchmark.title for benchmark in BENCHMARKS.values()]
    lines = [_row(["", *titles]), _row(["---"] * (1 + len(titles)))]
    for algorithm, about in ALGORITHMS.items():
        lines.append(_row([about.title, *(_cell(algorithm, benchmark) for benchmark in BENCHMARKS)]))
    return "\n".join(lines)


def _cell(algorithm: str, benchmark: str) -> str:
    """`ours b (published)`; what is not there is left out."""
    record, published = _kept((algorithm, benchmark)), published_of(algorithm, benchmark)
    told = [] if published is None else [f"({published.removesuffix(' %')})"]
    if record is None:
        return " ".join(told)
    metric = BENCHMARKS[benchmark].metric
    found = record["test"][metric]
    scale, digits = (100, 1) if metric == "accuracy" else (1, 4)
    ours = f"**{scale * found['mean']:.{digits}f}** ± {scale * found['ci95']:.{digits}f} b"
    return " ".join([ours, *told])


def _costs() -> list[str]:
    """Of a meta-gradient: `costs.py`; and how many meta steps the cell had."""
    found = json.loads(COSTS.read_text()) if COSTS.exists() else {}
    first = found.get("fomaml", {}).get("seconds")
    lines = [_row(["", "inner steps", "s", "times first-order MAML", "MB", "meta steps"]), _row(["---"] * 6)]
    for algorithm, about in ALGORITHMS.items():
        cost, record = found.get(algorithm), _kept((algorithm, BENCHMARK))
        if cost is not None:
            steps = "" if record is None else str(record["protocol"]["inner_steps_train"])
            meta_steps = "" if record is None else str(record["protocol"]["meta_steps"])
            times = [f"{cost['seconds']:.2f}", f"{cost['seconds'] / first:.1f}", f"{cost['peak_megabytes']:.0f}"]
            lines.append(_row([about.title, steps, *times, meta_steps]))
    return lines


def _kept(cell: tuple[str, str]) -> dict[str, Any] | None:
    path = RESULTS / f"{name_of(cell)}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
