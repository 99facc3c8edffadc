"""`check_stateless`: whether a module keeps Python state that changes its output, as no pure function can."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import random, tree
from metalearn.errors import UsageError
from metalearn.functional import RNG, functionalize
from metalearn.functional.interception import Interception
from metalearn.functional.skeleton import BOOKKEEPING, Skeleton, places_of


@dataclass(frozen=True)
class StatelessReport:
    """What `check_stateless` found in a module whose output depends on its inputs and state alone.

    Attributes:
        state: the state that forward changes, by name: it comes back from a call of `functionalize(module)`.
        harmless: other attributes that forward changed without a change in its output (a cache, say). In a call of the
            functional model they are as they were when the module was functionalized.
    """

    state: tuple[str, ...]
    harmless: tuple[str, ...]


def check_stateless(module: nn.Module, inputs: Any, *, seed: int = 0, **kwargs: Any) -> StatelessReport:
    """Refuses a module whose output depends on more than its inputs, parameters, buffers and random key.

    A counter in a Python attribute, a tensor kept without `register_buffer`, a list that grows, a global: in a call of
    a functional model each is as it was at the start, so that the module would silently compute something else than in
    plain PyTorch. The module is not changed.

    Args:
        module: any module that `functionalize` takes, in the mode that is meant.
        inputs: what `forward` is called with; a tuple holds positional arguments.
        seed: of the key that dropout draws from, the same in all calls.
        **kwargs: keyword arguments of `forward`.

    Returns:
        The report, if the output depends on nothing hidden.

    Raises:
        UsageError: it does; the attribute is named where there is one.

    Example:
        >>> check_stateless(nn.BatchNorm1d(3), torch.randn(4, 3)).state
        ('num_batches_tracked', 'running_mean', 'running_var')
    """
    args = inputs if type(inputs) is tuple else (inputs,)
    runs = _Runs(module, args, kwargs, seed)
    first, before = runs.clean()
    again, _ = runs.clean()
    if not _same(first, again):
        raise UsageError(
            f"{type(module).__name__} gives other outputs in a second call with the same state, though its attributes "
            "are the same: it depends on something outside it (a global, a closure, an object it shares, a generator). "
            "Hold that in a registered buffer, or pass it to forward."
        )
    changed = runs.changed_attributes()
    if changed and not _same(first, runs.after_changes(changed)):
        culprits = [name for name in changed if not _same(first, runs.after_changes({name: changed[name]}))]
        named = culprits or list(changed)
        raise UsageError(
            f"{type(module).__name__} keeps {' and '.join(map(repr, named[:3]))} from call to call in a plain "
            f"attribute ({_change(changed[named[0]])}), and its output depends on it: a functional model would forget "
            "it. Hold it in a buffer, self.register_buffer(name, tensor), which may change in forward."
        )
    return StatelessReport(tuple(sorted(before)), tuple(changed))


@dataclass(frozen=True)
class _Changed:
    owner: dict[str, Any]
    attribute: str
    before: Any
    after: Any


_MISSING = "missing"


class _Runs:
    """Calls of one skeleton of the module, with its attributes as they were or as a call has left them."""

    def __init__(self, module: nn.Module, args: Any, kwargs: Any, seed: int) -> None:
        model = functionalize(module)
        self._params = {name: value.requires_grad_(False) for name, value in model.params.items()}
        self._state = {**self._params, **{name: value for name, value in model.buffers.items() if name != RNG}}
        device = model.buffers[RNG].device
        self._key, self._inputs = random.key(seed, device=device), (args, kwargs)
        self._skeleton = Skeleton(module, places_of(module), training=None)
        self._names = {id(part): name for name, part in self._skeleton.root.named_modules()}
        self._last: dict[str, _Changed] = {}

    def clean(self) -> tuple[Any, set[str]]:
        """The output, and the names of the state that forward changed."""
        output, changed = self._call()
        self._last = self._differences()
        self._skeleton.clear()
        return output, changed

    def changed_attributes(self) -> dict[str, _Changed]:
        """What the last clean call changed, by the attribute's full name."""
        return self._last

    def after_changes(self, changed: Mapping[str, _Changed]) -> Any:
        """The output of a call that finds these attributes as the first call has left them."""
        for each in changed.values():
            if each.after is not _MISSING:
                each.owner[each.attribute] = copy(each.after) if type(each.after) in (list, dict, set) else each.after
        output, _ = self._call()
        self._skeleton.clear()
        return output

    def _call(self) -> tuple[Any, set[str]]:
        state = {name: value.clone() for name, value in self._state.items()}
        args, kwargs = tree.map_tensors(Tensor.clone, self._inputs)
        self._skeleton.fill(state)
        with torch.no_grad(), Interception(self._key, foreign={}):
            output = self._skeleton.root(*args, **kwargs)
        after = self._skeleton.read(state)
        changed = {name for name, value in after.items() if not _equal(value, self._state[name])}
        return tree.map_tensors(Tensor.clone, output), changed

    def _differences(self) -> dict[str, _Changed]:
        found: dict[str, _Changed] = {}
        for part, attributes in self._skeleton.attributes():
            prefix = self._names[id(part)]
            initial = {**attributes.fixed, **attributes.mutable}
            for name in sorted({*initial, *attributes.current} - BOOKKEEPING):
                before, after = initial.get(name, _MISSING), attributes.current.get(name, _MISSING)
                if before is not after and not _equal(before, after):
                    found[f"{prefix}.{name}" if prefix else name] = _Changed(attributes.current, name, before, after)
        return found


def _same(first: Any, second: Any) -> bool:
    """Whether two outputs are the same bit for bit."""
    ours, theirs = tree.flatten(first)[0], tree.flatten(second)[0]
    return len(ours) == len(theirs) and all(_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    try:
        return bool(a == b)
    except Exception:  # an object of somebody's own, compared in its own way
        return a is b


def _change(changed: _Changed) -> str:
    return f"{_shown(changed.before)} before the first call, {_shown(changed.after)} after it"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    text = value if value is _MISSING else repr(value)
    return text if len(text) <= 30 else f"a {type(value).__name__}"
