"""torch's errors in terms of what the user wrote: which tensor, why, and what to write instead."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from metalearn.errors import UsageError

_UNBATCHED_WRITE = (
    "is not possible because there exists a Tensor `other` in extra_args",
    "doesn't match the broadcast shape",
)
_OVERWRITTEN = re.compile(r"modified by an inplace operation: \[\S+ (\[[\d, ]*\])\], which is output \d+ of (\w+)")
_UNDER_VMAP = {
    "calling .item()": "reads a number out of a tensor (.item(), float(), int(), tolist())",
    "data-dependent control flow": "decides by a tensor's value (`if`, `while`, bool())",
    "support dynamic shape": "makes a tensor whose shape depends on values (a mask as an index, nonzero, unique)",
}


def writes_into_a_shared_tensor(error: RuntimeError) -> bool:
    """Whether vmap refused to write a task's value into a tensor that has no task axis."""
    inside_vmap: bool = torch._C._functorch.peek_interpreter_stack() is not None
    return inside_vmap and any(text in str(error) for text in _UNBATCHED_WRITE)


@contextmanager
def explained(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, those errors of torch that a user can act upon become UsageErrors; `state` as in `explanation`."""
    try:
        yield
    except RuntimeError as error:
        told = explanation(error, state)
        if told is None:
            raise
        raise told from error


def explanation(error: RuntimeError, state: Mapping[str, Tensor]) -> UsageError | None:
    """What the user can do about an error of torch, or None where there is nothing to add.

    Args:
        error: torch's.
        state: the tensors that may be meant, by name.
    """
    text = _explanation(str(error), state)
    return None if text is None else UsageError(text)


def _explanation(text: str, state: Mapping[str, Tensor]) -> str | None:
    overwritten = _OVERWRITTEN.search(text)
    if overwritten:
        shape, operation = overwritten.groups()
        names = [name for name, value in state.items() if str(list(value.shape)) == shape]
        perhaps = f", perhaps {' or '.join(map(repr, names[:2]))}" if names else ""
        return (
            f"a tensor of shape {shape} (last written by {operation}{perhaps}) is changed in place after a gradient "
            "needs its old value. Write `x = x + y` for `x += y` there; torch.autograd.set_detect_anomaly(True) shows "
            "the line."
        )
    if "saved tensor hooks" in text:
        return (
            "forward uses torch.utils.checkpoint (or other hooks on saved tensors), which torch can not differentiate "
            "twice inside torch.func. Switch it off: model.gradient_checkpointing_disable() in transformers."
        )
    if "must override the setup_context staticmethod" in text:
        return (
            "forward uses a torch.autograd.Function without `setup_context`, which torch.func can not differentiate: "
            "give it one, or, where it is torch.utils.checkpoint with use_reentrant=True, switch checkpointing off."
        )
    if "vmap" in text:
        for sign, what in _UNDER_VMAP.items():
            if sign in text:
                return (
                    f"forward {what}, which torch.vmap can not do for many tasks at once. Use torch.where or a mask, "
                    "or run tasks one after another: execution.tasks=loop, metalearn.execution.Loop()."
                )
    return None
