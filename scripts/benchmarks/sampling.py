"""What drawing the episodes costs, as a share of the meta-step that uses them."""

import statistics
from argparse import Namespace
from typing import Any

from benchmarks.common import Case, seconds, spread
from metalearn import functionalize, losses, models
from metalearn.algorithms import MAML
from metalearn.execution import Loop
from metalearn.metagrad import Unrolled
from metalearn.tasks import CifarFS, Omniglot

TASKS = 16


def measure(options: Namespace) -> dict[str, Any]:
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
    return {name: share_of(source, filters, options.repeats) for name, (source, filters) in sources.items()}


def share_of(source: Any, filters: int, repeats: int) -> dict[str, Any]:
    model = functionalize(models.Conv4(input_shape=source.input_shape, num_outputs=source.num_outputs, filters=filters))
    maml = MAML(loss=losses.cross_entropy, inner_lr=0.4, num_inner_steps=1)
    gradient = Loop().value_and_grad(Unrolled(), maml.problem(model))
    meta = maml.init(model)
    episodes = source.episodes("train", range(TASKS))
    draw = seconds(lambda: source.episodes("train", range(TASKS)), 5 * repeats)
    step = seconds(lambda: gradient(meta, episodes), repeats)
    share = statistics.median(draw) / statistics.median(step)
    return {"model": f"conv4-{filters}", "draw_seconds": spread(draw), "step_seconds": spread(step), "share": share}


def _line(name: str, measured: dict[str, Any]) -> str:
    return (
        f"{name:<45} draw {1e3 * measured['draw_seconds']['median']:7.1f} ms"
        f"   step {1e3 * measured['step_seconds']['median']:7.1f} ms   share {measured['share']:.1%}"
    )


CASE = Case(measure, _line)
