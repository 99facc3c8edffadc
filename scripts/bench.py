"""Benchmarks: ratios measured in one run, on one thread, in process CPU time.

    python scripts/bench.py sampling --json experiments/sampling/sampling.json

`sampling`: what drawing the episodes costs, as a share of the meta-step that uses them.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from metalearn import functionalize, losses, models
from metalearn.algorithms import MAML
from metalearn.execution import Loop
from metalearn.metagrad import Unrolled
from metalearn.tasks import CifarFS, Omniglot
from metalearn.training.protocol import device_name

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


CASES: dict[str, Callable[[int], dict[str, Any]]] = {"sampling": sampling}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = CASES[options.case](options.repeats)
    for name, measured in found.items():
        print(
            f"{name:<45} draw {1e3 * measured['draw_seconds']['median']:7.1f} ms"
            f"   step {1e3 * measured['step_seconds']['median']:7.1f} ms   share {measured['share']:.1%}"
        )
    if options.json:
        machine = {"device": device_name(torch.device("cpu")), "threads": 1, "python": platform.python_version()}
        report = {"case": options.case, "machine": machine, "torch": str(torch.__version__), "measured": found}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
