"""State dicts as torch's modules give and take them, and writing state back into a module."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.functional import RNG, FunctionalModel
from metalearn.state.fit import check_dicts, check_fit
from metalearn.state.kinds import parameters_and_buffers
from metalearn.types import Tensors

_EXTRA_STATE = "_extra_state"


def to_state_dict(
    model: FunctionalModel, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What `module.state_dict()` would hold if the module held this state, for `module.load_state_dict`.

    A tied tensor is in it under each of its names, a buffer that is not persistent is not, nor is the random key. A
    module's extra state (`get_extra_state`) is not among params and buffers: the module's own is taken. The values
    share memory with those given, as a module's own do, and have no history.

    Args:
        model: whose state it is.
        params: all its parameters; one that `buffers` holds may be left out, and counts there.
        buffers: all its buffers, the random key or not.

    Raises:
        UsageError: a name is missing, extra or misspelt, or a shape or kind of dtype differs.
    """
    _check_model(model)
    check_dicts(params, buffers, what="to_state_dict(model, params, buffers)")
    state = _checked({**params, **buffers}, _reference(model), of="the model")
    own = model.module.state_dict(keep_vars=True)
    result: dict[str, Any] = OrderedDict()
    for key, name in _names_of_keys(model, own).items():
        result[key] = own[key] if name is None else state[name].detach()
    result._metadata = getattr(own, "_metadata", None)  # type: ignore[attr-defined]  # versions, for load_state_dict
    return result


def from_state_dict(model: FunctionalModel, state_dict: Mapping[str, Any]) -> tuple[Tensors, Tensors]:
    """The parameters and buffers that a state dict holds, for a call of the model.

    Values are copied, to the dtypes and devices of the model. What a state dict does not have, non-persistent buffers
    and (unless it is given) the random key, is the model's own. Of a tied tensor's names one is enough. A module's
    extra state is no tensor by name and stays with the module.

    Args:
        model: of the module that the state dict fits.
        state_dict: of `module.state_dict()`, `to_state_dict`, or a file; with `"rng"` or without.

    Raises:
        UsageError: a name is missing, extra or misspelt, a shape or kind of dtype differs, or the values under the
            names of one tied tensor differ. The first problem is named with its fix, the others are counted.

    Example:
        >>> from metalearn import functionalize
        >>> model, trained = functionalize(nn.Linear(2, 1)), nn.Linear(2, 1)
        >>> params, buffers = from_state_dict(model, trained.state_dict())
        >>> torch.equal(params["weight"], trained.weight)
        True
    """
    if not isinstance(state_dict, Mapping):
        raise UsageError(f"the state dict is of type {type(state_dict).__name__}: pass module.state_dict() or a dict.")
    _check_model(model)
    reference = _reference(model, with_key=True)
    keys = _names_of_keys(model, model.module.state_dict(keep_vars=True))
    found = {key: value for key, value in state_dict.items() if keys.get(key, key) is not None}
    given = {name for key, name in keys.items() if key in found}
    expected = {
        key: reference[name] for key, name in keys.items() if name is not None and (key in found or name not in given)
    }
    if RNG in found and RNG in reference:
        expected[RNG] = reference[RNG]
    check_fit(found, expected, what="the state dict", of=f"the {type(model.module).__name__}")
    values: Tensors = {}
    for key in found:
        name = keys.get(key) or RNG
        value = _like(key, found[key], reference[name])
        if name in values and not _same(value, values[name]):
            raise UsageError(
                f"the state dict has two values for one tensor, which the module knows as {name!r} and as {key!r}: "
                "they are tied there. Give one of them, or both the same."
            )
        values.setdefault(name, value)
    state = {**reference, **values}
    return {name: state[name] for name in model.params}, {
        name: state[name] for name in state if name not in model.params
    }


