"""The words of the library as types: one name for one thing."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

Tensors: TypeAlias = dict[str, Tensor]
"""Tensors by name: parameters, buffers, gradients, updates, meta-parameters."""

Batch: TypeAlias = Any
"""What a loss is given: usually `(inputs, targets)`, in general any nest of tensors."""

Schedule: TypeAlias = Callable[[Tensor], Tensor | float]
"""A hyper-parameter that changes: the number of steps done so far (int64 scalar) -> its value."""

Hyper: TypeAlias = float | Tensor | Mapping[str, Tensor | float] | Schedule
"""A hyper-parameter: one value, a value by parameter name, or a schedule of either."""


class Episodes(NamedTuple):
    """A few-shot problem, or a batch of them with a leading task axis on every tensor.

    Attributes:
        support: `(inputs, targets)` to adapt on, `[task, example, ...]`.
        query: `(inputs, targets)` to judge the adapted model on, `[task, example, ...]`.
        key: an int64 random key a task (`metalearn.random`), so that a model's own randomness is a function of the
            episode too. `None` for models that draw nothing.
    """

    support: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]
    key: Tensor | None = None


class Aux(NamedTuple):
    """What a loss returns beside its value.

    Attributes:
        buffers: the model's buffers after the call.
        metrics: scalars to report, by name (`accuracy`, ...).
    """

    buffers: Tensors
    metrics: Tensors = {}  # noqa: RUF012 (a NamedTuple's default; nothing here writes into a dict it was given)
