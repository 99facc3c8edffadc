"""Hyper-parameters: what forms they take, which values are allowed, and what one is for a parameter at a step."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from metalearn.errors import UsageError, did_you_mean
from metalearn.optim.numerics import constant_in_compiled, known_values
from metalearn.patterns import fits, near
from metalearn.types import Hyper, Tensors

P = ParamSpec("P")
T = TypeVar("T")

Value = float | Tensor
"""A hyper-parameter for one parameter at one step."""


class Range(NamedTuple):
    """Which numbers a hyper-parameter may be.

    Attributes:
        low: the least number.
        high: the number that all are below; None for any.
        is_open: whether `low` itself is not allowed.
        is_closed: whether `high` itself is allowed.
        why: what goes wrong outside; said in the error.
        of_tensors: whether tensors have to be in the range too. A rate may be learned below zero; a decay of 1 is
            0 / 0 whoever chose it.
    """

    low: float
    high: float | None = None
    is_open: bool = False
    is_closed: bool = False
    why: str = ""
    of_tensors: bool = False

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        above = value > self.low if self.is_open else value >= self.low
        return above and (self.high is None or value < self.high or (self.is_closed and value == self.high))

    def __str__(self) -> str:
        if self.high is None:
            return f"a number {'above' if self.is_open else 'of at least'} {self.low:g}"
        if self.low == -float("inf"):
            return f"a number of at most {self.high:g}"
        return f"in {'(' if self.is_open else '['}{self.low:g}, {self.high:g}{']' if self.is_closed else ')'}"


AT_LEAST_0 = Range(0.0)
ABOVE_0 = Range(0.0, is_open=True)
ABOVE_1 = Range(1.0, is_open=True)
FRACTION = Range(0.0, 1.0)
CLOSED_FRACTION = Range(0.0, 1.0, is_closed=True)
DECAY = Range(0.0, 1.0, why="the average is divided by 1 - {name}**t", of_tensors=True)
ANY = Range(-float("inf"))


@dataclass(frozen=True)
class Hypers:
    """The hyper-parameters of one transformation.

    Attributes:
        values: each in one of its forms (`metalearn.types.Hyper`).
        ranges: what numbers they may be; at least 0 where nothing is said.

    Raises:
        UsageError: a number out of its range, or something that is no hyper-parameter.
    """

    values: Mapping[str, Hyper]
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Copies, so that a dict that is changed later changes nothing here.
        own = {name: dict(hyper) if isinstance(hyper, Mapping) else hyper for name, hyper in self.values.items()}
        object.__setattr__(self, "values", own)
        for name, hyper in own.items():
            self._check_form(name, hyper)

    def check(self, params: Tensors, num_steps: Tensor) -> "Now":
        """What they are after `num_steps` steps, as `at`; refuses what does not fit the parameters.

        Numbers are checked, and tensors of a CPU where a value out of range could only give NaN; on other devices
        that would have to wait for the device.

        Raises:
            UsageError: a parameter has no value, a name or a pattern fits no parameter, a shape does not fit, a value
                is out of its range.
        """
        now = self.at(num_steps)
        for name, hyper in now.values.items():
            if isinstance(hyper, Mapping):
                _check_names(name, hyper, params)
            for of, param in params.items():
                value = now.of(name, of)
                if isinstance(value, Tensor):
                    check_shape(name, value, of, param)
        return now

    def at(self, num_steps: Tensor) -> "Now":
        """What they are after `num_steps` steps, each schedule asked once.

        Raises:
            UsageError: a schedule returned something else than a number, or one out of its range.
        """
        now = {}
        for name, hyper in self.values.items():
            now[name] = _after(hyper, num_steps)
            if now[name] is not hyper or self.ranges.get(name, AT_LEAST_0).of_tensors:
                self._check_form(name, now[name], scheduled=True)
        return Now(now)

    def _check_form(self, name: str, hyper: Any, *, scheduled: bool = False) -> None:
        for key, value in hyper.items() if isinstance(hyper, Mapping) else ((None, hyper),):
            of = "" if key is None else f" for {key!r}"
            if not isinstance(key, str | None):
                raise UsageError(f"{name} has a value for {key!r}: a parameter's name, or a pattern, is a text.")
            if isinstance(value, Tensor):
                self._check_tensor(name, value, of)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                self._check_number(name, value, of)
            elif scheduled or not callable(value):
                what = f"the schedule of {name}{of} returned {value!r}" if scheduled else f"{name}{of} is {value!r}"
                raise UsageError(
                    f"{what}, which is no hyper-parameter: expected a number, a tensor, a dict of them by the "
                    "parameters' names (or patterns), or a function of the number of steps done."
                )

    def _check_tensor(self, name: str, value: Tensor, of: str) -> None:
        if value.is_complex() or value.dtype == torch.bool:
            raise UsageError(f"{name}{of} is a tensor of {value.dtype}, expected real numbers.")
        if self.ranges.get(name, AT_LEAST_0).of_tensors and (numbers := known_values(value)) is not None:
            for number in (numbers.min().item(), numbers.max().item()) if numbers.numel() else ():
                self._check_number(name, number, of)

    def _check_number(self, name: str, value: float, of: str = "") -> None:
        allowed = self.ranges.get(name, AT_LEAST_0)
        if value not in allowed:
            why = f": {allowed.why.format(name=name)}" if allowed.why else ""
            raise UsageError(f"{name}{of} is {value:g}, but must be {allowed}{why}.")


@dataclass(frozen=True)
class Now:
    """Hyper-parameters at one step: no schedules any more, but perhaps values by name."""

    values: Mapping[str, Value | Mapping[str, Value]]

    def has_names(self, name: str) -> bool:
        """Whether a hyper-parameter is given by the parameters' names, or is not one number but one an entry."""
        value = self.values[name]
        return isinstance(value, Mapping) or (isinstance(value, Tensor) and value.dim() > 0)

    def of(self, name: str, param: str) -> Value:
        """The value of one hyper-parameter for one parameter."""
        return _entry(self.values[name], param, name)


