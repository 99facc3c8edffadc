"""Many copies of a model in one call, against a Python loop over them: time and memory (Linux)."""

import copy
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import Case, peak_megabytes, seconds, spread
from metalearn import FunctionalModel, ensembles, functionalize, models, random
from metalearn.types import Tensors

COPIES = (10, 100, 1000)


def measure(options: Namespace, copies: Sequence[int] = COPIES) -> dict[str, Any]:
    """Seconds and peak memory of evaluating 10, 100, 1000 copies in each way, and the ratio to the list of modules."""
    found: dict[str, Any] = {}
    for name in NETS:
        for num_copies in copies:
            for way in WAYS:
                times = seconds(evaluation(name, num_copies, way), options.repeats)
                measured = {"seconds": spread(times), "peak_megabytes": _peak_in_a_new_process(name, num_copies, way)}
                found.setdefault(name, {}).setdefault(str(num_copies), {})[way] = measured
            rows = found[name][str(num_copies)]
            for row in rows.values():
                row["speedup"] = rows["list of modules"]["seconds"]["median"] / row["seconds"]["median"]
    return found


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp-64-64, 32 examples": (lambda: models.MLP(input_shape=(8,), num_outputs=1, hidden=[64, 64]), (32, 8)),
    "conv4-8, 5 images of 28x28": (
        lambda: models.Conv4(input_shape=(1, 28, 28), num_outputs=5, filters=8), (5, 1, 28, 28),
    ),
}  # fmt: skip


def _list_of_modules(model: FunctionalModel, copies: Tensors, x: Tensor) -> Callable[[], object]:
    # The copies as modules that somebody has made before: the loop with the least to do.
    modules = [copy.deepcopy(model.module) for _ in range(len(next(iter(copies.values()))))]
    for module, params in zip(modules, ensembles.unstack(copies), strict=True):
        module.load_state_dict(params, strict=False)
    return lambda: torch.stack([module(x) for module in modules])


def _loop_over_state(model: FunctionalModel, copies: Tensors, x: Tensor) -> Callable[[], object]:
    each = ensembles.unstack(copies)
    return lambda: torch.stack([model(params, model.buffers, x)[0] for params in each])


def _one_call(chunk_size: int | None) -> Callable[[FunctionalModel, Tensors, Tensor], Callable[[], object]]:
    def prepared(model: FunctionalModel, copies: Tensors, x: Tensor) -> Callable[[], object]:
        return lambda: ensembles.evaluate(model, copies, model.buffers, x, chunk_size=chunk_size)

    return prepared


WAYS: dict[str, Callable[[FunctionalModel, Tensors, Tensor], Callable[[], object]]] = {
    "list of modules": _list_of_modules,
    "loop over state": _loop_over_state,
    "one call": _one_call(None),
    "chunks of 50": _one_call(50),
}


def evaluation(name: str, num_copies: int, way: str) -> Callable[[], object]:
    make, shape = NETS[name]
    torch.manual_seed(0)
    model = functionalize(make())
    copies = ensembles.perturb(model.params, random.key(0), num_copies, scale=0.05)
    work = WAYS[way](model, copies, torch.randn(shape))

    def run() -> object:
        with torch.no_grad():
            return work()

    return run


def _peak_in_a_new_process(name: str, num_copies: int, way: str) -> float:
    bench = Path(__file__).resolve().parents[1] / "bench.py"
    command = [sys.executable, str(bench), "ensemble", "--part", name, str(num_copies), way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _part(arguments: list[str]) -> None:
    name, num_copies, way = arguments
    evaluation(name, 2, way)()  # what torch loads at its first call is not the ensemble's
    print(peak_megabytes(evaluation(name, int(num_copies), way)))


def _picture(found: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(found), 2, figsize=(9, 3.2 * len(found)), squeeze=False, layout="constrained")
    for row, (name, by_copies) in zip(axes, found.items(), strict=True):
        copies = [int(number) for number in by_copies]
        for way in WAYS:
            measured = [by_copies[str(number)][way] for number in copies]
            row[0].loglog(copies, [1e3 * each["seconds"]["median"] for each in measured], marker="o", label=way)
            row[1].loglog(copies, [max(each["peak_megabytes"], 0.1) for each in measured], marker="o", label=way)
        row[0].set(title=f"{name}: time", xlabel="copies", ylabel="ms of process time")
        row[1].set(title="peak memory over what was there", xlabel="copies", ylabel="MB (0.1 or less at the bottom)")
    axes[0][0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _lines(name: str, measured: dict[str, Any]) -> str:
    return "\n".join(
        f"{name:<28} {number:>5} copies  {way:<16} {1e3 * row['seconds']['median']:9.1f} ms"
        f"   {row['speedup']:5.2f} x   peak {row['peak_megabytes']:7.1f} MB"
        for number, ways in measured.items()
        for way, row in ways.items()
    )


CASE = Case(measure, _lines, _picture, _part)
