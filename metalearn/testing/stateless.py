"""`check_stateless`: whether a module keeps Python state that changes its output, as no pure function can."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import random, tree
from metalearn.errors import UsageError
from metalearn.functional import RNG, functionalize
from metalearn.functional.attributes import BOOKKEEPING, copied, tensors_in
from metalearn.functional.interception import Interception
from metalearn.functional.skeleton import Skeleton, places_of


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
    found = runs.changes(_NUM_CALLS)
    for calls, changed in enumerate(found, start=1):
        if changed and runs.depends_on(changed):
            culprits = [name for name in changed if runs.depends_on({name: changed[name]})]
            named = culprits or list(changed)
            raise UsageError(
                f"{type(module).__name__} keeps {' and '.join(map(repr, named[:3]))} from call to call in a plain "
                f"attribute ({_change(changed[named[0]], calls)}), and its output depends on it: a functional model "
                "would forget it. Hold it in a buffer, self.register_buffer(name, tensor), which may change in forward."
            )
    return StatelessReport(tuple(sorted(before)), tuple(dict.fromkeys(name for changed in found for name in changed)))


@dataclass(frozen=True)
class _Changed:
    owner: dict[str, Any]
    attribute: str
    before: Any
    after: Any

    def put(self) -> None:
        """Gives the object the attribute as it was left."""
        if self.after is _MISSING:
            del self.owner[self.attribute]
        else:
            self.owner[self.attribute] = _kept(self.after)


_MISSING = "missing"
_NUM_CALLS = 3  # what a call leaves behind may matter to the third one only


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

    def clean(self) -> tuple[Any, set[str]]:
        """The output, and the names of the state that forward changed."""
        output, changed = self._call(self._inputs)
        self._skeleton.clear()
        return output, changed

    def changes(self, count: int) -> list[dict[str, _Changed]]:
        """What so many calls in a row have changed after each of them, by the attribute's full name."""
        found: list[dict[str, _Changed]] = []
        for _ in range(count):
            self._call(self._inputs, found[-1] if found else {})
            found.append(self._differences())
            self._skeleton.clear()
        return found

    def depends_on(self, changed: Mapping[str, _Changed]) -> bool:
        """Whether a call that finds these attributes as an earlier one has left them gives another output."""
        return any(not _same(self._output(inputs, {}), self._output(inputs, changed)) for inputs in self._sets())

    def _sets(self) -> list[Any]:
        """The inputs, and others like them: what is kept of an input does not show where the next one is the same."""
        others = tree.map_tensors(_other, self._inputs)
        try:
            self._output(others, {})
        except Exception:  # forward does not take them; the inputs that were given are what there is to go by
            return [self._inputs]
        return [self._inputs, others]

    def _output(self, inputs: Any, changed: Mapping[str, _Changed]) -> Any:
        output, _ = self._call(inputs, changed)
        self._skeleton.clear()
        return output

    def _call(self, inputs: Any, changed: Mapping[str, _Changed] = MappingProxyType({})) -> tuple[Any, set[str]]:
        state = {name: value.clone() for name, value in self._state.items()}
        args, kwargs = tree.map_tensors(Tensor.clone, inputs)
        self._skeleton.fill(state, {name: value.clone() for name, value in self._skeleton.loose.items()})
        for each in changed.values():
            each.put()
        with torch.no_grad(), Interception(self._key, foreign={}):
            output = self._skeleton.root(*args, **kwargs)
        after = self._skeleton.read(state)
        names = {name for name, value in after.items() if not _equal(value, self._state[name])}
        return tree.map_tensors(Tensor.clone, output), names

    def _differences(self) -> dict[str, _Changed]:
        found: dict[str, _Changed] = {}
        for part, attributes in self._skeleton.attributes():
            prefix = self._names[id(part)]
            initial = attributes.initial
            for name in sorted({*initial, *attributes.current} - BOOKKEEPING):
                before, after = initial.get(name, _MISSING), attributes.current.get(name, _MISSING)
                if before is not after and not _equal(before, after):
                    found[f"{prefix}.{name}" if prefix else name] = _Changed(
                        attributes.current, name, before, _kept(after)
                    )
        return found


def _same(first: Any, second: Any) -> bool:
    """Whether two outputs are the same bit for bit."""
    ours, theirs = tree.flatten(first)[0], tree.flatten(second)[0]
    return len(ours) == len(theirs) and all(_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _equal(a: Any, b: Any, depth: int = 4) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    if a is b or not depth:
        return a is b
    if isinstance(a, (list, tuple, deque)) and isinstance(b, (list, tuple, deque)):
        return len(a) == len(b) and all(_equal(x, y, depth) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name], depth) for name in a)
    try:
        if bool(a == b):
            return True
    except Exception:  # an object of somebody's own, compared in its own way: what is in it counts
        pass
    return type(a) is type(b) and hasattr(a, "__dict__") and _equal(vars(a), vars(b), depth - 1)


def _other(x: Tensor) -> Tensor:
    """Other values of the same kind: labels stay labels, probabilities stay probabilities."""
    rolled = x.flatten().roll(1).view(x.shape)
    return rolled * 0.5 if x.is_floating_point() else rolled


def _kept(value: Any) -> Any:
    """A copy that a later call can not write into."""
    return copied(value, {id(x): x.clone() for x in tensors_in(value)})


def _change(changed: _Changed, calls: int) -> str:
    after = "it" if calls == 1 else f"{calls} calls"
    return f"{_shown(changed.before)} before the first call, {_shown(changed.after)} after {after}"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    text = value if value is _MISSING else repr(value)
    return text if len(text) <= 30 else f"a {type(value).__name__}"
