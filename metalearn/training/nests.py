"""Nests of plain values and tensors as JSON beside a flat dict of tensors, and back: a pickle without code in it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metalearn.types import Tensors

_PLAIN = (str, int, float, bool, type(None))


def encode(nest: Any, prefix: str) -> tuple[Any, Tensors]:
    """A nest of dicts, lists, tuples, plain values and tensors -> (what JSON can hold, tensors by `prefix` + number).

    Raises:
        TypeError: something else is in the nest.
    """
    tensors: Tensors = {}

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"{prefix}{len(tensors)}"
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": [[visit(key), visit(entry)] for key, entry in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [visit(entry) for entry in value]}
        if isinstance(value, list):
            return [visit(entry) for entry in value]
        if type(value) in _PLAIN:
            return value
        raise TypeError(f"a {type(value).__name__} can not be saved")

    return visit(nest), tensors


def decode(encoded: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nest that `encode` was given.

    Raises:
        KeyError: a tensor is missing, or the form is not one that `encode` makes.
    """
    if isinstance(encoded, list):
        return [decode(entry, tensors) for entry in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if "tensor" in encoded:
        return tensors[encoded["tensor"]]
    if "tuple" in encoded:
        return tuple(decode(entry, tensors) for entry in encoded["tuple"])
    return {decode(key, tensors): decode(entry, tensors) for key, entry in encoded["dict"]}
