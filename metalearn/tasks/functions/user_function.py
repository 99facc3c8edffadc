"""A Python function of a user's own as a family of functions, and its mistakes told at the user's own line."""

import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError, did_you_mean
from metalearn.tasks.functions.families import Range, checked_range, uniform


@dataclass(frozen=True)
class UserFunction:
    """The functions `x -> function(x, **parameters)`, with parameters that each task draws from their ranges.

    The function is called once for all tasks: `x` is `[task, point, input]`, every parameter `[task, 1, 1]`, and the
    result `[task, point, output]`; ordinary tensor arithmetic does that by broadcasting.

    Attributes:
        function: a Python function, or `"module.name"` of one in an installed package or in the current folder.
        parameters: by name, lowest and highest value (drawn uniformly), or one number for all tasks.

    Example:
        >>> def wave(x, amplitude, phase):
        ...     return amplitude * torch.sin(x + phase)
        >>> family = UserFunction(wave, {"amplitude": (0.1, 5.0), "phase": (0, 3.14)})
        >>> family.values(family.draw(random.key(torch.arange(4))), torch.zeros(4, 10, 1)).shape
        torch.Size([4, 10, 1])
    """

    function: Callable[..., Tensor] | str
    parameters: Mapping[str, Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.function, str):
            object.__setattr__(self, "function", find_function(self.function))
        if not callable(self.function):
            raise UsageError(f"`function` must be a Python function or 'module.name' of one, got {self.function!r}.")
        if not isinstance(self.parameters, Mapping):
            raise UsageError(
                f"`parameters` must give a range for each name, such as {{amplitude: [0.1, 5.0]}}, got"
                f" {self.parameters!r}."
            )
        ranges = {str(name): checked_range(f"parameters.{name}", each) for name, each in self.parameters.items()}
        object.__setattr__(self, "parameters", ranges)
        _check_signature(self.function, ranges)

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """The parameters of each task, `[task, 1, 1]`."""
        return {
            name: uniform(random.fold_in(keys, number), bounds, (1, 1))
            for number, (name, bounds) in enumerate(self.parameters.items())
        }

    def values(self, drawn: dict[str, Tensor], x: Tensor) -> Tensor:
        """See `FunctionFamily.values`.

        Raises:
            UsageError: the function raises, or returns another shape or what is no number; told at its own line.
        """
        assert callable(self.function)
        try:
            values = self.function(x, **drawn)
        except Exception as error:
            raise UsageError(f"{name_of(self.function)} raised {_told(error, self.function)}") from error
        self._check(values, drawn, x)
        return values.to(x.dtype)

    def protocol(self) -> dict[str, Any]:
        """The function's name and the ranges, as plain data."""
        return {
            "family": "function",
            "function": name_of(self.function),
            "parameters": {name: list(bounds) for name, bounds in self.parameters.items()},  # type: ignore[arg-type]
        }

    def _check(self, values: Any, drawn: dict[str, Tensor], x: Tensor) -> None:
        where, wanted = _where(self.function), [*x.shape[:2]]
        if not isinstance(values, Tensor) or not values.is_floating_point():
            got = f"a {values.dtype} tensor" if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise UsageError(f"{where} returned {got}, expected a tensor of real numbers. Compute it with torch.")
        if values.dim() != 3 or [*values.shape[:2]] != wanted:
            raise UsageError(
                f"{where} returned the shape {[*values.shape]} for x of shape {[*x.shape]} [task, point, input],"
                f" expected [{wanted[0]}, {wanted[1]}, output]. Keep all three axes: parameters are [task, 1, 1];"
                " sum over the input's axis with keepdim=True."
            )
        if values.is_meta or bool((finite := torch.isfinite(values)).all()):
            return
        task, point, output = (int(each[0]) for each in torch.nonzero(~finite, as_tuple=True))
        inputs = [round(value, 4) for value in x[task, point].tolist()]
        at = ", ".join(f"{name}={float(each[task]):.4g}" for name, each in drawn.items())
        raise UsageError(
            f"{where} returned {float(values[task, point, output])} at x={inputs}{' with ' if at else ''}{at}."
            " Narrow the ranges, or keep the function finite on x_range."
        )


def find_function(name: str) -> Callable[..., Tensor]:
    """The Python function that `"module.name"` names.

    Raises:
        UsageError: there is none, or its module can not be imported.
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise UsageError(f"function={name!r} has to be written module.name, such as my_module.wave.")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"function={name}: there is no module {error.name!r}. It has to be installed, or lie in the current folder."
        ) from error
    except Exception as error:
        raise UsageError(f"function={name}: importing {module_name} raised {_told(error, None)}") from error
    if not hasattr(module, attribute):
        functions = [each for each, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(f"function={name}: {module_name} has no {attribute!r}. {did_you_mean(attribute, functions)}")
    # Only what is written in Python: a run's stored configuration must not call whatever there is by its name.
    if not inspect.isfunction(found := getattr(module, attribute)):
        raise UsageError(f"function={name} is a {type(found).__name__}, expected a function written in Python.")
    return found


def name_of(function: Any) -> str:
    """`my_module.wave` for people."""
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"


def _where(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return name_of(function) if code is None else f"{name_of(function)} ({code.co_filename}:{code.co_firstlineno})"


def _check_signature(function: Any, parameters: Mapping[str, Any]) -> None:
    try:
        takes = inspect.signature(function).parameters
    except (TypeError, ValueError):  # something written in C
        return
    variadic = any(each.kind is each.VAR_KEYWORD for each in takes.values())
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [name for name, each in list(takes.items())[1:] if each.kind in by_name]
    if not takes:
        raise UsageError(f"{name_of(function)} takes no argument, expected {name_of(function)}(x, **parameters).")
    for name in parameters:
        if name not in named and not variadic:
            known = did_you_mean(name, named) if named else "It takes x alone."
            raise UsageError(f"{name_of(function)} takes no parameter {name!r}. {known}")
    for name in named:
        if name not in parameters and takes[name].default is inspect.Parameter.empty:
            fix = f"parameters={{{name}: [0, 1]}}"
            raise UsageError(f"{name_of(function)} needs {name!r}: give its range, as in {fix}.")


def _told(error: Exception, function: Any) -> str:
    """The error, and the last line of the user's own code on the way to it."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):  # has no line that ran
        return text
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    mine = [frame for frame in frames if frame.filename == own] if own else frames
    if not mine:
        return text
    frame = mine[-1]
    return f"{text}\n  {frame.filename}, line {frame.lineno}, in {frame.name}: {frame.line}"
