"""All classes of the training split at once: minibatches for plain classification, as episodes."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks.base import TaskSource, check_count, episode_keys
from metalearn.tasks.classes import Classes
from metalearn.types import Episodes

SPLIT = "train"

Gather = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""`(rows [task, example], quarter turns or None, keys [task]) -> inputs [task, example, *input_shape]`."""


class AllClasses(TaskSource):
    """Episodes that are minibatches of any training examples, labelled by their class among all training classes.

    Each episode draws `num_examples` different examples, every one as likely as any other. Its support set and its
    query set are the same tensors. `ClassificationSource.minibatches` makes one.
    """

    kind: Literal["classification", "regression"] = "classification"

    def __init__(self, *, name: str, classes: Classes, num_examples: int, rotations: bool, gather: Gather) -> None:
        """Minibatches out of `classes`.

        Args:
            name: of the data set.
            classes: of the training split.
            num_examples: of a minibatch.
            rotations: whether every class turned by 90, 180 and 270 degrees is a class of its own.
            gather: from rows to examples, as episodes of the data set have them (augmented, for one).

        Raises:
            UsageError: there are fewer examples than a minibatch has.
        """
        self.name, self.splits, self.input_shape = name, (SPLIT,), classes.shape
        self.num_examples = check_count("num_examples", num_examples)
        self._classes, self._gather = classes, gather
        self._turns = 4 if rotations else 1
        self.num_outputs = len(classes.counts) * self._turns
        self._ends = classes.counts.cumsum(0)  # of each class's examples, counted class by class
        self._starts, self._total = classes.starts, int(classes.counts.sum())
        if self.num_examples > self._total * self._turns:
            raise UsageError(
                f"num_examples={num_examples} of a minibatch is more than the {self._total * self._turns} training "
                f"examples of {name}. Lower it."
            )

    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """See `TaskSource.episodes`; labels are 0 … `num_outputs` - 1."""
        keys = episode_keys(split, indices, seed=seed, splits=self.splits, device=self._ends.device)
        drawn = random.choose(random.fold_in(keys, 0), self._total * self._turns, self.num_examples)
        turns, place = drawn // self._total, drawn % self._total
        number = torch.searchsorted(self._ends, place, right=True)
        rows = self._starts[number] + place - (self._ends - self._classes.counts)[number]
        inputs = self._gather(rows, turns if self._turns > 1 else None, random.fold_in(keys, 1))
        labels = number + turns * len(self._ends)
        return Episodes((inputs, labels), (inputs, labels), random.fold_in(keys, 2))

    def to(self, device: torch.device | str) -> "AllClasses":
        """Refused where it would move anything: the source that it was made of is moved, and makes another one."""
        if torch.device(device).type != self._ends.device.type:
            raise UsageError("minibatches are where their source is: move that one, source.to(device).minibatches(…).")
        return copy.copy(self)

    def protocol(self) -> dict[str, Any]:
        """The data set, its classes and the size of a minibatch, as plain data."""
        return {"dataset": self.name, "classes": {SPLIT: self.num_outputs}, "num_examples": self.num_examples}
