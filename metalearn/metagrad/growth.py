"""How the memory and the time of a strategy grow with the number of inner steps: what `plan` extrapolates by."""

import math
from collections.abc import Callable
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from typing import Any

from metalearn.metagrad.base import Strategy
from metalearn.metagrad.evolution import EvolutionStrategies, PersistentEvolutionStrategies
from metalearn.metagrad.first_order import FirstOrder
from metalearn.metagrad.forward_mode import ForwardMode
from metalearn.metagrad.implicit import Implicit
from metalearn.metagrad.reptile import Reptile
from metalearn.metagrad.stepwise import Stepwise
from metalearn.metagrad.truncated import Truncated
from metalearn.metagrad.unrolled import Unrolled


@dataclass(frozen=True)
class Growth:
    """The laws of a kind of strategy; those of the plain case are the defaults.

    Attributes:
        length: `(strategy, steps)` -> what its peak is linear in: how many graphs or states are alive at once.
        steps: `(strategy, steps)` -> how many steps cost what a step of the short runs does, and how many steps are
            computed besides without a gradient.
        short: `(strategy, length)` -> the strategy and the number of steps of a short run of that length.
        is_exact: `(strategy, steps)` -> whether its gradient is that of the objective; None where it is not known.
    """

    length: Callable[[Any, int], int] = lambda strategy, steps: steps
    steps: Callable[[Any, int], tuple[int, float]] = lambda strategy, steps: (steps, 0.0)
    short: Callable[[Any, int], tuple[Strategy, int]] = lambda strategy, length: (strategy, length)
    is_exact: Callable[[Any, int], bool | None] = lambda strategy, steps: None


def growth_of(strategy: Strategy) -> Growth:
    """The laws of a strategy. One of a user's own is taken to grow by as much with every step."""
    return _GROWTHS.get(type(strategy), Growth())


def name_of(strategy: Strategy) -> str:
    """A strategy as it is written, without what is at its default."""
    known: tuple[Field[Any], ...] = fields(strategy) if is_dataclass(strategy) else ()
    given = [
        f"{field.name}={getattr(strategy, field.name)!r}"
        for field in known
        if getattr(strategy, field.name) != field.default or (isinstance(strategy, Stepwise) and field.name == "every")
    ]
    return f"{type(strategy).__name__}({', '.join(given)})"


def _every(strategy: Stepwise, steps: int) -> int:
    every = math.isqrt(steps) if strategy.every == "sqrt" else strategy.every
    return max(1, min(steps, every))


def _states(strategy: Stepwise, steps: int) -> int:
    """The states kept on the way forward, the last of them replaced by the stretch of states that begins with it."""
    every = _every(strategy, steps)
    return math.ceil(steps / every) - 1 + every


def _stepwise_steps(strategy: Stepwise, steps: int) -> tuple[int, float]:
    # Of every stretch all but the last state are computed once more.
    return steps, steps * (1 - 1 / _every(strategy, steps))


def _truncated_steps(strategy: Truncated, steps: int) -> tuple[int, float]:
    return min(strategy.num_steps, steps), 0.0 if strategy.windows else float(max(0, steps - strategy.num_steps))


_INEXACT = Growth(is_exact=lambda strategy, steps: steps == 0)
_GROWTHS: dict[type, Growth] = {
    Unrolled: Growth(is_exact=lambda strategy, steps: True),
    ForwardMode: Growth(is_exact=lambda strategy, steps: True),
    Stepwise: Growth(
        length=_states,
        steps=_stepwise_steps,
        short=lambda strategy, length: (replace(strategy, every=1), length),
        is_exact=lambda strategy, steps: True,
    ),
    Truncated: Growth(
        length=lambda strategy, steps: min(strategy.num_steps, steps),
        steps=_truncated_steps,
        # One step more than the gradient goes through, or nothing would be cut off.
        short=lambda strategy, length: (replace(strategy, num_steps=length), length + (not strategy.windows)),
        is_exact=lambda strategy, steps: strategy.num_steps >= steps,
    ),
    FirstOrder: _INEXACT,
    Reptile: Growth(is_exact=lambda strategy, steps: False),
    Implicit: Growth(is_exact=lambda strategy, steps: False),
    EvolutionStrategies: Growth(is_exact=lambda strategy, steps: False),
    PersistentEvolutionStrategies: Growth(is_exact=lambda strategy, steps: False),
}
