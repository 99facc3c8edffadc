"""Benchmarks: ratios measured in one run, on one thread, in process CPU time.

    python scripts/bench.py sampling --json experiments/sampling/sampling.json
    python scripts/bench.py ensemble --json ensembles.json --picture ensembles.png

`sampling`: what drawing the episodes costs, as a share of the meta-step that uses them.
`ensemble`: many copies of a model in one call, against a Python loop over them: time and memory (Linux).
"""

import argparse
import copy
import ctypes
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import FunctionalModel, ensembles, functionalize, losses, models, random
from metalearn.algorithms import MAML
from metalearn.execution import Loop
from metalearn.metagrad import Unrolled
from metalearn.tasks import CifarFS, Omniglot
from metalearn.training.protocol import device_name
from metalearn.types import Tensors

TASKS = 16


def sampling(repeats: int) -> dict[str, Any]:
    """Seconds of drawing 16 episodes and of the Conv-4 meta-step on them (1 inner step, 5 query images a class)."""
    augment = [{"name": "RandomCrop", "size": 32, "padding": 4}, "RandomHorizontalFlip"]
    sizes = {"ways": 5, "shots": 1, "query_shots": 5}
    sources = {
        "omniglot, rotations": (Omniglot(**sizes), 64),
        "cifar_fs": (CifarFS(**sizes), 32),
        "cifar_fs, 2-5 ways, 1-5 shots, imbalanced": (
            CifarFS(ways=[2, 5], shots=[1, 5], imbalanced=True, query_shots=5),
            32,
        ),
        "cifar_fs, augmented (crop and flip)": (CifarFS(**sizes, augment=augment), 32),
    }
    return {name: _share(source, filters, repeats) for name, (source, filters) in sources.items()}


def _share(source: Any, filters: int, repeats: int) -> dict[str, Any]:
    model = functionalize(models.Conv4(input_shape=source.input_shape, num_outputs=source.num_outputs, filters=filters))
    maml = MAML(loss=losses.cross_entropy, inner_lr=0.4, num_inner_steps=1)
    gradient = Loop().value_and_grad(Unrolled(), maml.problem(model))
    meta = maml.init(model)
    episodes = source.episodes("train", range(TASKS))
    draw = _seconds(lambda: source.episodes("train", range(TASKS)), 5 * repeats)
    step = _seconds(lambda: gradient(meta, episodes), repeats)
    share = statistics.median(draw) / statistics.median(step)
    return {"model": f"conv4-{filters}", "draw_seconds": _spread(draw), "step_seconds": _spread(step), "share": share}


def _seconds(work: Callable[[], object], repeats: int) -> list[float]:
    work()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


COPIES = (10, 100, 1000)


def ensemble(repeats: int, copies: Sequence[int] = COPIES) -> dict[str, Any]:
    """Seconds and peak memory of evaluating 10, 100, 1000 copies in each way, and the ratio to the list of modules."""
    found: dict[str, Any] = {}
    for name in NETS:
        for num_copies in copies:
            for way in WAYS:
                times = _seconds(_ensemble(name, num_copies, way), repeats)
                measured = {"seconds": _spread(times), "peak_megabytes": _peak_in_a_new_process(name, num_copies, way)}
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


def _ensemble(name: str, num_copies: int, way: str) -> Callable[[], object]:
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
    command = [sys.executable, __file__, "peak", "--of", name, str(num_copies), way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak_megabytes(name: str, num_copies: int, way: str) -> float:
    """The largest resident memory while the work is done, over that just before it."""
    _ensemble(name, 2, way)()  # what torch loads at its first call is not the ensemble's
    work = _ensemble(name, num_copies, way)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that is kept would hide what the work takes
    Path("/proc/self/clear_refs").write_text("5")  # resets the mark of the highest resident memory
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])  # kB


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


def _line_of_sampling(name: str, measured: dict[str, Any]) -> str:
    return (
        f"{name:<45} draw {1e3 * measured['draw_seconds']['median']:7.1f} ms"
        f"   step {1e3 * measured['step_seconds']['median']:7.1f} ms   share {measured['share']:.1%}"
    )


def _lines_of_ensemble(name: str, measured: dict[str, Any]) -> str:
    return "\n".join(
        f"{name:<28} {number:>5} copies  {way:<16} {1e3 * row['seconds']['median']:9.1f} ms"
        f"   {row['speedup']:5.2f} x   peak {row['peak_megabytes']:7.1f} MB"
        for number, ways in measured.items()
        for way, row in ways.items()
    )


CASES: dict[str, Callable[[int], dict[str, Any]]] = {"sampling": sampling, "ensemble": ensemble}
LINES: dict[str, Callable[[str, dict[str, Any]], str]] = {"ensemble": _lines_of_ensemble}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=[*CASES, "peak"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="of the ensemble")
    parser.add_argument("--of", nargs=3, metavar=("NET", "COPIES", "WAY"), help="for `peak`, which `ensemble` calls")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.case == "peak":
        name, num_copies, way = options.of
        print(_peak_megabytes(name, int(num_copies), way))
        return 0
    found = CASES[options.case](options.repeats)
    for name, measured in found.items():
        print(LINES.get(options.case, _line_of_sampling)(name, measured))
    if options.picture:
        _picture(found, options.picture)
    if options.json:
        machine = {"device": device_name(torch.device("cpu")), "threads": 1, "python": platform.python_version()}
        report = {"case": options.case, "machine": machine, "torch": str(torch.__version__), "measured": found}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
