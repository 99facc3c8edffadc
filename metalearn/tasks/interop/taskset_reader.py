"""A task of a learn2learn Taskset as a support and a query set: drawn under a seed and split class by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks.seeded import seeded

_NEEDED = ("sample_task_description", "get_task")


@dataclass(frozen=True)
class Shots:
    """How a task is split.

    Attributes:
        support: examples a class for the support set.
        query: examples a class for the query set; `None` for all that are left.
    """

    support: int
    query: int | None


@dataclass(frozen=True)
class TasksetReader:
    """One Taskset of one split.

    Attributes:
        split: its name, for errors.
        taskset: with `sample_task_description` and `get_task`.
        by_hand: whether to put the examples together here, because the taskset's own collation refuses them (PIL).
        fixed: the descriptions of a finite taskset all of whose tasks had been drawn before; else `None`.
    """

    split: str
    taskset: Any
    by_hand: bool
    fixed: dict[int, Any] | None

    @classmethod
    def of(cls, split: str, taskset: Any) -> "TasksetReader":
        """A reader, once the taskset is known to be one.

        Raises:
            UsageError: it is something else.
        """
        if missing := [name for name in _NEEDED if not callable(getattr(taskset, name, None))]:
            raise UsageError(
                f"The tasks of split {split!r} are {type(taskset).__name__}, which has no method {missing[0]!r}. Pass a"
                " learn2learn.data.Taskset, a mapping of split names to them, or what get_tasksets returns."
            )
        if getattr(taskset, "task_transforms", None) == []:
            raise UsageError(
                f"The taskset of split {split!r} has no task_transforms, so it has no tasks. Give it learn2learn's"
                " NWays, KShots, LoadData and RemapLabels."
            )
        drawn = dict(getattr(taskset, "sampled_descriptions", None) or {})
        is_fixed = len(drawn) == _size(taskset)
        # PIL images fail in torch's own collation; a user's collation is theirs.
        by_hand = getattr(taskset, "task_collate", None) is default_collate and _gives_pictures(split, taskset)
        return cls(split, taskset, by_hand, drawn if is_fixed else None)

    @property
    def num_tasks(self) -> int | None:
        """How many tasks there are, `None` for a taskset that draws new ones for ever."""
        return _size(self.taskset)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, of a data set of folders (`dataset.classes`), or none."""
        dataset = getattr(self.taskset, "dataset", None)
        names, labels = getattr(getattr(dataset, "dataset", None), "classes", None), getattr(dataset, "labels", None)
        if not names or not labels or not all(isinstance(each, int) and each < len(names) for each in labels):
            return ()
        return tuple(str(names[each]) for each in labels)

    def task(self, description_key: int, data_key: int, number: int | None) -> tuple[Tensor, Tensor]:
        """One task's examples, float32 `[example, ...]`, and labels `[example]`.

        Args:
            description_key: seeds the choice of classes and examples.
            data_key: seeds what loading the examples draws (their transforms).
            number: of the task in a finite taskset.
        """
        if self.fixed is not None and number is not None:
            description = self.fixed[number]
        else:
            with seeded(description_key):
                description = _sampled(self.split, self.taskset)
        with seeded(data_key):
            data = _examples(description) if self.by_hand else self.taskset.get_task(description)
        if not isinstance(data, Sequence) or len(data) != 2:
            raise UsageError(f"A task of split {self.split!r} is {type(data).__name__}, expected (inputs, labels).")
        inputs, labels = _inputs(data[0]), torch.as_tensor(data[1])
        if labels.dim() != 1 or labels.is_floating_point() or len(labels) != len(inputs):
            raise UsageError(
                f"A task of split {self.split!r} has {len(inputs)} inputs and labels {labels.dtype} of shape"
                f" {list(labels.shape)}, expected one whole number an input (learn2learn's RemapLabels)."
            )
        return inputs, labels.to(torch.int64)

    def rows(self, labels: Tensor, shots: Shots, key: Tensor) -> tuple[Tensor, Tensor]:
        """Which examples make the support and which the query set, `[way, shot]` each, in the order of the new labels.

        The first examples of a class are its support, as in `learn2learn.data.partition_task`. Labels that are 0 …
        ways - 1 already stay; others (a taskset without RemapLabels) are dealt out by the key.

        Raises:
            UsageError: the classes are of unequal size, or too small.
        """
        found, counts = torch.unique(labels, return_counts=True)
        if len(found) < 2:
            raise UsageError(f"A task of split {self.split!r} has {len(found)} class: expected 2 or more (NWays).")
        if int(counts.min()) != int(counts.max()):
            raise UsageError(
                f"A task of split {self.split!r} has from {int(counts.min())} to {int(counts.max())} examples a class,"
                " expected the same number of each. Add learn2learn's KShots to its task_transforms."
            )
        available, wanted = int(counts[0]), shots.support + (shots.query or 1)
        if available < wanted:
            raise UsageError(
                f"shots={shots.support} and query_shots={shots.query or 'the rest'} need at least {wanted} examples a"
                f" class, and a task of split {self.split!r} has {available}. Give KShots k={wanted} or more."
            )
        if not torch.equal(found, torch.arange(len(found), device=found.device)):
            found = found[random.choose(key, len(found), len(found))]
        rows = torch.stack([torch.nonzero(labels == label)[:, 0] for label in found])
        stop = available if shots.query is None else wanted
        return rows[:, : shots.support], rows[:, shots.support : stop]


def _size(taskset: Any) -> int | None:
    num_tasks = getattr(taskset, "num_tasks", -1)
    return None if num_tasks < 0 else num_tasks


def _sampled(split: str, taskset: Any) -> Any:
    try:
        return taskset.sample_task_description()
    except ValueError as error:  # of random.sample
        raise UsageError(
            f"No task of split {split!r} can be drawn ({error}). Are there as many classes as ways, and as many"
            " examples a class as shots and query_shots together?"
        ) from error


def _gives_pictures(split: str, taskset: Any) -> bool:
    """Whether the first example of a task is something that torch's collation refuses."""
    with seeded(0):
        description = _sampled(split, taskset)
        first = _example(next(iter(description)))
    return hasattr(first[0], "getbands")  # PIL's images; without importing PIL for all the others


def _examples(description: Any) -> tuple[list[Any], list[Any]]:
    pairs = [_example(each) for each in description]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _example(data_description: Any) -> Any:
    """One example, as `Taskset.get_task` makes it."""
    data = data_description.index
    for transform in data_description.transforms:
        data = transform(data)
    return data


def _inputs(inputs: Any) -> Tensor:
    """Float32 examples; bytes are pictures, of which 255 becomes 1.0."""
    stacked = inputs if isinstance(inputs, Tensor) else torch.stack([_one_input(each) for each in inputs])
    return stacked.to(torch.float32).mul(1 / 255) if stacked.dtype == torch.uint8 else stacked.to(torch.float32)


def _one_input(example: Any) -> Tensor:
    if not hasattr(example, "getbands"):
        return torch.as_tensor(example)
    pixels = torch.from_numpy(np.array(example, dtype=np.uint8))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
