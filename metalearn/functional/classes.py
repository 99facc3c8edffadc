"""The classes of a skeleton's objects: the module's own ones, with a few methods of ours."""

from functools import cache
from typing import Any

from torch import Tensor, nn

from metalearn.functional.forms import own_forms


@cache
def skeleton_class(cls: Any) -> Any:
    """The class, with tensors admitted where it has parameters: `self.count = x` raises in plain PyTorch."""
    if "_is_skeleton" in cls.__dict__:
        return cls

    def setattr_(self: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and name in self.__dict__["_parameters"]:
            self.__dict__["_parameters"][name] = value
        else:
            super(skeleton, self).__setattr__(name, value)

    body = {"__setattr__": setattr_, "_is_skeleton": True, "__module__": cls.__module__, "__doc__": cls.__doc__}
    if isinstance(cls, type) and issubclass(cls, nn.RNNBase):
        body["flatten_parameters"] = _nothing  # it would move the caller's tensors in memory, and fails under vmap
    for container, forms_of in ((nn.ParameterList, _LIST_FORMS), (nn.ParameterDict, _DICT_FORMS)):
        if isinstance(cls, type) and issubclass(cls, container):
            body |= forms_of
    bases, forms = own_forms(cls)
    skeleton = type(cls)(cls.__name__, (cls, *bases), body | forms)
    return skeleton


def _nothing(self: nn.Module) -> None:
    pass


# torch makes new parameters, without history, of the tensors that a slice or a copy of these containers takes.
def _set_in_list(self: nn.ParameterList, index: int, value: Any) -> None:
    setattr(self, self._get_abs_string_index(index), value)  # type: ignore[no-untyped-call]


def _set_in_dict(self: nn.ParameterDict, key: str, value: Any) -> None:
    self._keys[key] = None
    setattr(self, self._key_to_attr(key), value)


def _copy_of_dict(self: nn.ParameterDict) -> nn.ParameterDict:
    return type(self)({key: self[key] for key in self._keys})


_LIST_FORMS = {"__setitem__": _set_in_list}
_DICT_FORMS = {"__setitem__": _set_in_dict, "copy": _copy_of_dict}
