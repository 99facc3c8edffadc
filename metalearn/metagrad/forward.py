"""Forward derivatives that stop where reverse ones do.

`torch.no_grad()` holds back reverse derivatives alone: under `torch.func.jvp`, what spectral norm, a codebook or a
moving average compute in it would get a derivative after all, and a meta-gradient another value.
"""

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.func import jvp
from torch.overrides import TorchFunctionMode


def pushforward(
    function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...], *, has_aux: bool = False
) -> Any:
    """As `torch.func.jvp`, with no derivative of what `function` computes in `torch.no_grad()`."""
    _load_decompositions()
    with torch.enable_grad(), _Stopping():  # a caller's own no_grad is not the function's
        return jvp(function, primals, tangents, has_aux=has_aux)


@cache
def _load_decompositions() -> None:
    """What torch loads at the first jvp, without its warning of a part of torch.jit that it uses itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


class _Stopping(TorchFunctionMode):
    """Switches forward derivatives off for the calls that are made without grad."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        with _set_fwd_grad_enabled(False):
            return func(*args, **(kwargs or {}))
