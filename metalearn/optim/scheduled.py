"""What schedules are made of: numbers in their forms, a formula of the count, and the choice between two values."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.optim.hypers import Value
from metalearn.optim.numerics import is_readable, wide
from metalearn.types import Hyper, Schedule

Number: TypeAlias = float | Tensor | Mapping[str, Tensor | float]
"""A number of a schedule: one for all, or one by parameter name or pattern."""


def schedule_of(formula: Callable[..., Tensor], **numbers: Number) -> Schedule:
    """The schedule of a formula of the count and these numbers, all of them given to it as tensors in double."""
    check_numbers(**numbers)
    given = list(numbers.values())
    rows = _by_name(given)
    if rows is None:
        return lambda count: _value(formula, count, given)
    return lambda count: {name: _value(formula, count, row) for name, row in rows.items()}


def _value(formula: Callable[..., Tensor], count: Tensor, numbers: Sequence[Any]) -> Value:
    value = formula(wide(count, count.device), *(wide(number, count.device) for number in numbers))
    dtypes = [number.dtype for number in numbers if isinstance(number, Tensor) and number.is_floating_point()]
    if dtypes:
        return value.to(reduce(torch.promote_types, dtypes))
    return value.item() if is_readable(value) else value


def select(condition: Tensor, first: Any, second: Any) -> Any:
    """`first` where the condition holds, else `second`; either may be by name."""
    if isinstance(first, Mapping) or isinstance(second, Mapping):
        check_numbers(before=first, after=second)
        rows = _by_name([first, second])
        assert rows is not None
        return {name: select(condition, *row) for name, row in rows.items()}
    if is_readable(condition):
        return first if bool(condition) else second
    if not isinstance(first, Tensor) and not isinstance(second, Tensor):
        first = wide(first, condition.device)  # where() of two floats is a float32
    return torch.where(condition, first, second)


def _by_name(numbers: Sequence[Any]) -> dict[str, list[Any]] | None:
    """The numbers of each name; None where none of them is by name."""
    named = next((number for number in numbers if isinstance(number, Mapping)), None)
    if named is None:
        return None
    return {name: [each[name] if isinstance(each, Mapping) else each for each in numbers] for name in named}


def as_schedule(hyper: Hyper) -> Schedule:
    """A schedule as it is, and a value that stays as one.

    Raises:
        UsageError: it is neither.
    """
    if callable(hyper):
        return hyper
    check_numbers(value=hyper)
    return lambda num_steps: hyper  # type: ignore[return-value]


def check_numbers(**numbers: Any) -> None:
    """Raises UsageError for what is no number, and for dicts that differ in their names."""
    for what, number in numbers.items():
        for each in number.values() if isinstance(number, Mapping) else (number,):
            if isinstance(each, bool) or not isinstance(each, int | float | Tensor):
                raise UsageError(
                    f"{what} of a schedule is {each!r}: expected a number, a tensor, or a dict of them by the "
                    "parameters' names (or patterns of names)."
                )
    by_name = {what: number for what, number in numbers.items() if isinstance(number, Mapping)}
    for what, number in by_name.items():
        first = next(iter(by_name))
        if number.keys() != by_name[first].keys():
            name = min(number.keys() ^ by_name[first].keys())
            raise UsageError(
                f"{name!r} is in only one of {first} and {what} of a schedule: give both for the same names or "
                "patterns, or one of them as one number for all."
            )


def check_length(what: str, num_steps: Any) -> None:
    """Raises UsageError for a length that is no number above 0; a tensor's value is not looked at."""
    if isinstance(num_steps, Tensor):
        return
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | float) or not num_steps > 0:
        raise UsageError(f"{what} over {num_steps!r} steps: num_steps must be a number above 0, or a tensor.")


def is_whole(number: Any) -> bool:
    """Whether it is an int, and not True or False."""
    return isinstance(number, int) and not isinstance(number, bool)
