"""Skeletons: a module's structure and settings without any of its tensors, to run its forward on.

A skeleton is made of objects of the module's own classes. State is put into it before a call and taken out after it,
and whatever else forward changed is undone: a call leaves nothing behind, and the user's module is never touched.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.functional.classes import skeleton_class
from metalearn.functional.norms import put_norms
from metalearn.types import Statistics, Tensors

BOOKKEEPING = frozenset(nn.Module().__dict__) - {"training"}
"""What torch keeps in every module: tensors, submodules, hooks."""

_MUTABLE = (list, set, dict)


@dataclass(frozen=True)
class Attributes:
    """The attributes of one object of a skeleton other than torch's bookkeeping, as they are before every call."""

    current: dict[str, Any]
    fixed: Mapping[str, Any]
    mutable: Mapping[str, Any]
    count: int

    def restore(self) -> None:
        """Undoes what a call has changed."""
        if len(self.current) != self.count:
            for name in [*self.current]:
                if name not in self.fixed and name not in self.mutable and name not in BOOKKEEPING:
                    del self.current[name]
        self.current.update(self.fixed)
        for name, value in self.mutable.items():
            self.current[name] = copy(value)


class Skeleton:
    """The module's structure without its tensors, and where each tensor goes: a name may have several places (ties)."""

    def __init__(
        self,
        module: nn.Module,
        names: Mapping[tuple[int, str], str],
        *,
        training: bool | None,
        statistics: Statistics | None = None,
    ) -> None:
        self.places: list[tuple[dict[str, Any], str, str]] = []
        self.names: dict[tuple[int, str], str] = {}
        self._training = training
        self._shadows: dict[int, nn.Module] = {}
        self.root = self._shadow(module, names)
        if statistics is not None:
            put_norms(self.root, self.names, statistics)
        self._initial = [self._initial_attributes(shadow) for shadow in self._shadows.values()]
        self._entries = [_entries(shadow) for shadow in self._shadows.values()]
        self.clear()

    def _shadow(self, module: nn.Module, names: Mapping[tuple[int, str], str]) -> nn.Module:
        if id(module) in self._shadows:
            return self._shadows[id(module)]
        shadow: nn.Module = object.__new__(skeleton_class(type(module)))  # type: ignore[arg-type]  # classes are hashable
        self._shadows[id(module)] = shadow
        shadow.__dict__.update(
            {
                name: value
                for name, value in module.__dict__.items()
                if name not in ("_parameters", "_buffers", "_modules")
            }
        )
        for slot in (slot for base in type(module).__mro__ for slot in _slots_of(base) if hasattr(module, slot)):
            object.__setattr__(shadow, slot, getattr(module, slot))
        shadow.__dict__.update({"_parameters": {}, "_buffers": {}, "_modules": {}})
        if self._training is not None:
            shadow.__dict__["training"] = self._training
        for kind in ("_parameters", "_buffers"):
            for attribute in module.__dict__[kind]:
                shadow.__dict__[kind][attribute] = None
                if (id(module), attribute) in names:
                    name = self.names[id(shadow), attribute] = names[id(module), attribute]
                    self.places.append((shadow.__dict__[kind], attribute, name))
        for name, child in module._modules.items():
            shadow._modules[name] = None if child is None else self._shadow(child, names)
        return shadow

    def _initial_attributes(self, shadow: nn.Module) -> Attributes:
        own = {name: self._translated(value) for name, value in shadow.__dict__.items() if name not in BOOKKEEPING}
        if isinstance(shadow, nn.RNNBase):
            own["_flat_weights"] = []
        return Attributes(
            current=shadow.__dict__,
            fixed={name: value for name, value in own.items() if type(value) not in _MUTABLE},
            mutable={name: value for name, value in own.items() if type(value) in _MUTABLE},
            count=len(shadow.__dict__),
        )

    def _translated(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self._shadows.get(id(value), value)
        if isinstance(value, MethodType) and id(value.__self__) in self._shadows:
            return MethodType(value.__func__, self._shadows[id(value.__self__)])
        if type(value) in (list, tuple, set):
            return type(value)(self._translated(entry) for entry in value)
        if type(value) is dict:
            return {key: self._translated(entry) for key, entry in value.items()}
        return value

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Puts the state in its places."""
        for kind, attribute, name in self.places:
            kind[attribute] = state[name]
        for shadow in self._shadows.values():
            if isinstance(shadow, nn.RNNBase):  # it keeps a list of its weights, flattened for the fused kernels
                shadow.__dict__["_flat_weights"] = [shadow._parameters.get(name) for name in shadow._flat_weights_names]

    def read(self, before: Mapping[str, Tensor]) -> Tensors:
        """The state after a call that began with `before`."""
        for shadow, entries in zip(self._shadows.values(), self._entries, strict=True):
            if entries != _entries(shadow):
                raise _other_entries(shadow, entries)
        after: Tensors = {}
        for kind, attribute, name in self.places:
            value = kind[attribute]
            if value is None:
                raise UsageError(f"forward set {name!r} to None: state held outside must stay a tensor.")
            # A tied tensor has several places; where forward assigned to one of them, that one counts.
            if name not in after or after[name] is before[name]:
                after[name] = value
        return after

    def attributes(self) -> list[tuple[nn.Module, Attributes]]:
        """Every object of the skeleton with its attributes."""
        return list(zip(self._shadows.values(), self._initial, strict=True))

    def clear(self) -> None:
        """Lets go of all tensors, and undoes what forward did to other attributes: a call leaves nothing behind."""
        for kind, attribute, _ in self.places:
            kind[attribute] = None
        for attributes in self._initial:
            attributes.restore()


def _entries(shadow: nn.Module) -> list[str]:
    return [*shadow._parameters, *shadow._buffers, *shadow._modules]


def _other_entries(shadow: nn.Module, before: list[str]) -> UsageError:
    found = _entries(shadow)
    named = [name for name in found if name not in before] or [name for name in before if name not in found]
    return UsageError(
        f"forward adds or removes {(named or found)[0]!r} of {type(shadow).__name__}, but state held outside keeps its "
        "names. Register it in __init__, or call the module once before functionalizing it."
    )


def places_of(module: nn.Module) -> dict[tuple[int, str], str]:
    """The name of the tensor at each place of a module: `(id of the submodule, attribute) -> name`."""
    names = {id(value): name for name, value in (*module.named_parameters(), *module.named_buffers())}
    return {
        (id(part), attribute): names[id(value)]
        for part in module.modules()
        for attribute, value in (*part._parameters.items(), *part._buffers.items())
        if value is not None
    }


def _slots_of(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    return tuple(
        slot for slot in ((slots,) if isinstance(slots, str) else slots) if slot not in ("__dict__", "__weakref__")
    )
