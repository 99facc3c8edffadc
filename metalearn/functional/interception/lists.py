"""Functions over lists of tensors (`torch._foreach_…`), which vmap has no rules for, one tensor after another."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.functional.interception.call import Call

_NAMES = ("add", "sub", "mul", "div", "lerp", "addcmul", "addcdiv", "neg", "abs", "exp", "sqrt", "pow")


def _each(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    def run(call: Call, tensors: Sequence[Tensor], *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(
            function(
                tensor,
                *(_of(index, each) for each in args),
                **{name: _of(index, each) for name, each in kwargs.items()},
            )
            for index, tensor in enumerate(tensors)
        )

    return run


def _of(index: int, given: Any) -> Any:
    """What one tensor of the list is combined with: its own, or what all have in common."""
    return given[index] if isinstance(given, list | tuple) else given


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return target.copy_(source, non_blocking)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    **{getattr(torch, f"_foreach_{name}"): _each(getattr(torch, name)) for name in _NAMES},
    **{getattr(torch, f"_foreach_{name}_"): _each(getattr(Tensor, f"{name}_")) for name in _NAMES},
    torch._foreach_zero_: _each(Tensor.zero_),
    torch._foreach_copy_: _each(_copy),
}
