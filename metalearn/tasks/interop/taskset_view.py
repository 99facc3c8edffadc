"""A task source as code written for learn2learn expects its tasks: `data, labels = tasks.sample()`."""

import random as python_random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.tasks.base import TaskSource
from metalearn.tasks.padding import unpadded
from metalearn.types import Examples

_NUM_INDICES = 2**31


@dataclass(frozen=True)
class TasksetView:
    """Tasks as `(data, labels)`, with what learn2learn's `Taskset` offers.

    Every second example from the first on is of the support set until that is used up, which is how code for
    learn2learn splits a task: `data[::2][: shots * ways]`. As many query examples of the same classes lie between them,
    and the rest of the query set follows.

    Attributes:
        source: where the tasks come from.
        split: which of its splits.
        seed: which stream of episodes.
        num_tasks: how many there are, -1 for no end.
    """

    source: TaskSource
    split: str
    seed: int = 0
    num_tasks: int = -1

    def sample(self) -> tuple[Tensor, Tensor]:
        """A random task. As in learn2learn it is Python's global generator that chooses (`random.seed`)."""
        return self._task(python_random.randrange(_NUM_INDICES if self.num_tasks == -1 else self.num_tasks))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The task of this index, the same one each time."""
        if index < 0 or (self.num_tasks != -1 and index >= self.num_tasks):
            raise IndexError(f"task {index} of {'endlessly many' if self.num_tasks == -1 else self.num_tasks}")
        return self._task(index)

    def __len__(self) -> int:
        """`num_tasks`, and 1 where there is no end, as in learn2learn."""
        return 1 if self.num_tasks == -1 else self.num_tasks

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The tasks 0, 1, 2 …, for ever where there is no end."""
        index = 0
        while self.num_tasks == -1 or index < self.num_tasks:
            yield self._task(index)
            index += 1

    def _task(self, index: int) -> tuple[Tensor, Tensor]:
        episodes = self.source.episodes(self.split, [index], seed=self.seed)
        support, query = (_one(each) for each in (episodes.support, episodes.query))
        order = _interleaved(support[1], query[1])
        data, labels = (torch.cat([support[part], query[part]])[order] for part in range(2))
        return data, labels


def to_taskset(source: TaskSource, split: str = "train", *, seed: int = 0, num_tasks: int = -1) -> TasksetView:
    """A split of a task source for code written for learn2learn.

    Args:
        source: any task source.
        split: which of its splits.
        seed: which stream of episodes.
        num_tasks: how many tasks, the episodes 0 … num_tasks - 1; -1 for no end.

    Raises:
        UsageError: for a number of tasks that is neither -1 nor positive, an unknown split, or a query set too small
            for learn2learn's usual split into every second example.

    Example:
        >>> from metalearn.tasks import Sinusoid
        >>> tasks = to_taskset(Sinusoid(shots=3, query_shots=5), "train", num_tasks=4)
        >>> data, labels = tasks.sample()
        >>> len(tasks), data.shape
        (4, torch.Size([8, 1]))
    """
    if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks == 0 or num_tasks < -1:
        raise UsageError(f"`num_tasks` must be -1 (no end) or at least 1, got {num_tasks!r}.")
    view = TasksetView(source, split, seed, num_tasks)
    view[0]
    return view


def _one(examples: Examples) -> tuple[Tensor, Tensor]:
    """The first task's set without padding."""
    first = tuple(
        part[0] if isinstance(part, Tensor) else type(part)(part.rows[0], part.outputs[0]) for part in examples
    )
    inputs, targets = unpadded(first)  # type: ignore[arg-type,misc]
    return inputs, targets


def _interleaved(support: Tensor, query: Tensor) -> Tensor:
    """The order that puts the support set at 0, 2, 4 … and the query set elsewhere."""
    num_support, num_query = len(support), len(query)
    if num_query < num_support - 1:
        raise UsageError(
            f"A task with {num_support} support and {num_query} query examples can not be laid out for learn2learn,"
            " which takes every second example for the support set. Set query_shots to at least shots."
        )
    positions = torch.arange(num_support + num_query)
    is_support = (positions % 2 == 0) & (positions < 2 * num_support)
    order = torch.empty_like(positions)
    order[is_support] = torch.arange(num_support)
    order[~is_support] = num_support + _partners_first(support, query)
    return order.to(support.device)


def _partners_first(support: Tensor, query: Tensor) -> Tensor:
    """The query examples, those first that have a support example of their class to stand beside."""
    if query.is_floating_point():
        return torch.arange(len(query))
    same = (query[:, None] == query[None, :]).tril(-1).sum(1)  # how many of its class come before it
    return torch.argsort((same >= (query[:, None] == support[None, :]).sum(1)).cpu(), stable=True)
