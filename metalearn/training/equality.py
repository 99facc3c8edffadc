"""Whether two ways of running tasks give the same meta-gradient: asked before a run goes from one to the other."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from metalearn.training.precision_check import precision_of
from metalearn.types import Tensors

BOUND_FLOAT64 = 1e-9
BOUND_FLOAT32 = 1e-4
"""The largest relative error in norm of two gradients that are the same up to the order of sums."""

LEAST_BOUND_LOW = 1e-2
"""The least bound in bf16 and tf32; there it is twice what the eager gradient itself is off that in float32, as two
roundings of one gradient may be that far from each other."""

Exact = Callable[[], Tensors]


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

    Args:
        found: a gradient.
        eager: the one that it is to equal.
        execution: both of theirs; its precision decides.
        exact: computes the same in float32; called in a lower precision alone.
    """
    return Difference(relative_error(found, eager), _bound(eager, execution, exact))


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
    return replace(execution, compiled=None, **changes)


def _bound(eager: Tensors, execution: Any, exact: Exact) -> float:
    if precision_of(execution) != "float32":
        return max(2 * relative_error(eager, exact()), LEAST_BOUND_LOW)
    eps = max((torch.finfo(value.dtype).eps for value in eager.values()), default=0.0)
    if eps <= torch.finfo(torch.float64).eps:
        return BOUND_FLOAT64
    return BOUND_FLOAT32 if eps <= torch.finfo(torch.float32).eps else LEAST_BOUND_LOW


def _norm(named: Tensors) -> float:
    norms = [torch.linalg.vector_norm(value.detach()).double() for value in named.values()]
    return float(torch.linalg.vector_norm(torch.stack(norms)))
