"""Values that forward reads out of tensors, also as numpy's arrays: under vmap there is one where all tasks agree.

vmap gives a task axis to every buffer, so that a mask or a list of lengths that a module keeps has one too. torch
refuses to read it, though it is the same for all tasks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.functional.interception.call import Call


def agreed(x: Tensor) -> Tensor | None:
    """The value of all tasks, without the axes and gradients of any transform; None where tasks differ."""
    functorch = torch._C._functorch
    if not functorch.is_functorch_wrapped_tensor(x):
        return x
    inner = agreed(functorch.get_unwrapped(x))
    if inner is None or not functorch.is_batchedtensor(x):
        return inner
    tasks = inner.movedim(functorch.maybe_get_bdim(x), 0)
    return tasks[0] if bool((tasks == tasks[:1]).all()) else None


def _read(read: Callable[..., Any]) -> Callable[..., Any]:
    def value_of(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        value = agreed(x)
        if value is None:
            return read(x, *args, **kwargs)  # torch's own error where tasks differ
        with torch._C._DisableFuncTorch():
            return read(value, *args, **kwargs)

    return value_of


_READS: tuple[Callable[..., Any], ...] = (
    Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item, Tensor.tolist, Tensor.numpy,
    Tensor.__array__,
)  # fmt: skip

REPLACEMENTS: dict[Any, Callable[..., Any]] = {read: _read(read) for read in _READS}
