"""Functions that refer to a module, made to refer to its skeleton.

`self.act = lambda x: self.layer(x)`, or a hook that keeps a feature in `self`, would otherwise run past the skeleton:
write into the user's module, and read there what an earlier call has left.
"""

from collections.abc import Callable
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


def rebound(function: FunctionType, translated: Callable[[Any], Any], made: dict[int, Any]) -> FunctionType:
    """The function with translated modules, methods and functions in its closure; itself where none changes.

    Args:
        function: any.
        translated: what gives the skeleton's form of a value.
        made: functions made so far, by the id of what they are made of; this one is added.
    """
    if id(function) in made or not function.__closure__:
        result: FunctionType = made.get(id(function), function)
        return result
    made[id(function)] = function  # what a recursive function finds of itself
    cells = tuple(_rebound_cell(cell, translated) for cell in function.__closure__)
    if any(new is not old for new, old in zip(cells, function.__closure__, strict=True)):
        copy = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
        copy.__kwdefaults__ = function.__kwdefaults__
        copy.__dict__.update(function.__dict__)
        made[id(function)] = copy
    copied: FunctionType = made[id(function)]
    return copied


def _rebound_cell(cell: CellType, translated: Callable[[Any], Any]) -> CellType:
    try:
        value = cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return cell
    # Containers stay as they are: others hold them too.
    if not isinstance(value, nn.Module | FunctionType | MethodType):
        return cell
    after = translated(value)
    same = after is value or (isinstance(after, MethodType) and after.__self__ is getattr(value, "__self__", None))
    return cell if same else CellType(after)
