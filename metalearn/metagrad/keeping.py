"""States kept for the way back, one beside the other."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn import tree
from metalearn.metagrad.pieces import Point

_ALIGNED = 16  # numbers, a cache line of float32: where a large tensor begins
_LARGE = 1024  # numbers


class _Slot(NamedTuple):
    dtype: torch.dtype
    offset: int
    shape: torch.Size


@dataclass(frozen=True)
class _Layout:
    """Where the tensors of a state are in its row, and how long the row is, by dtype."""

    slots: tuple[_Slot, ...]
    lengths: dict[torch.dtype, int]


class Rows:
    """Memory for so many points, on a CPU taken at once.

    A state is small, and the activations of a step come and go between two of them. Kept where they were made, states
    leave holes that malloc can not use: on a Conv-4, 80 MB at 100 steps, twice what the states themselves take. A GPU's
    allocator has no such trouble, and under vmap the tensors are not ours to place: there, points stay where they are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._layout: _Layout | None = None
        self._rows: dict[torch.dtype, Tensor] = {}

    def placed(self, number: int, point: Point) -> Point:
        """The same point in the row of that number, or where it was if it does not fit there."""
        tensors, closed = tree.opened(point.state)
        if not all(map(_can_be_moved, tensors)):
            return point
        layout = _layout(tensors)
        if self._layout is None:
            self._layout, lengths = layout, layout.lengths.items()
            self._rows = {dtype: torch.empty(self._count, length, dtype=dtype) for dtype, length in lengths}
        if layout != self._layout:
            return point
        pairs = zip(tensors, layout.slots, strict=True)
        return point._replace(state=closed([self._placed(number, tensor, slot) for tensor, slot in pairs]))

    def _placed(self, number: int, tensor: Tensor, slot: _Slot) -> Tensor:
        row = self._rows[slot.dtype][number]
        place = row[slot.offset : slot.offset + tensor.numel()].view(slot.shape)
        return place.copy_(tensor)


def _can_be_moved(tensor: Tensor) -> bool:
    plain = type(tensor) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return plain and tensor.device.type == "cpu" and tensor.layout is torch.strided


def _layout(tensors: list[Tensor]) -> _Layout:
    lengths: dict[torch.dtype, int] = {}
    slots = []
    for tensor in tensors:
        offset = lengths.get(tensor.dtype, 0)
        if tensor.numel() >= _LARGE:
            offset = math.ceil(offset / _ALIGNED) * _ALIGNED
        slots.append(_Slot(tensor.dtype, offset, tensor.shape))
        lengths[tensor.dtype] = offset + tensor.numel()
    return _Layout(tuple(slots), lengths)
