"""The words of the library as types: one name for one thing."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

Tensors: TypeAlias = dict[str, Tensor]
"""Tensors by name: parameters, buffers, gradients, updates, meta-parameters."""

Batch: TypeAlias = Any
"""What a loss is given: usually `(inputs, targets)`, in general any nest of tensors."""

Schedule: TypeAlias = Callable[[Tensor], Tensor | float | Mapping[str, Tensor | float]]
"""A hyper-parameter that changes: the number of steps done so far (int64 scalar) -> its value, or values by name."""

Hyper: TypeAlias = float | Tensor | Mapping[str, "Tensor | float | Schedule"] | Schedule
"""A hyper-parameter: one value, a value by parameter name, or a schedule of either."""


RNG = "rng"
"""The name among the buffers of the random key that the model draws from."""

Statistics: TypeAlias = Literal["set", "tracked", "running"]
"""What a norm with running statistics normalises by: the set at hand (running ones neither read nor written), the set
at hand and running ones updated by it, or the running ones."""


class Present(NamedTuple):
    """What is real in a set that was padded, so that episodes of several sizes fit into one batch.

    Attributes:
        examples: which rows are real, bool `[task, example]`. Real rows come first; the others repeat the first one's
            inputs (so that a model meets nothing that it could not meet anyway), with the target -100 (labels, torch's
            own mark of what a loss ignores) or 0 (values). None where all are real: a loop cuts the padding off.
        outputs: which of the model's outputs are classes of the episode, bool `[task, output]`; all in a regression.
    """

    examples: Tensor | None
    outputs: Tensor

    @property
    def rows(self) -> Tensor:
        """`examples` where there must be a mask: in whatever a task source returns."""
        assert self.examples is not None, "a loop has cut the padding off"
        return self.examples


Examples: TypeAlias = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Present]
"""A support or query set: `(inputs, targets)`, and what of them is real where they were padded."""


class Episodes(NamedTuple):
    """A few-shot problem, or a batch of them with a leading task axis on every tensor.

    A set is `(inputs, targets)`, or `(inputs, targets, Present)` where the episodes of a batch differ in size. To
    unpack two of three is an error, on purpose: code that knows no padding must not take padded rows for real ones.

    Attributes:
        support: the set to adapt on, tensors `[task, example, ...]`.
        query: the set to judge the adapted model on, tensors `[task, example, ...]`.
        key: an int64 random key a task (`metalearn.random`), so that a model's own randomness is a function of the
            episode too. `None` for models that draw nothing.
    """

    support: Examples
    query: Examples
    key: Tensor | None = None


class Aux(NamedTuple):
    """What a loss returns beside its value.

    Attributes:
        buffers: the model's buffers after the call.
        metrics: scalars to report, by name (`accuracy`, ...).
    """

    buffers: Tensors
    metrics: Tensors = {}  # noqa: RUF012 (a NamedTuple's default; nothing here writes into a dict it was given)
