"""Copies that a forward may write into, and tensors that carry every task's axis."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.types import Tensors


def owned(tensors: Mapping[str, Tensor], zero: Tensor | None) -> Tensors:
    """Copies of the tensors; inside vmap each task gets its own.

    torch refuses to write a task's value into a tensor that all tasks share.

    Args:
        tensors: what to copy.
        zero: what `batched_zero` gave for the inputs of the call.
    """
    return {name: value.clone() if zero is None else expanded(value, zero) for name, value in tensors.items()}


def expanded(value: Tensor, zero: Tensor) -> Tensor:
    """A copy with every vmap axis of `zero`."""
    return value | (zero != 0) if value.dtype == torch.bool else value + zero.to(value.dtype)


def version_of(value: Tensor) -> int:
    """A number that grows when the tensor is written into, also inside vmap, where torch counts below its wrappers."""
    functorch = torch._C._functorch
    version = value._version
    while functorch.is_functorch_wrapped_tensor(value):
        value = functorch.get_unwrapped(value)
        version += value._version
    return version


def batched_zero(inputs: Any) -> Tensor | None:
    """A zero that carries every vmap axis of `inputs`, or None where they have none."""
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return None
    zero: Tensor | None = None
    levels: set[int] = set()
    for leaf in tree.tensors(inputs):
        for level in vmap_levels(leaf) - levels:
            levels.add(level)
            own = leaf.detach().new_zeros(())
            zero = own if zero is None else zero + own
    return zero


def vmap_levels(value: Tensor) -> set[int]:
    """The levels of vmap that the tensor has an axis of."""
    functorch = torch._C._functorch
    levels: set[int] = set()
    while functorch.is_functorch_wrapped_tensor(value):
        if functorch.is_batchedtensor(value):
            levels.add(functorch.maybe_get_level(value))
        value = functorch.get_unwrapped(value)
    return levels


def overlapping(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each tensor that shares memory with another one, the name of that."""
    ranges: list[tuple[int, int, int, str]] = []
    for name, value in tensors.items():
        storage = value.untyped_storage().data_ptr() if value.layout == torch.strided and value.numel() else 0
        if storage:  # a tensor on "meta" has none
            first = storage + int(value.storage_offset()) * value.element_size()
            ranges.append((storage, first, first + _extent(value) * value.element_size(), name))
    found: dict[str, str] = {}
    ranges.sort()
    for position, (storage, _, end, name) in enumerate(ranges):
        for other_storage, first, _, other in ranges[position + 1 :]:
            if other_storage != storage or first >= end:
                break
            if _share_elements(tensors[name], tensors[other]):
                found |= {name: other, other: name}
    return found


def _extent(value: Tensor) -> int:
    """How many elements of its storage a tensor spans, from its first one."""
    return 1 + sum((int(size) - 1) * int(stride) for size, stride in zip(value.shape, value.stride(), strict=True))


def _share_elements(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have elements in common; their spans may interleave."""
    if a.dtype != b.dtype:
        return True
    size = max(each.storage_offset() + _extent(each) for each in (a, b))
    taken = torch.zeros(size, dtype=torch.bool)
    taken.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(taken.as_strided(b.shape, b.stride(), b.storage_offset()).any())
