"""What drawing the episodes costs: as a share of the meta-step that uses them, and beside learn2learn's sampling."""

import json
import os
import statistics
import sys
import tempfile
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Case, interleaved_seconds, ratios, rows_of_a_process, seconds, spread
from metalearn import functionalize, losses, models
from metalearn.algorithms import MAML
from metalearn.execution import Loop
from metalearn.metagrad import Unrolled
from metalearn.tasks import CifarFS, Omniglot
from metalearn.torchvision_import import torchvision_module
from metalearn.types import Episodes

TASKS = 16
BATCHES = (1, 16, 32, 256)
OURS, LEARN2LEARN = "metalearn", "learn2learn"
IN_MEMORY, FROM_FILES = "ready images", "its own Omniglot, turned"

Draw = Callable[[], Episodes]


def measure(options: Namespace) -> dict[str, Any]:
    """Shares of meta-steps, and episodes a second: beside learn2learn in the environment that has it, if given."""
    found = shares(options.repeats)
    arguments = [str(options.repeats), *([LEARN2LEARN] if options.peers else [])]
    for row in rows_of_a_process(str(options.peers or sys.executable), "sampling", arguments, called="the sampling"):
        found[f"episodes a second, {row['learn2learn_reads']}, meta-batch of {row['tasks']}"] = row
    return found


def shares(repeats: int) -> dict[str, Any]:
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
    return {name: share_of(source, filters, repeats) for name, (source, filters) in sources.items()}


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


def ours(source: Any, tasks: int) -> Draw:
    """Another meta-batch at every call, as in training."""
    starts = count(0, tasks)

    def draw() -> Episodes:
        start = next(starts)
        return source.episodes("train", range(start, start + tasks))  # type: ignore[no-any-return]

    return draw


class InMemory(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The training images of a source as the float tensors that its episodes have, and their classes' numbers."""

    def __init__(self, source: Any) -> None:
        images = source.images["train"]
        self.labels = torch.arange(len(images)).repeat_interleave(images.shape[1]).tolist()
        self.images = list(images.flatten(0, 1).float() / 255)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]


def learn2learns(taskset: Any, tasks: int, *, ways: int, shots: int, query_shots: int) -> Draw:
    """Its tasks as its examples use them: sampled one by one, split in two; stacked."""
    of_support = torch.arange(ways * (shots + query_shots)) % (shots + query_shots) < shots

    def draw() -> Episodes:
        sampled = [taskset.sample() for _ in range(tasks)]
        parts = [
            tuple(torch.stack([each[part][rows] for each in sampled]) for part in range(2))
            for rows in (of_support, ~of_support)
        ]
        return Episodes(*parts)

    return draw


def taskset_in_memory(source: Any, *, ways: int, examples: int) -> Any:
    """With the fastest of its transforms; ready images, and no rotations."""
    torchvision_module("transforms")  # learn2learn imports it, and beside a CPU build of torch that needs help
    import learn2learn
    from learn2learn.data import transforms

    dataset = learn2learn.data.MetaDataset(InMemory(source))
    return learn2learn.data.Taskset(dataset, task_transforms=[
        transforms.FusedNWaysKShots(dataset, n=ways, k=examples), transforms.LoadData(dataset),
        transforms.RemapLabels(dataset), transforms.ConsecutiveLabels(dataset),
    ])  # fmt: skip


