"""torch's errors in terms of what the user wrote: which tensor, why, and what to write instead."""

import os
import re
import traceback
from collections import Counter
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
    "dynamic shape": "makes a tensor whose shape depends on values (a mask as an index, nonzero, unique)",
}


_OTHERS = {
    "saved tensor hooks": "forward uses torch.utils.checkpoint (or other hooks on saved tensors), which torch can not "
    "differentiate twice inside torch.func. Switch it off: model.gradient_checkpointing_disable() in transformers.",
    "does not have vmap support": "forward uses a torch.autograd.Function that torch.vmap can not run. Write "
    "`generate_vmap_rule = True` in its class body, or run tasks one after another: execution.tasks=loop, "
    "metalearn.execution.Loop().",
    "must implement the jvp function for custom autograd": "a loss uses a torch.autograd.Function without jvp, which "
    "forward derivatives need. Give it one, or take a strategy of reverse derivatives: Stepwise(), Unrolled().",
    "data pointer of Tensor that doesn't have storage": "forward takes a tensor to numpy (or to other code outside "
    "torch), which torch.vmap can not do for many tasks at once. Write it with torch, or run tasks one after another: "
    "execution.tasks=loop, metalearn.execution.Loop().",
    "'SparseC": "forward uses sparse tensors in a way that torch.func can not run (under vmap: any). Keep them dense, "
    "or run tasks one after another: execution.tasks=loop, metalearn.execution.Loop().",
}
"""What to do about errors that have one cause, by a part of torch's text."""
_TWO_DTYPES = ("same dtype", "expected scalar type", "should be the same")
_FLOATING = re.compile(r"\b(?:Float|Double|Half|BFloat16|float|double|c10::Half|c10::BFloat16)\b")
_PACKAGE = os.path.dirname(__file__)
_LIBRARIES = (os.path.dirname(torch.__file__) + os.sep, _PACKAGE + os.sep)
_MODELS = os.path.join(_PACKAGE, "models") + os.sep


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
    text = _explanation(str(error), state, error)
    return None if text is None else UsageError(text)


def _explanation(text: str, state: Mapping[str, Tensor], error: RuntimeError) -> str | None:
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
    for sign, told in _OTHERS.items():
        if sign in text:
            return told
    if "must override the setup_context staticmethod" in text:
        return (
            "forward uses a torch.autograd.Function without `setup_context`, which torch.func can not differentiate: "
            "give it one. Where it is torch.utils.checkpoint with use_reentrant=True, switch checkpointing off; where "
            "it is a full backward hook, remove that."
        )
    if any(sign in text for sign in _TWO_DTYPES) and len(_FLOATING.findall(text)) > 1:
        return _of_dtypes(text, state)
    if "vmap" in text:
        for sign, what in _UNDER_VMAP.items():
            if sign in text:
                return (
                    f"forward {what}{line_of(error)}, which torch.vmap can not do for many tasks at once. Use "
                    "torch.where or a mask, or run tasks one after another: execution.tasks=loop, "
                    "metalearn.execution.Loop()."
                )
    return None


def _of_dtypes(text: str, state: Mapping[str, Tensor]) -> str | None:
    dtypes = Counter(value.dtype for value in state.values() if value.is_floating_point())
    if not dtypes:
        return None
    usual = dtypes.most_common(1)[0][0]
    others = [name for name, value in state.items() if value.is_floating_point() and value.dtype != usual]
    told = text.splitlines()[0].rstrip(".")
    if others:
        return (
            f"{others[0]!r} is {state[others[0]].dtype}, other state {usual} ({told}): cast it with .to({usual}), or "
            "all of it with metalearn.tree.cast(state, dtype)."
        )
    return (
        f"all state is {usual}, but forward meets another dtype, perhaps an input's ({told}): cast the input with "
        f".to({usual}), or the model with model.to(dtype)."
    )


def line_of(error: RuntimeError) -> str:
    """Where in the user's code it happened, as `" (file:line: code)"`; empty where none of it is on the way."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_LIBRARIES) or frame.filename.startswith(_MODELS)
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