def hyper_parameters(factory: Callable[P, T]) -> Callable[P, T]:
    """An optimizer's factory that names what is close when it is given a keyword that it does not know.

    What is annotated as a bool has to be one: from a command line `"no"` would count as true.
    """
    known = inspect.signature(factory).parameters

    @wraps(factory)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, value in kwargs.items():
            if name not in known:
                raise UsageError(f"{factory.__name__} has no hyper-parameter {name!r}. {_meant(name, list(known))}")
            if known[name].annotation is bool and not isinstance(value, bool):
                raise UsageError(f"{name} is {value!r}, but must be True or False.")
        try:
            return factory(*args, **kwargs)
        except TypeError:
            _refuse_call(factory, args, kwargs)
            raise

    return checked


def _refuse_call(factory: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Raises UsageError where the arguments do not fit a factory, as `adam(params, lr=0.1)` does not."""
    try:
        inspect.signature(factory).bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(
            f"{factory.__name__}: {error}. Hyper-parameters go by their names, {factory.__name__}(lr=…), and the "
            "parameters to optimizer.init(params)."
        ) from None


_PAIRS = {"betas": ("b1", "b2"), "etas": ("eta_minus", "eta_plus"), "step_sizes": ("min_step", "max_step")}
"""What `torch.optim` gives as a pair has two names here, so that each may be learned."""


def _meant(name: str, known: list[str]) -> str:
    pair = _PAIRS.get(name, ())
    if pair and set(pair) <= set(known):
        return f"The pair of torch.optim is {pair[0]}=… and {pair[1]}=… here."
    return did_you_mean(name, known)


def _after(hyper: Hyper, num_steps: Tensor) -> Value | Mapping[str, Value]:
    # A dict is asked for first: torch.compile does not know whether one is callable.
    if not isinstance(hyper, Mapping):
        return hyper(num_steps) if callable(hyper) else hyper
    if not any(callable(value) for value in hyper.values()):
        return hyper  # type: ignore[return-value]
    return {name: value(num_steps) if callable(value) else value for name, value in hyper.items()}  # type: ignore[misc]


def _entry(value: Any, name: str, what: str) -> Value:
    """The value for one parameter: by its own name, else by the first pattern that it fits."""
    if not isinstance(value, Mapping):
        return value  # type: ignore[no-any-return]
    if name in value:
        return value[name]  # type: ignore[no-any-return]
    for pattern, each in value.items():
        if _fits(pattern, name):
            return each  # type: ignore[no-any-return]
    raise UsageError(
        f"{what} has no value for {name!r} (it has {len(value)} names). {did_you_mean(name, value)} Give one value a "
        "parameter, one for all, or a pattern: '*' fits what has no value of its own."
    )


_fits = constant_in_compiled(fits)


def _check_names(name: str, by_name: Mapping[str, Any], params: Tensors) -> None:
    for pattern in by_name:
        if not any(fits(pattern, param) for param in params):
            raise UsageError(
                f"{name} has a value for {pattern!r}, which fits none of the {len(params)} parameters. "
                f"{near(pattern, params)}"
            )


def check_shape(name: str, value: Tensor, of: str, param: Tensor) -> None:
    """Raises UsageError unless a value is one number for a parameter, or one an entry of it."""
    if value.dim() == 0:
        return
    try:
        value.expand(param.shape)
    except RuntimeError:
        raise UsageError(
            f"{name} for {of!r} has shape {list(value.shape)}, but the parameter has {list(param.shape)}: give one "
            "number, or one an entry. One value a step is metalearn.optim.per_step(values)."
        ) from None