def taskset_of_its_benchmark(folder: Path, *, ways: int, examples: int) -> Any:
    """As `learn2learn.vision.benchmarks` makes Omniglot's: files that are read, resized and turned at every draw."""
    datasets, vision = torchvision_module("datasets"), torchvision_module("transforms")
    import learn2learn
    from learn2learn.data import transforms

    class Unchecked(datasets.Omniglot):  # type: ignore[name-defined, misc]
        def _check_integrity(self) -> bool:
            return True  # the checksum is of one packing of the same files

    root = folder / "omniglot-py"
    for name in ("images_background", "images_evaluation"):
        zipfile.ZipFile(Path(os.environ["METALEARN_DATA"]) / "omniglot" / f"{name}.zip").extractall(root)
    resized = vision.Resize(28, interpolation=vision.InterpolationMode.LANCZOS)
    ready = vision.Compose([resized, vision.ToTensor(), lambda image: 1.0 - image])
    halves = [Unchecked(str(folder), background=True, transform=ready)]
    after = len(halves[0]._characters)
    halves.append(
        Unchecked(str(folder), background=False, transform=ready, target_transform=lambda label: label + after)
    )
    dataset = learn2learn.data.MetaDataset(torch.utils.data.ConcatDataset(halves))
    return learn2learn.data.Taskset(dataset, task_transforms=[
        transforms.FusedNWaysKShots(dataset, n=ways, k=examples), transforms.LoadData(dataset),
        transforms.RemapLabels(dataset), transforms.ConsecutiveLabels(dataset),
        learn2learn.vision.transforms.RandomClassRotation(dataset, [0.0, 90.0, 180.0, 270.0]),
    ])  # fmt: skip


def rate_of(source: Any, tasks: int, repeats: int, taskset: Any = None, **sizes: int) -> dict[str, Any]:
    """Episodes a second of a meta-batch, in process time, and how many times learn2learn's, whose taskset this is."""
    draws = {OURS: ours(source, tasks)}
    if taskset is not None:
        draws[LEARN2LEARN] = learn2learns(taskset, tasks, **sizes)
        require_same_form(*(draw() for draw in draws.values()))
    times = interleaved_seconds(dict(draws), repeats)
    found: dict[str, Any] = {
        way: {"episodes_per_second": spread([tasks / each for each in times[way]])} for way in draws
    }
    if taskset is not None:
        found["times_learn2learn"] = spread(ratios(times[LEARN2LEARN], times[OURS]))
    return {"tasks": tasks, **sizes, **found}


def require_same_form(found: Episodes, expected: Episodes) -> None:
    """Ends the benchmark where the two do not draw the same kind of episodes."""
    for one, other in zip((*found.support, *found.query), (*expected.support, *expected.query), strict=True):
        if (one.shape, one.dtype, one.max(), one.min()) != (other.shape, other.dtype, other.max(), other.min()):
            raise SystemExit(f"bench: other episodes: {one.shape}, {one.dtype} and {other.shape}, {other.dtype}")


def _part(arguments: list[str]) -> None:
    for row in _rates(int(arguments[0]), with_learn2learn=LEARN2LEARN in arguments):
        print(json.dumps(row), flush=True)


def _rates(repeats: int, *, with_learn2learn: bool) -> Iterator[dict[str, Any]]:
    sizes = {"ways": 5, "shots": 1, "query_shots": 5}
    examples = {"ways": sizes["ways"], "examples": sizes["shots"] + sizes["query_shots"]}
    with tempfile.TemporaryDirectory() as folder:
        for images, rotations in ((IN_MEMORY, False), (FROM_FILES, True)):
            source, taskset = Omniglot(**sizes, rotations=rotations), None
            if with_learn2learn and images == IN_MEMORY:
                taskset = taskset_in_memory(source, **examples)
            elif with_learn2learn:
                taskset = taskset_of_its_benchmark(Path(folder), **examples)
            for tasks in BATCHES:
                yield {"learn2learn_reads": images, **rate_of(source, tasks, repeats, taskset, **sizes)}


def _line(name: str, measured: dict[str, Any]) -> str:
    if "share" not in measured:
        return _rate_line(name, measured)
    return (
        f"{name:<60} draw {1e3 * measured['draw_seconds']['median']:7.1f} ms"
        f"   step {1e3 * measured['step_seconds']['median']:7.1f} ms   share {measured['share']:.1%}"
    )


def _rate_line(name: str, measured: dict[str, Any]) -> str:
    cells = [
        f"{way} {measured[way]['episodes_per_second']['median']:,.0f}" for way in (OURS, LEARN2LEARN) if way in measured
    ]
    if "times_learn2learn" in measured:
        times = measured["times_learn2learn"]
        cells.append(f"{times['median']:.0f} times learn2learn's ({times['lowest']:.0f} to {times['highest']:.0f})")
    return f"{name:<60} {'   '.join(cells)}"


CASE = Case(measure, _line, part=_part)
