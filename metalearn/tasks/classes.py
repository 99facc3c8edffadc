"""Labelled examples held class by class in one tensor: what classification episodes are drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metalearn.errors import UsageError


@dataclass(frozen=True)
class Classes:
    """The classes of a split, of equal size or not.

    Attributes:
        examples: rows of examples, those of one class after another, `[example, *shape]`: uint8 images
            `[channel, height, width]`, of which 255 becomes 1.0, or float32 of any shape, taken as they are. It may be
            memory-mapped, as only what an episode takes is read, and be shared with the classes of other splits.
        counts: the number of examples of each class, int64 `[class]`.
        names: of the classes, or empty.
        first: the row of each class's first example, int64 `[class]`; None where the classes fill `examples` in order.
    """

    examples: Tensor
    counts: Tensor
    names: tuple[str, ...] = ()
    first: Tensor | None = None

    def __post_init__(self) -> None:
        if self.examples.dtype not in (torch.uint8, torch.float32):
            raise UsageError(
                f"The examples of classes must be uint8 (images) or float32, got {self.examples.dtype}. Convert them."
            )
        # Where they are built, on the CPU: to read numbers back from a device would make it wait.
        whole = self.first is None and self.counts.device.type == "cpu"
        if whole and int(self.counts.sum()) != len(self.examples):
            raise UsageError(
                f"The classes count {int(self.counts.sum())} examples, but there are {len(self.examples)}."
            )
        if self.names and len(self.names) != len(self.counts):
            raise UsageError(f"There are {len(self.names)} names for {len(self.counts)} classes.")

    @classmethod
    def of(cls, grid: Tensor, names: Sequence[str] = ()) -> "Classes":
        """Classes of equal size, `[class, example, *shape]`, kept without copying where the tensor is contiguous."""
        return cls(grid.flatten(0, 1), torch.full((len(grid),), grid.shape[1], dtype=torch.int64), tuple(names))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.examples.shape[1:])

    @property
    def starts(self) -> Tensor:
        """The row of each class's first example, int64 `[class]`."""
        return self.counts.cumsum(0) - self.counts if self.first is None else self.first

    def name(self, index: int) -> str:
        """What to call a class in a sentence."""
        return repr(self.names[index]) if self.names else f"number {index}"

    def grid(self) -> Tensor:
        """The examples of classes of equal size, `[class, example, *shape]`.

        Raises:
            UsageError: the sizes differ.
        """
        sizes = sorted(set(self.counts.tolist()))
        if len(sizes) != 1:
            raise UsageError(f"The classes have {sizes[0]} … {sizes[-1]} examples, so they are no grid.")
        if self.first is not None:
            return self.examples[self.first[:, None] + torch.arange(sizes[0], device=self.first.device)]
        return self.examples.reshape(len(self.counts), sizes[0], *self.shape)

    def to(self, device: torch.device | str, *, examples: Tensor | None = None) -> "Classes":
        """The same classes with their tensors on `device`; `examples` are there already where splits share them."""
        return replace(
            self,
            examples=self.examples.to(device) if examples is None else examples,
            counts=self.counts.to(device),
            first=None if self.first is None else self.first.to(device),
        )
