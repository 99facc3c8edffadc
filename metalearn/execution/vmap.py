"""Tasks at once, as one more axis."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.execution.base import Execution


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

    at_once: ClassVar[bool] = True

    def parts(self, episodes: Any) -> Iterator[Any]:
        """See `Execution.parts`; `chunk_size` tasks each."""
        if self.chunk_size is None:
            return iter([episodes])
        return tree.chunks(episodes, self.chunk_size)

    def over_tasks(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """See `Execution.over_tasks`."""
        return lambda chunk: tree.vmapped(function, chunk)
