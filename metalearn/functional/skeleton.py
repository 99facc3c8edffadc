"""Skeletons: a module's structure and settings without any of its tensors, to run its forward on.

A skeleton is made of objects of the module's own classes. State is put into it before a call and taken out after it,
and whatever else forward changed is undone: a call leaves nothing behind, and the user's module is never touched.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from metalearn.errors import UsageError
from metalearn.functional.attributes import Attributes, Copies, attributes_of, tensors_in, translation
from metalearn.functional.classes import skeleton_class
from metalearn.functional.norms import put_norms
from metalearn.types import Statistics, Tensors


class Skeleton:
    """The module's structure without its tensors, and where each tensor goes: a name may have several places (ties).

    Attributes:
        root: the object whose forward is the module's.
        names: the name of the tensor at each place: `(id of the object, attribute) -> name`.
        places: likewise, as the dicts that hold them.
        loose: the module's tensors in plain attributes, which are no state, by a name for messages.
    """

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
        translated = translation(self._shadows)
        self._attributes = [attributes_of(shadow, translated) for shadow in self._shadows.values()]
        for shadow in self._shadows.values():
            for slot in _slots_of(shadow):
                object.__setattr__(shadow, slot, translated(getattr(shadow, slot)))
        self._entries = [_entries(shadow) for shadow in self._shadows.values()]
        self._children = [
            (shadow._modules, {**shadow._modules}) for shadow in self._shadows.values() if shadow._modules
        ]
        taken = {(id(kind), attribute) for kind, attribute, _ in self.places}
        self._absent = [
            (kind, attribute)
            for shadow in self._shadows.values()
            for kind in (shadow._parameters, shadow._buffers)
            for attribute in kind
            if (id(kind), attribute) not in taken
        ]
        self.loose = self._loose_tensors()
        self._num_hooks = RemovableHandle.next_id
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
        shadow.__dict__.pop("_compiled_call_impl", None)  # module.compile(): it would call the user's own
        for slot in _slots_of(module):
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

    def _loose_tensors(self) -> Tensors:
        prefixes = {id(part): f"{name}." if name else "" for name, part in self.root.named_modules()}
        found: dict[int, Tensor] = {}
        named: Tensors = {}
        for shadow, attributes in self.attributes():
            for name, held in attributes.deep.items():
                for value in tensors_in(held):
                    if id(value) not in found:
                        several = f" ({len(named)})" if type(held) is not type(value) else ""
                        named[f"the attribute {prefixes[id(shadow)]}{name}{several}"] = found[id(value)] = value
        return named

    def fill(self, state: Mapping[str, Tensor], loose: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Puts the state in its places, and copies in the place of loose tensors."""
        if loose:
            self._restore({id(self.loose[name]): value for name, value in loose.items()})
        for kind, attribute, name in self.places:
            kind[attribute] = state[name]
        for shadow in self._shadows.values():
            if isinstance(shadow, nn.RNNBase):  # it keeps a list of its weights, flattened for the fused kernels
                weights = [shadow._parameters.get(name) for name in shadow._flat_weights_names]
                shadow.__dict__["_flat_weights"] = weights
                # It compares its weights with these, and looks each up once more where one is another: a parametrized
                # weight would be computed more often than in the module itself.
                shadow.__dict__["_flat_weight_refs"] = [
                    own if weight is None else ref(weight)
                    for weight, own in zip(weights, shadow._flat_weight_refs, strict=True)
                ]

    def read(self, before: Mapping[str, Tensor]) -> Tensors:
        """The state after a call that began with `before`."""
        for shadow, entries in zip(self._shadows.values(), self._entries, strict=True):
            if entries != _entries(shadow):
                raise _other_entries(shadow, entries)
        for kind, attribute in self._absent:
            if kind[attribute] is not None:
                raise UsageError(
                    f"forward gives {attribute!r}, which was registered as None, a value: state held outside is there "
                    "from the start. Register a tensor, or call the module once before functionalizing it."
                )
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
        return list(zip(self._shadows.values(), self._attributes, strict=True))

    def clear(self) -> None:
        """Lets go of all tensors, and undoes what forward did to other attributes: a call leaves nothing behind."""
        for kind, attribute, _ in self.places:
            kind[attribute] = None
        for modules, before in self._children:
            if modules != before:
                modules.clear()
                modules.update(before)
        self._restore({})
        if self._num_hooks != RemovableHandle.next_id:  # somebody has registered hooks since: perhaps forward
            self._num_hooks = RemovableHandle.next_id
            for attributes in self._attributes:
                attributes.restore_hooks()

    def _restore(self, copies: Copies) -> None:
        for attributes in self._attributes:
            attributes.restore(copies)


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


def _slots_of(module: nn.Module) -> list[str]:
    """The names of the slots of its classes that are filled."""
    slots = [cls.__dict__.get("__slots__", ()) for cls in type(module).__mro__]
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    return [name for name in names if name not in ("__dict__", "__weakref__") and hasattr(module, name)]
