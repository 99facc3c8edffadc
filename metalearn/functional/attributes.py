"""What a skeleton's objects hold beside state: before every call it is as it was when the module was functionalized.

Lists, dicts and their like are copied, however deep, and objects that share one go on sharing it. Other objects are the
module's own: what forward writes into those stays (`metalearn.testing.check_stateless` tells).
"""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, cast

from torch import Tensor, nn

from metalearn.functional.closures import rebound

BOOKKEEPING = frozenset(nn.Module().__dict__) - {"training"}
"""What torch keeps in every module: tensors, submodules, hooks."""

HOOKS = tuple(name for name, value in nn.Module().__dict__.items() if isinstance(value, dict) and "hooks" in name)
"""Those of them that hold hooks."""

Copies = dict[int, Any]
"""Copies made so far, by the id of what they are copies of; also stands for what must be put in another's place."""

_DICTS = (dict, OrderedDict, defaultdict, Counter)
_LISTS = (list, deque)
_PLAIN = (set, bytearray)
_MUTABLE = (*_DICTS, *_LISTS, *_PLAIN)


@dataclass(frozen=True)
class Attributes:
    """The attributes of one object of a skeleton other than torch's bookkeeping, as they are before every call.

    Attributes:
        current: the object's own dict.
        fixed: those that no call can write into.
        flat: those that are copied for each call, with nothing in them to copy.
        deep: those that are copied with what is in them, or that hold tensors.
        hooks: torch's bookkeeping of hooks.
        count: how many entries the object's dict has.
    """

    current: dict[str, Any]
    fixed: Mapping[str, Any]
    flat: Mapping[str, Any]
    deep: Mapping[str, Any]
    hooks: Mapping[str, Mapping[Any, Any]]
    count: int

    @property
    def initial(self) -> dict[str, Any]:
        """All of them, as they are before every call."""
        return {**self.fixed, **self.flat, **self.deep}

    def restore(self, copies: Copies) -> None:
        """Undoes what a call has changed; `copies` is the same for all objects of a skeleton."""
        self.current.update(self.fixed)
        for name, value in self.flat.items():
            if id(value) not in copies:
                copies[id(value)] = copy(value)
            self.current[name] = copies[id(value)]
        for name, value in self.deep.items():
            self.current[name] = copied(value, copies)
        if len(self.current) != self.count:
            known = self.initial.keys() | BOOKKEEPING
            for name in [name for name in self.current if name not in known]:
                del self.current[name]

    def restore_hooks(self) -> None:
        """Takes away the hooks that a call has registered."""
        for name, hooks in self.hooks.items():
            if self.current[name] != hooks:
                self.current[name] = copy(hooks)


def attributes_of(shadow: nn.Module, translated: Callable[[Any], Any]) -> Attributes:
    """The attributes of an object of a skeleton, as `translated` gives them."""
    current = shadow.__dict__
    hooks = {name: translated(current[name]) for name in HOOKS if name in current}
    current.update(hooks)
    own = {name: translated(value) for name, value in current.items() if name not in BOOKKEEPING}
    if isinstance(shadow, nn.RNNBase):
        own["_flat_weights"] = []
    mutable = {name: value for name, value in own.items() if _is_mutable(value)}
    flat = {name: value for name, value in mutable.items() if not any(map(_is_mutable, _entries(value)))}
    return Attributes(
        current=current,
        fixed={name: value for name, value in own.items() if name not in mutable},
        flat={name: value for name, value in flat.items() if not isinstance(value, Tensor)},
        deep={name: value for name, value in mutable.items() if name not in flat or isinstance(value, Tensor)},
        hooks={name: copy(value) for name, value in hooks.items()},
        count=len(current),
    )


def translation(shadows: Mapping[int, nn.Module]) -> Callable[[Any], Any]:
    """Copies values for a skeleton, with its own objects (`shadows`, by the id of the original) for the module's."""
    copies: Copies = dict(shadows)

    def translated(value: Any) -> Any:
        if isinstance(value, MethodType) and id(value.__self__) in shadows:
            return MethodType(value.__func__, shadows[id(value.__self__)])
        if type(value) is partial:
            given = {name: translated(entry) for name, entry in value.keywords.items()}
            return partial(translated(value.func), *map(translated, value.args), **given)
        if type(value) is FunctionType:
            return rebound(value, translated, copies)
        return copied(value, copies, translated)

    return translated


def copied(value: Any, copies: Copies, inner: Callable[[Any], Any] | None = None) -> Any:
    """A copy of a container and of those inside it; anything else stays, but for what `copies` has in its place.

    Args:
        value: what to copy.
        copies: see `Copies`; what is copied here is added.
        inner: how the entries are copied; by default likewise.
    """
    kind = type(value)
    if id(value) in copies:
        return copies[id(value)]
    if kind not in _MUTABLE and kind is not tuple:
        return value
    entry = inner or (lambda each: copied(each, copies))
    if kind is tuple:
        return tuple(map(entry, value))
    fresh = copies[id(value)] = copy(value)
    if kind in _DICTS:
        for key, each in value.items():
            fresh[key] = entry(each)
    elif kind in _LISTS:
        for index, each in enumerate(value):
            fresh[index] = entry(each)
    elif kind is set and inner is not None:
        fresh.clear()
        fresh.update(map(entry, value))
    return fresh


def copied_object(value: Any, copies: Copies) -> Any:
    """A copy of an object, and of containers and objects in it: a cache that forward fills, say. Tensors stay."""
    kind = type(value)
    if id(value) in copies or kind in _MUTABLE or kind is tuple:
        return copied(value, copies, lambda each: copied_object(each, copies))
    if isinstance(value, Tensor | nn.Module | ModuleType) or callable(value) or not hasattr(value, "__dict__"):
        return value
    fresh = copy(value)
    if fresh is not value:  # an enum's member, say, has no copies
        copies[id(value)] = fresh
        fresh.__dict__.update({name: copied_object(each, copies) for name, each in vars(value).items()})
    return fresh


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors that an attribute holds, also those inside containers."""
    if isinstance(value, Tensor):
        yield value
    for each in _entries(value):
        yield from tensors_in(each)


def _is_mutable(value: Any) -> bool:
    """Whether a call could write into this or something in it, of what is copied."""
    kind = type(value)
    return kind in _MUTABLE or isinstance(value, Tensor) or (kind is tuple and any(map(_is_mutable, value)))


def _entries(value: Any) -> Iterable[Any]:
    kind = type(value)
    if kind in _DICTS:
        return cast(Iterable[Any], value.values())
    return value if kind in _LISTS or kind in (tuple, set) else ()
