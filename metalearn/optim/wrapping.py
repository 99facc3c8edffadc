"""What transformations around another one share: `update` and `step` in one, and a step that may not happen."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metalearn.optim.base import GradientTransformation
from metalearn.optim.numerics import is_readable
from metalearn.types import Tensors

T = TypeVar("T")


def following(
    init: Callable[[Tensors], Any], step: Callable[[Tensors, Any, Tensors], tuple[Tensors, Tensors, Any]]
) -> GradientTransformation:
    """A transformation whose step calls another one's, so that the bits of that are kept."""

    def update(updates: Tensors, state: Any, params: Tensors) -> tuple[Tensors, Any]:
        return step(updates, state, params)[1:]

    return GradientTransformation(init, update, step)


def chosen(condition: Tensor | bool, then: Callable[[], T], otherwise: T) -> T:
    """`then()` where the condition holds, else `otherwise`, nests of one structure.

    Where the condition can be read, what it does not ask for is not computed; under vmap, where it may hold for some,
    and in a compiled step, both are.
    """
    if isinstance(condition, bool) or is_readable(condition):
        return then() if bool(condition) else otherwise
    # By name and not in order: another's transformation may return its dicts in another order.
    result: T = pytree.tree_map(lambda a, b: torch.where(condition.to(a.device), a, b), then(), otherwise)
    return result


def nothing(named: Tensors) -> Tensors:
    """Zeros of the same names, shapes and dtypes."""
    return {name: torch.zeros_like(value) for name, value in named.items()}
