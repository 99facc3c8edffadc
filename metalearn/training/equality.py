"""Whether two ways of running tasks give the same meta-gradient: asked before a run goes from one to the other."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.training.precision_check import precision_of
from metalearn.types import Tensors

BOUND_FLOAT64 = 1e-9
BOUND_FLOAT32 = 1e-4
"""The largest relative error in norm of two gradients that are the same up to the order of sums."""

LEAST_BOUND_LOW = 1e-2
"""The least bound in bf16 and tf32; there it is twice what the eager gradient itself is off that in float32, as two
roundings of one gradient may be that far from each other."""

LARGEST_MOVE = 8.0
"""How far parameters are moved, in units of the last place, to see how far kinks let rounding alone move a gradient."""

MOST_MOVES = 8
KINKS = 3.0
"""A gradient may be off by so many times the most that it moved by itself."""

Moved = Callable[[Tensors], Tensors]
Exact = Callable[[Moved], Tensors]
"""The eager gradient in float32, of meta-parameters that are moved first."""


class Difference(NamedTuple):
    r"""How far a gradient is from another one.

    Attributes:
        error: $\\lVert g - h \\rVert / \\lVert h \\rVert$; nan where the other one is no number.
        bound: the largest error with which they are taken for the same.
    """

    error: float
    bound: float

    @property
    def is_none(self) -> bool:
        """Whether they are the same gradient."""
        return self.error <= self.bound

    @property
    def is_known(self) -> bool:
        """Whether the error is a number."""
        return self.error == self.error


def difference(found: Tensors, eager: Tensors, *, execution: Any, exact: Exact) -> Difference:
    """How far `found` is from `eager`, and how far it may be.

    A ReLU or a max-pool decides by comparing, and where two numbers are the same but for rounding another order of
    sums decides otherwise: then the gradient jumps, in a deep network by per cents. So a larger error is taken for none
    where the eager gradient itself moves as far when its parameters move by some units in the last place.

    Args:
        found: a gradient.
        eager: the one that it is to equal.
        execution: both of theirs; its precision decides.
        exact: computes the same in float32; called where the precision is lower, or the error is large.
    """
    error, bound = relative_error(found, eager), _bound(eager, execution, exact)
    if precision_of(execution) == "float32" and error > bound:
        moved = most_moved(lambda number: relative_error(exact(partial(nudged, seed=number)), eager), error)
        bound = max(bound, KINKS * moved)
    return Difference(error, bound)


def most_moved(moved: Callable[[int], float], error: float) -> float:
    """The most that a gradient moves by itself (`moved` of 0, 1, …); looks until that is enough for an error."""
    most = 0.0
    for number in range(MOST_MOVES):
        if KINKS * most < error:
            most = max(most, moved(number))
    return most


def nudged(params: Tensors, *, seed: int) -> Tensors:
    """The same up to rounding: each number moved by some units in the last place."""
    generator = torch.Generator().manual_seed(seed)

    def moved(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        by = 2 * torch.rand(value.shape, generator=generator, dtype=torch.float64) - 1
        factor = 1 + LARGEST_MOVE * torch.finfo(value.dtype).eps * by
        return value * factor.to(value.device, value.dtype)

    return {name: moved(value) for name, value in params.items()}


def relative_error(found: Tensors, wanted: Tensors) -> float:
    """The norm of the difference in units of the norm of what was wanted; 0 where both are zero.

    Example:
        >>> round(relative_error({"w": torch.tensor([3.0, 5.0])}, {"w": torch.tensor([3.0, 4.0])}), 6)
        0.2
    """
    distance = _norm({name: found[name] - value for name, value in wanted.items()})
    return 0.0 if distance == 0 else distance / (_norm(wanted) or 1e-300)


def without_compiler(execution: Any, **changes: Any) -> Any:
    """The same execution, running the code as it is."""
    return replace(execution, compiled=None, convolutions="grouped", cuda_graphs=False, **changes)


def _bound(eager: Tensors, execution: Any, exact: Exact) -> float:
    if precision_of(execution) != "float32":
        return max(2 * relative_error(eager, exact(dict)), LEAST_BOUND_LOW)
    eps = max((torch.finfo(value.dtype).eps for value in eager.values()), default=0.0)
    if eps <= torch.finfo(torch.float64).eps:
        return BOUND_FLOAT64
    return BOUND_FLOAT32 if eps <= torch.finfo(torch.float32).eps else LEAST_BOUND_LOW


def _norm(named: Tensors) -> float:
    norms = [torch.linalg.vector_norm(value.detach()).double() for value in named.values()]
    return float(torch.linalg.vector_norm(torch.stack(norms)))
