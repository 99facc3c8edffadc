"""Values that forward reads out of tensors: under vmap there is one where all tasks agree.

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


def _read(read: Callable[[Tensor], Any]) -> Callable[..., Any]:
    def value_of(call: Call, x: Tensor) -> Any:
        value = agreed(x)
        return read(x if value is None else value)  # torch's own error where tasks differ

    return value_of


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    read: _read(read)
    for read in (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item, Tensor.tolist)
}
