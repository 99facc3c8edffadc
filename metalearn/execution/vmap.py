"""Tasks at once, as one more axis."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.execution.base import Execution, count_tasks


@dataclass(frozen=True, kw_only=True)
class Vmap(Execution):
    """All tasks at once by `torch.vmap`: the fastest for small models, and on a GPU.

    Attributes:
        chunk_size: at most so many tasks at once, to bound the memory; None for all.
    """

    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_size is not None and self.chunk_size < 1:
            raise UsageError(f"chunk_size is {self.chunk_size}, but must be at least 1, or None for all tasks at once.")

    def run(self, function: Callable[[Any], Any], episodes: Any) -> Iterator[Any]:
        """See `Execution.run`; pieces of `chunk_size` tasks."""
        num_tasks = count_tasks(episodes)
        leaves, structure = tree.flatten(episodes)
        axes = tuple(0 if isinstance(leaf, Tensor) else None for leaf in leaves)
        result_of: dict[str, Any] = {}

        def one_task(*leaves: Any) -> tuple[Tensor, ...]:
            # vmap returns tensors only: what else a result holds (None, a name) is remembered beside them.
            result = function(tree.unflatten(leaves, structure))
            result_of["flat"], result_of["structure"] = tree.flatten(result)
            return tuple(leaf for leaf in result_of["flat"] if isinstance(leaf, Tensor))

        size = self.chunk_size or num_tasks
        for first in range(0, num_tasks, size):
            chunk = [leaf[first : first + size] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            batched = iter(torch.vmap(one_task, in_dims=axes)(*chunk))
            flat = [next(batched) if isinstance(leaf, Tensor) else leaf for leaf in result_of["flat"]]
            yield tree.unflatten(flat, result_of["structure"])
