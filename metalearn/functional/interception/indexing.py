"""Indices that vmap can not take, in forms that it can."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.functional.interception.call import Call


def _getitem(call: Call, x: Tensor, index: Any) -> Tensor:
    """Reading at 0-dimensional integer tensors, of which torch would ask for the number."""
    parts = index if type(index) is tuple else (index,)
    # Other tensors in the index broadcast with it: that is left to torch, and to its own error.
    if not any(map(_is_a_tasks_number, parts)) or any(map(_broadcasts, parts)):
        return x[index]
    plain: list[Any] = []
    axis = 0
    for position, part in enumerate(parts):
        plain.append(part)
        if part is Ellipsis:
            axis = x.dim() - sum(each is not None for each in parts[position + 1 :])
            continue
        if _is_a_tasks_number(part):
            x = x.index_select(axis, torch.where(part < 0, part + x.shape[axis], part)[None])
            plain[-1] = 0
        axis += part is not None
    return x[tuple(plain)]


def _setitem(call: Call, x: Tensor, index: Any, value: Any) -> None:
    """Writing at a 0-dimensional integer tensor: the one element of an index of length 1."""
    first, rest = (index[0], index[1:]) if type(index) is tuple and index else (index, ())
    if not _is_a_tasks_number(first) or any(isinstance(part, Tensor | list) for part in rest):
        x[index] = value
        return
    element = (0, *rest)
    if isinstance(value, Tensor) and value.dim() == x[element].dim():
        value = value[None]
    # A copy: the gradient keeps the index, and forward may count it up.
    place = (first[None].clone(), *rest)
    x[place] = value


def _broadcasts(part: Any) -> bool:
    return isinstance(part, list) or (isinstance(part, Tensor) and part.dim() > 0)


def _is_a_tasks_number(part: Any) -> bool:
    return (
        isinstance(part, Tensor)
        and part.dim() == 0
        and part.dtype in (torch.int64, torch.int32, torch.int16, torch.int8)
        and torch._C._functorch.is_functorch_wrapped_tensor(part)
    )


def _one_hot(call: Call, tensor: Tensor, num_classes: int = -1) -> Tensor:
    # torch's own reads the labels to check them. Under vmap a label out of range gives a row of zeros instead.
    if num_classes < 1 or not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return F.one_hot(tensor, num_classes)
    return (tensor[..., None] == torch.arange(num_classes, device=tensor.device)).to(torch.int64)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _getitem,
    Tensor.__setitem__: _setitem,
    F.one_hot: _one_hot,
}
