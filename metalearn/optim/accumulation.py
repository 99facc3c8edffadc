"""One step in several: on the mean of their gradients."""

from typing import Any, NamedTuple

from torch import Tensor

from metalearn.errors import UsageError
from metalearn.optim.base import GradientTransformation, check_names, check_parts, check_state, zero_count
from metalearn.optim.wrapping import chosen, following, nothing
from metalearn.types import Tensors


class AccumulationState(NamedTuple):
    """The state of `accumulate`.

    Attributes:
        num_steps: int64 scalar, the number of gradients seen.
        total: the sum of the gradients since the inner transformation last stepped, by parameter name.
        inner: the state of the inner transformation, which counts its own steps.
    """

    num_steps: Tensor
    total: Tensors
    inner: Any


def accumulate(transformation: GradientTransformation, every: int) -> GradientTransformation:
    """Steps on the mean of `every` gradients, each time that so many have come; in between, parameters stay.

    That is one step on a batch `every` times as large, where the loss is a mean and the batches are equal. Gradients at
    the end that are fewer than `every` move nothing, and stay in the state for the next steps.

    Args:
        transformation: what gets the mean; its count and its schedules go by its own steps.
        every: how many gradients make a step, at least 1.

    Raises:
        UsageError: `every` is not a whole number of at least 1.

    Example:
        >>> import torch
        >>> from metalearn import optim
        >>> optimizer, params = accumulate(optim.sgd(1.0), 2), {"w": torch.zeros(())}
        >>> state, moves = optimizer.init(params), []
        >>> for gradient in (1.0, 3.0):
        ...     updates, state = optimizer.update({"w": torch.tensor(gradient)}, state, params)
        ...     moves.append(updates["w"].item())
        >>> moves
        [0.0, -2.0]
    """
    check_parts("accumulate", transformation)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise UsageError(f"every is {every!r}, but must be a whole number of gradients, at least 1.")

    def init(params: Tensors) -> AccumulationState:
        return AccumulationState(zero_count(params), nothing(params), transformation.init(params))

    def step(updates: Tensors, state: AccumulationState, params: Tensors) -> tuple[Tensors, Tensors, AccumulationState]:
        check_names(updates, params)
        check_state(state, AccumulationState)
        count = state.num_steps + 1
        total = {name: state.total[name] + value for name, value in updates.items()}
        mean = {name: value / every for name, value in total.items()}
        (moved, changed, inner), left = chosen(
            count % every == 0,
            lambda: (transformation.step(mean, state.inner, params), nothing(total)),
            ((params, nothing(params), state.inner), total),
        )
        return moved, changed, AccumulationState(count, left, inner)

    return following(init, step)
