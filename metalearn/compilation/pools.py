"""Max-pooling by comparisons alone.

Torch's compiler makes the way back through a max-pool of scattered atomic sums, the slowest part of a small
convolutional network on a CPU. Here each entry of a window asks whether it was the largest, which is fused with what is
before and after it, and runs over channels at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.compilation.operations import aten

MOST_ENTRIES = 25
"""Of a window; the pools with larger ones are left to torch's compiler."""


def _max_pool(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:  # fmt: skip
    windows = _Windows.of(x, kernel, stride, padding, dilation, ceil_mode)
    if windows is None:
        return NotImplemented
    largest, entry = windows.largest(x)
    return largest, windows.place(entry).to(torch.int64)


def _max_pool_backward(
    grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Any, dilation: Any,
    ceil_mode: bool, indices: Tensor,
) -> Any:  # fmt: skip
    windows = _Windows.of(x, kernel, stride, padding, dilation, ceil_mode)
    # To find the largest entry again is cheaper than to keep 8 bytes for it.
    return NotImplemented if windows is None else windows.back(grad, windows.largest(x)[1])


class _Windows:
    """The windows of a pool over the last two axes; an entry is numbered row by row within its window."""

    def __init__(self, x: Tensor, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool) -> None:
        self.height, self.width = x.shape[-2:]
        (self.rows, self.columns), (self.down, self.right), (self.above, self.left) = kernel, stride, padding
        self.num_down = _number(self.height, self.rows, self.down, self.above, ceil_mode)
        self.num_right = _number(self.width, self.columns, self.right, self.left, ceil_mode)

    @classmethod
    def of(cls, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> "_Windows | None":
        """None for those that are left to torch's compiler."""
        kernel, padding = _pair(kernel), _pair(padding)
        if kernel[0] * kernel[1] > MOST_ENTRIES or _pair(dilation) != [1, 1]:
            return None
        return cls(x, kernel, _pair(stride) if stride else kernel, padding, ceil_mode)

    @property
    def tile(self) -> bool:
        """Whether no two windows overlap, nor is there room between them, but for what is left over at the end."""
        return (self.rows, self.columns, 0, 0) == (self.down, self.right, self.above, self.left) and (
            self.num_down * self.rows <= self.height and self.num_right * self.columns <= self.width
        )

    def largest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The largest entry of each window, and its number: the first of equal ones, and NaN above all, as in torch."""
        below = (self.num_down - 1) * self.down + self.rows - self.height - self.above
        beyond = (self.num_right - 1) * self.right + self.columns - self.width - self.left
        if max(self.above, self.left, below, beyond) > 0:
            x = F.pad(x, [self.left, max(beyond, 0), self.above, max(below, 0)], value=float("-inf"))
        value, entry = None, self._first(x.device)
        for row in range(self.rows):
            for column in range(self.columns):
                found = x[..., row :: self.down, column :: self.right][..., : self.num_down, : self.num_right]
                if value is None:
                    value, entry = found, entry.expand(found.shape)
                    continue
                better = (found > value) | (found != found)
                value = torch.where(better, found, value)
                entry = torch.where(better, entry.new_full((), row * self.columns + column), entry)
        assert value is not None
        return value, entry

    def place(self, entry: Tensor) -> Tensor:
        """Where an entry lies in the flattened image."""
        down, right = self._starts(entry.device)
        row, column = entry // self.columns, entry % self.columns
        return (down - self.above + row) * self.width + (right - self.left + column)

    def back(self, grad: Tensor, entry: Tensor) -> Tensor:
        """The gradient of the image: that of a window goes to its largest entry."""
        if self.tile:
            numbers = torch.arange(self.rows * self.columns, dtype=entry.dtype, device=entry.device)
            is_it = entry[..., :, None, :, None] == numbers.view(self.rows, 1, self.columns)
            spread = torch.where(is_it, grad[..., :, None, :, None], 0.0)
            merged = spread.reshape(*grad.shape[:-2], self.num_down * self.rows, self.num_right * self.columns)
            return self._cut(merged, 0, 0)
        found: Tensor | None = None
        for row in range(self.rows):
            for column in range(self.columns):
                own = torch.where(entry == row * self.columns + column, grad, 0.0)
                placed = self._cut(self._apart(own), row - self.above, column - self.left)
                found = placed if found is None else found + placed
        assert found is not None
        return found

    def _first(self, device: torch.device) -> Tensor:
        """The first entry of each window that is not padding: the largest of a window where all are minus infinity."""
        down, right = self._starts(device)
        return (self.above - down).clamp_min(0) * self.columns + (self.left - right).clamp_min(0)

    def _starts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        down = torch.arange(self.num_down, dtype=torch.int32, device=device)[:, None] * self.down
        return down, torch.arange(self.num_right, dtype=torch.int32, device=device) * self.right

    def _apart(self, grad: Tensor) -> Tensor:
        """With zeros between the windows' entries, as far as the windows are from one another."""
        grad = F.pad(grad[..., None], [0, self.right - 1]).flatten(-2)
        return F.pad(grad[..., None, :], [0, 0, 0, self.down - 1]).flatten(-3, -2)

    def _cut(self, grad: Tensor, above: int, left: int) -> Tensor:
        """The image's own part, where `grad` begins at this row and column of it; zero where it does not reach."""
        below, beyond = self.height - above - grad.shape[-2], self.width - left - grad.shape[-1]
        if above == left == below == beyond == 0:
            return grad
        return F.pad(grad, [left, beyond, above, below])


def _number(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    room = size + 2 * padding - kernel
    number = (-(-room // stride) if ceil_mode else room // stride) + 1
    # The last window has to begin in the image or in the padding before it.
    return number - 1 if ceil_mode and (number - 1) * stride >= size + padding else number


def _pair(value: Any) -> list[int]:
    numbers = [*value] if isinstance(value, Sequence) else [value]
    return numbers * 2 if len(numbers) == 1 else numbers


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
}
