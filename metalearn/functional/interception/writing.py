"""Writes into tensors: past autograd, and into tensors that a forward makes itself; copies to write into."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.functional.interception.call import Call
from metalearn.functional.ownership import expanded, version_of


def _data(call: Call, x: Tensor, *args: Any) -> Tensor:
    # A write through `.data` does not count as a write to x; the alias tells.
    alias = x.detach()
    call.aliases.append((x, alias, version_of(alias)))
    return alias


def _set_data(call: Call, x: Tensor, value: Tensor) -> None:
    if value.shape != x.shape:
        raise UsageError(
            f"forward sets .data of a tensor of shape {list(x.shape)} to one of shape {list(value.shape)}. "
            "Assign the new tensor to the module's attribute instead."
        )
    _data(call, x).copy_(value)


def _deep_copy(call: Call, x: Tensor, memo: dict[int, Any]) -> Tensor:
    # torch copies a parameter's value, and no history. State held outside has one, which it refuses to copy.
    if id(x) not in memo:
        memo[id(x)] = x.detach().clone()
    copy: Tensor = memo[id(x)]
    return copy


def _made(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(call: Call, *args: Any, **kwargs: Any) -> Tensor:
        made = factory(*args, **kwargs)
        # Only where forward is known to write tasks' values into what it makes: it costs each task a tensor.
        return made if call.zero is None else expanded(made, call.zero)

    return make


FACTORIES: tuple[Callable[..., Tensor], ...] = (
    torch.zeros, torch.ones, torch.empty, torch.full, torch.zeros_like, torch.ones_like, torch.empty_like,
    torch.full_like, Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full, Tensor.new_tensor,
    Tensor.new, torch.tensor, torch.eye, torch.arange,
)  # fmt: skip

REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    Tensor.data.__get__: _data,  # type: ignore[attr-defined]
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    Tensor.__deepcopy__: _deep_copy,
    **{factory: _made(factory) for factory in FACTORIES},
}
