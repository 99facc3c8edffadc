"""Families of functions to regress: what a task draws, and what its function is of what was drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError

Range: TypeAlias = float | Sequence[float]
"""One number for all tasks, or the lowest and the highest of those that tasks draw from uniformly."""


@runtime_checkable
class FunctionFamily(Protocol):
    """What `metalearn.tasks.Regression` draws its tasks from; one of your own needs these two methods and no more."""

    def draw(self, keys: Tensor) -> Any:
        """What makes the tasks' functions differ, from one random key a task `[task]`.

        Returns:
            Any nest of tensors with a leading task axis: a pure function of the keys (`metalearn.random`).
        """

    def values(self, drawn: Any, x: Tensor) -> Tensor:
        """The drawn functions at `x` `[task, point, input]`: `[task, point, output]`, without noise."""


@dataclass(frozen=True)
class SineWaves:
    r"""The sine waves of the MAML paper.

    .. math:: y = A \sin(x - \varphi), \quad A \sim U(0.1, 5), \ \varphi \sim U(0, \pi)

    Attributes:
        amplitude: lowest and highest amplitude, or one number for all.
        phase: lowest and highest phase in radians, or one number for all.

    Reference:
        Finn, Abbeel and Levine 2017, arXiv:1703.03400, section 5.1; the phase is subtracted as in the authors' code.
    """

    name: ClassVar[str] = "sinusoid"
    amplitude: Range = (0.1, 5.0)
    phase: Range = (0.0, math.pi)

    def __post_init__(self) -> None:
        for name in ("amplitude", "phase"):
            object.__setattr__(self, name, checked_range(name, getattr(self, name)))

    def draw(self, keys: Tensor) -> dict[str, Tensor]:
        """Amplitude and phase of each task, `[task, 1, 1]`."""
        return {
            "amplitude": uniform(random.fold_in(keys, 0), self.amplitude, (1, 1)),
            "phase": uniform(random.fold_in(keys, 1), self.phase, (1, 1)),
        }

    def values(self, drawn: dict[str, Tensor], x: Tensor) -> Tensor:
        """See `FunctionFamily.values`, of one input."""
        if x.shape[-1] != 1:
            raise UsageError(f"A sinusoid is a function of one input, got {x.shape[-1]}. Leave input_dim at 1.")
        return drawn["amplitude"] * torch.sin(x - drawn["phase"])


@dataclass(frozen=True)
class FamilyMixture:
    """Several families, of which each task draws one.

    Attributes:
        families: which ones, with the same number of outputs.
        weights: how often each is drawn, in any unit; `None` for equally often.

    Example:
        >>> mixture = FamilyMixture((SineWaves(amplitude=1.0), SineWaves(amplitude=9.0)), weights=(3, 1))
        >>> mixture.draw(random.key(torch.arange(1000)))[0].double().mean()
        tensor(0.2550, dtype=torch.float64)
    """

    name: ClassVar[str] = "mixture"
    families: Sequence[FunctionFamily]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        families = tuple(self.families)
        weights = (1.0,) * len(families) if self.weights is None else tuple(self.weights)
        if not families or len(weights) != len(families):
            raise UsageError(f"A mixture needs as many weights as families, got {len(weights)} for {len(families)}.")
        if not all(is_number(each) and 0 <= each < math.inf for each in weights) or not sum(weights) > 0:
            raise UsageError(f"The weights of a mixture must be numbers of at least 0, not all 0, got {list(weights)}.")
        object.__setattr__(self, "families", families)
        object.__setattr__(self, "weights", tuple(float(each) for each in weights))

    def draw(self, keys: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """The number of each task's family `[task]`, and what every family draws for it."""
        assert self.weights is not None
        shares = torch.tensor(self.weights, dtype=torch.float64).cumsum(0)
        bounds = (shares / shares[-1])[:-1].to(keys.device)
        which = (random.uniform(random.fold_in(keys, 0), (1,), dtype=torch.float64) >= bounds).sum(-1)
        drawn = (family.draw(random.fold_in(keys, 1 + i)) for i, family in enumerate(self.families))
        return which, tuple(drawn)

    def values(self, drawn: tuple[Tensor, tuple[Any, ...]], x: Tensor) -> Tensor:
        """See `FunctionFamily.values`. Every family is evaluated for every task, so that no task waits for a choice."""
        which, parts = drawn
        each = [family.values(part, x) for family, part in zip(self.families, parts, strict=True)]
        if len(widths := {values.shape[-1] for values in each}) > 1:
            raise UsageError(f"The families of a mixture must have one number of outputs, got {sorted(widths)}.")
        chosen = each[0]
        for number, values in enumerate(each[1:], start=1):
            chosen = torch.where((which == number)[:, None, None], values, chosen)
        return chosen


def uniform(keys: Tensor, bounds: Range, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform draws between the bounds of a checked range, `[task, *shape]`."""
    assert isinstance(bounds, Sequence)
    low, high = bounds
    return low + (high - low) * random.uniform(keys, shape, dtype=dtype)


def checked_range(name: str, bounds: Any, *, above: float = -math.inf) -> tuple[float, float]:
    """The lowest and the highest number of a range; a number alone is both.

    Raises:
        UsageError: it is not two finite numbers in order, or not `above` its bound.
    """
    pair = (bounds, bounds) if is_number(bounds) else bounds
    try:
        low, high = (float(bound) for bound in pair)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(f"`{name}` must be two numbers in order, such as [0.1, 5.0], got {bounds!r}.")
    if not low > above:
        raise UsageError(f"`{name}` must be above {above:g}, got {bounds!r}.")
    return low, high


def is_number(value: Any) -> bool:
    """Whether it is a whole or a real number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def family_card(family: FunctionFamily) -> dict[str, Any]:
    """What a family says on the protocol card: its own `protocol()` if it has one, or its name and fields."""
    if callable(protocol := getattr(family, "protocol", None)):
        return dict(protocol())
    if not is_dataclass(family):
        return {"family": type(family).__name__}
    name = getattr(type(family), "name", type(family).__name__)
    return {"family": name} | {each.name: _plain(getattr(family, each.name)) for each in fields(family)}


def _plain(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    if isinstance(value, FunctionFamily):
        return family_card(value)
    return value if isinstance(value, (int, float, str, type(None))) else repr(value)