def load_into(module: nn.Module, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    """Writes state into a module, in place: whoever holds its parameters (an optimizer, another module) goes on.

    The module's dtypes and devices stay, and nothing is written unless everything fits.

    Args:
        module: the one that was functionalized, or another one of the same names and shapes.
        params: all its parameters by name; one that `buffers` holds may be left out, and counts there.
        buffers: all its buffers; the random key is left out, as a module has no place for it.

    Raises:
        UsageError: a name is missing, extra or misspelt, a shape or kind of dtype differs, the module has lazy tensors
            or a tensor that can not be written to, or values are of a torch.func transform that is going on.

    Example:
        >>> from metalearn import functionalize
        >>> module = nn.Linear(2, 1)
        >>> model = functionalize(module)
        >>> load_into(module, {name: torch.zeros_like(value) for name, value in model.params.items()}, model.buffers)
        >>> module.weight
        Parameter containing:
        tensor([[0., 0.]], requires_grad=True)
    """
    if not isinstance(module, nn.Module):
        fix = ": pass model.module" if isinstance(module, FunctionalModel) else ""
        raise UsageError(f"load_into writes into a torch.nn.Module, got a {type(module).__name__}{fix}.")
    check_dicts(params, buffers, what="load_into(module, params, buffers)")
    own = parameters_and_buffers(module)
    for name, value in own.items():
        if isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            raise UsageError(f"the module's {name!r} has no shape yet: call it once on an example first.")
    state = _checked({**params, **buffers}, own, of=f"the {type(module).__name__}")
    with torch.no_grad():
        for target, value in list(_writes(own, state)):
            target.copy_(value)


def _writes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    memory = {_memory(target) for target in own.values()}
    for name, target in own.items():
        value = state[name].detach()
        if torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise UsageError(
                f"{name!r} belongs to a torch.func transform (vmap, grad) that is going on: return it from there, and "
                "call load_into outside."
            )
        if target.is_meta or value.is_meta:
            whose, fix = (
                ("the module's", "call module.to_empty(device=…)") if target.is_meta else ("the value of", "make it")
            )
            raise UsageError(f"{whose} {name!r} is on the meta device, without numbers: {fix} first.")
        if torch._debug_has_internal_overlap(target) == 1:
            if torch.equal(target, value.to(target.device, target.dtype)):
                continue
            raise UsageError(
                f"the module's {name!r} is an expanded tensor, whose entries share memory, and can not be written to: "
                "register it with .contiguous() in the module."
            )
        # A value may be a view of the module's own memory: of another entry's, that is written to first.
        yield target, value.clone() if value.numel() and _memory(value) in memory else value


def _check_model(model: Any) -> None:
    if not isinstance(model, FunctionalModel):
        raise UsageError(f"model is a {type(model).__name__}, expected metalearn.functionalize(module).")


def _memory(value: Tensor) -> tuple[torch.device, int]:
    return value.device, value.untyped_storage().data_ptr()


def _checked(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, of: str) -> Tensors:
    found = {name: value for name, value in state.items() if name != RNG}
    check_fit(found, expected, what="the state", of=of)
    return found


def _reference(model: FunctionalModel, *, with_key: bool = False) -> Tensors:
    state = {**model.params, **{name: value for name, value in model.buffers.items() if name not in model.params}}
    return {name: value for name, value in state.items() if with_key or name != RNG}


def _like(key: str, value: Tensor, own: Tensor) -> Tensor:
    if value.is_meta and not own.is_meta:
        raise UsageError(f"the state dict's {key!r} is on the meta device, without numbers: make it first.")
    return value.detach().to(own.device, own.dtype, copy=True)


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())  # NaN for NaN


def _names_of_keys(model: FunctionalModel, own: Mapping[str, Any]) -> dict[str, str | None]:
    """The name of the tensor under each key of the module's own state dict; None for its extra state."""
    names = {id(value): name for name, value in parameters_and_buffers(model.module).items()}
    keys: dict[str, str | None] = {}
    for key, value in own.items():
        name = names.get(id(value))
        if name is None and key.rpartition(".")[2] != _EXTRA_STATE:
            raise UsageError(
                f"the module's state_dict() holds {key!r}, which is no parameter or buffer of it (a hook makes it): "
                "metalearn.state.save keeps params and buffers without a state dict."
            )
        if name is not None and name not in model.params and name not in model.buffers:
            raise UsageError(f"the module has got {name!r} since it was functionalized: functionalize it again.")
        keys[key] = name
    return keys
