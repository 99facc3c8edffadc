"""How many: one number for all episodes, or a range of which each episode draws one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks.base import check_count

Count: TypeAlias = int | Sequence[int]
"""How many: one number for all episodes, or the lowest and the highest of a range that each episode draws from."""


@dataclass(frozen=True)
class Span:
    """A number, or a range of numbers of which each episode draws one."""

    low: int
    high: int

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to draw."""
        return self.low == self.high

    def draw(self, keys: Tensor) -> Tensor:
        """One number a key."""
        return self.low + random.integers(keys, self.high - self.low + 1, ())

    def plain(self) -> int | list[int]:
        """The number, or both ends of the range."""
        return self.high if self.is_fixed else [self.low, self.high]


def span(name: str, count: Count, *, minimum: int) -> Span:
    """The range that a count stands for.

    Example:
        >>> span("shots", 5, minimum=1), span("shots", [1, 5], minimum=1)
        (Span(low=5, high=5), Span(low=1, high=5))

    Raises:
        UsageError: not a whole number of at least `minimum`, nor two of them in order.
    """
    if not isinstance(count, Sequence):
        return Span(*[check_count(name, count, minimum=minimum)] * 2)
    if len(count) != 2 or isinstance(count, str):
        raise UsageError(f"`{name}` must be a number, or the lowest and the highest of a range, got {count!r}.")
    low, high = (check_count(name, each, minimum=minimum) for each in count)
    if low > high:
        raise UsageError(f"`{name}`={list(count)} is a range in the wrong order. Write [{high}, {low}].")
    return Span(low, high)
