"""learn2learn's Tasksets as a task source."""

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks.base import TaskSource, check_count, episode_keys
from metalearn.tasks.interop.taskset_reader import Shots, TasksetReader
from metalearn.tasks.padding import pad_examples
from metalearn.types import Episodes


class TasksetSource(TaskSource):
    """Episodes drawn by learn2learn's own task transforms, with their generators seeded for each.

    A taskset that draws new tasks for ever gives a task of its own to every index. One of `num_tasks` tasks is gone
    through in an order shuffled by the seed, so `num_tasks` successive indices from 0 are each task once. Its tasks are
    drawn under seeds too (`taskset[3]` holds what happened to be drawn first), unless all of them had been drawn when
    the source was made: then those are the tasks.

    learn2learn loads example by example: count on milliseconds an episode.

    Attributes:
        tasksets: by split.
        ways: classes in an episode, the most of any split.
        shots: support examples a class.
        query_shots: query examples a class, of each split.
        class_names: by split, where the tasksets' data set names its classes.
    """

    kind: Literal["classification", "regression"] = "classification"

    def __init__(
        self, tasksets: Mapping[str, Any], *, shots: int, query_shots: int | None = None, name: str = "taskset"
    ) -> None:
        """See `from_taskset`; `tasksets` is by split."""
        if not tasksets:
            raise UsageError("No taskset was given. Pass a learn2learn.data.Taskset, or a mapping of splits to them.")
        self.name, self.splits = name, tuple(tasksets)
        self.tasksets = dict(tasksets)
        self.shots = check_count("shots", shots)
        self._shots = Shots(shots, None if query_shots is None else check_count("query_shots", query_shots))
        self._readers = {split: TasksetReader.of(split, taskset) for split, taskset in self.tasksets.items()}
        names = {split: reader.class_names for split, reader in self._readers.items()}
        self.class_names = {split: each for split, each in names.items() if each}
        self.device = torch.device("cpu")
        self._details: dict[str, Any] = {}
        first = {split: self._episode(split, random.key(0), 0, 0) for split in self.splits}
        self.input_shape = _common_shape({split: tuple(one[0].shape[2:]) for split, one in first.items()})
        self._ways = {split: len(one[0]) for split, one in first.items()}
        self.query_shots = {split: one[1].shape[1] for split, one in first.items()}
        self.ways = self.num_outputs = max(self._ways.values())

    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """See `TaskSource.episodes`; examples lie class by class, padded where another split has more ways."""
        keys = episode_keys(split, indices, seed=seed, splits=self.splits, device="cpu")
        numbers = torch.as_tensor(indices, device="cpu").tolist()
        ways, query_shots = self._ways[split], self.query_shots[split]
        support = torch.empty(len(keys), ways, self.shots, *self.input_shape)
        query = torch.empty(len(keys), ways, query_shots, *self.input_shape)
        for row, (key, index) in enumerate(zip(keys, numbers, strict=True)):
            one = self._episode(split, key, index, seed)
            if one[0].shape != support.shape[1:] or one[1].shape != query.shape[1:]:
                raise UsageError(
                    f"Task {index} of split {split!r} has {len(one[0])} classes, {one[0].shape[1] + one[1].shape[1]}"
                    f" examples a class and inputs {list(one[0].shape[2:])}; its first one had {ways},"
                    f" {self.shots + query_shots} and {list(self.input_shape)}. Make the taskset's tasks alike."
                )
            support[row], query[row] = one
        return Episodes(
            support=self._set(support, ways), query=self._set(query, ways), key=random.fold_in(keys, 2).to(self.device)
        )

    def to(self, device: torch.device | str) -> "TasksetSource":
        """The same source with its episodes on `device`; learn2learn goes on loading where it does."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def protocol(self) -> dict[str, Any]:
        """The tasks' sizes by split, as plain data."""
        return {
            "dataset": self.name,
            "ways": self.ways if len(set(self._ways.values())) == 1 else dict(self._ways),
            "shots": self.shots,
            "query_shots": max(self.query_shots.values())
            if len(set(self.query_shots.values())) == 1
            else dict(self.query_shots),
            "input_shape": list(self.input_shape),
            "num_tasks": {split: reader.num_tasks or "unlimited" for split, reader in self._readers.items()},
            "sampled_by": "learn2learn",
            **self._details,
        }

    def _episode(self, split: str, key: Tensor, index: int, seed: int) -> tuple[Tensor, Tensor]:
        """One episode's support and query inputs, `[way, shot, ...]`."""
        reader = self._readers[split]
        number, description_key = None, random.fold_in(key, 0)
        if reader.num_tasks is not None:
            number = self._task_number(split, index, seed, reader.num_tasks)
            description_key = episode_keys(split, [number], seed=0, splits=self.splits)[0]
        inputs, labels = reader.task(int(description_key), int(random.fold_in(key, 1)), number)
        support, query = reader.rows(labels, self._shots, random.fold_in(key, 3))
        return inputs[support], inputs[query]

    def _task_number(self, split: str, index: int, seed: int, num_tasks: int) -> int:
        """Which of the tasks an index is: every round of `num_tasks` indices has an order of its own."""
        round_key = episode_keys(split, [index // num_tasks], seed=seed, splits=self.splits)[0]
        return int(_shuffled(int(round_key), num_tasks)[index % num_tasks])

    def _set(self, inputs: Tensor, ways: int) -> Any:
        labels = torch.arange(ways).repeat_interleave(inputs.shape[2]).repeat(len(inputs), 1)
        examples = (inputs.flatten(1, 2).to(self.device), labels.to(self.device))
        if set(self._ways.values()) == {self.num_outputs}:
            return examples
        # Also the split with the most ways, so that all splits are of one structure.
        return pad_examples(examples, num_examples=labels.shape[1], num_outputs=self.num_outputs, own_outputs=ways)


@lru_cache(maxsize=8)
def _shuffled(key: int, count: int) -> Tensor:
    """The numbers 0 … count - 1 in a random order."""
    return random.bits(torch.tensor(key), (count,)).argsort(stable=True)


def _common_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if len(set(shapes.values())) > 1:
        raise UsageError(f"The tasksets have inputs of several shapes: {shapes}. Give all splits the same transform.")
    return next(iter(shapes.values()))
