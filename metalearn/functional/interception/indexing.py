"""Indices that vmap can not take, in forms that it can."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from metalearn.functional.interception.call import Call
from metalearn.functional.interception.decisions import agreed


def _getitem(call: Call, x: Tensor, index: Any) -> Tensor:
    return read_at(x, index)


def read_at(x: Tensor, index: Any) -> Tensor:
    """`x[index]`, also at 0-dimensional integer tensors, of which torch would ask for the number."""
    index = _with_agreed_masks(index)
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
    """Writing at a 0-dimensional integer tensor: the one element of an index of length 1; or at a mask."""
    index = _with_agreed_masks(index)
    if _is_mask(index) and index.shape == x.shape[: index.dim()] and _is_number(value):
        # How many places it has differs from task to task, but not what is written there.
        written = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=x.dtype, device=x.device)
        x.copy_(torch.where(index.reshape(*index.shape, *[1] * (x.dim() - index.dim())), written.to(x.dtype), x))
        return
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


def _with_agreed_masks(index: Any) -> Any:
    """The index, with masks that are the same for all tasks (a buffer, say) without their task axis."""
    if type(index) is tuple and any(map(_is_mask, index)):
        return tuple(map(_with_agreed_masks, index))
    if _is_mask(index):
        mask = agreed(index)
        return index if mask is None else mask
    return index


def _is_mask(part: Any) -> bool:
    return (
        isinstance(part, Tensor) and part.dtype == torch.bool and torch._C._functorch.is_functorch_wrapped_tensor(part)
    )


def _is_number(value: Any) -> bool:
    return value.dim() == 0 if isinstance(value, Tensor) else isinstance(value, bool | int | float | complex)


def _shaped_by_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose result has a shape that depends on values: vmap can run it where all tasks have the same."""

    def run(call: Call, *args: Any, **kwargs: Any) -> Any:
        values = agreed(args[0]) if len(args) == 1 else None  # with more, torch.where is another function
        return function(*args, **kwargs) if values is None else function(values, **kwargs)

    return run


def _masked_select(call: Call, input: Tensor, mask: Tensor) -> Tensor:
    values = agreed(mask)
    if values is None or values is mask:
        return input.masked_select(mask)
    # The derivative of torch's has no rule for vmap, but a slow way around.
    shape = torch.broadcast_shapes(input.shape, values.shape)  # type: ignore[no-untyped-call]
    return input.expand(shape)[values.expand(shape)]


_SHAPED: tuple[Any, ...] = (torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere, torch.where)


def _broadcasts(part: Any) -> bool:
    return isinstance(part, list) or (isinstance(part, Tensor) and part.dim() > 0)


def _is_a_tasks_number(part: Any) -> bool:
    return (
        isinstance(part, Tensor)
        and part.dim() == 0
        and part.dtype in (torch.int64, torch.int32, torch.int16, torch.int8)
        and (
            torch._C._functorch.is_functorch_wrapped_tensor(part) or isinstance(part, FakeTensor)
        )  # no number to ask for
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
    torch.masked_select: _masked_select,
    Tensor.masked_select: _masked_select,
    **{function: _shaped_by_values(function) for function in _SHAPED},
}
