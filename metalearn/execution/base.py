"""How the tasks of a meta-batch are run, separate from what is computed for each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from metalearn import inner, tree
from metalearn.captured import refuse_captured
from metalearn.errors import UsageError, did_you_mean
from metalearn.functional import RNG
from metalearn.metagrad import Outcome, Strategy
from metalearn.problem import Episode, Problem
from metalearn.types import Aux, Tensors

BufferPolicy: TypeAlias = Literal["mean", "keep"]
"""What returns to the model after a meta step: the tasks' mean (running statistics), or nothing (each stays as is)."""

POLICIES: tuple[BufferPolicy, ...] = ("mean", "keep")


class BatchedMetaGradient(Protocol):
    """The value and gradient of a problem over a batch of episodes."""

    def __call__(self, meta: Tensors, episodes: Episode, carry: Any = None) -> Outcome:
        """Value and gradient averaged over tasks; metrics `[task]` each; buffers merged; carry `[task, …]`."""


@dataclass(frozen=True, kw_only=True)
class Execution(ABC):
    """A way of running tasks. All give the same value and gradient; the derivative is always taken *inside*, by task.

    Attributes:
        buffers: how the tasks' buffers are merged into the model's: `"mean"` averages floating-point buffers over the
            tasks (integers, such as a count of batches, are the same in all tasks and are taken from the first);
            `"keep"` returns none.
    """

    buffers: BufferPolicy = "mean"

    def __post_init__(self) -> None:
        if self.buffers not in POLICIES:
            raise UsageError(f"buffers={self.buffers!r} is not a policy. {did_you_mean(str(self.buffers), POLICIES)}")

    def check(self, problem: Problem) -> None:
        """Refuses a problem whose buffers have to return to the model, where this execution keeps them back.

        Raises:
            UsageError: naming one of them.
        """
        if self.buffers == "keep" and problem.must_return:
            raise UsageError(
                f"execution.buffers=keep returns nothing to the model after a meta step, but the test would read "
                f"{problem.must_return[0]!r}, which only training writes. Take buffers=mean, or normalisation=frozen."
            )

    @abstractmethod
    def run(self, function: Callable[[Any], Any], episodes: Any) -> Iterator[Any]:
        """`function` of every task, in task order, in pieces: each a nest of tensors with a leading task axis."""

    def value_and_grad(self, strategy: Strategy, problem: Problem) -> BatchedMetaGradient:
        """The function `(meta, episodes, carry=None) -> Outcome`, averaged over the tasks in task order."""
        self.check(problem)
        one_task = strategy.value_and_grad(problem)

        def run(meta: Tensors, episodes: Episode, carry: Any = None) -> Outcome:
            def function(task: tuple[Episode, Any]) -> Outcome:
                return one_task(meta, task[0], task[1])

            num_tasks = count_tasks(episodes)
            value: Tensor | None = None
            grads: Tensors = {}
            rest: list[tuple[Aux, Any]] = []
            for part in self.run(function, (episodes, carry)):
                part_value, part_grads = tree.map_tensors(lambda leaf: leaf.sum(0), (part.value, part.grads))
                value = part_value if value is None else value + part_value
                grads = {name: grads[name] + grad for name, grad in part_grads.items()} if grads else part_grads
                rest.append((part.aux, part.carry))
            assert value is not None
            refuse_captured(value)
            aux, carry = concatenate(rest)
            merged = Aux(merge_buffers(aux.buffers, self.buffers), aux.metrics)
            return Outcome(value / num_tasks, {k: v / num_tasks for k, v in grads.items()}, merged, carry)

        return run

    def evaluate(self, problem: Problem, meta: Tensors, episodes: Episode, *, num_inner_steps: int) -> Tensors:
        """The outer loss (`"loss"`) and metrics of every task after 0 … `num_inner_steps` steps, `[task, step]`."""
        longer = replace(problem, num_inner_steps=num_inner_steps, outer_weights=None)
        meta = tree.detach(meta)
        count_tasks(episodes)
        table: Tensors = concatenate(list(self.run(lambda episode: inner.evaluate(longer, meta, episode), episodes)))
        return table


def count_tasks(episodes: Any) -> int:
    """The length of the leading task axis.

    Raises:
        UsageError: there is no tensor, no task, or the tensors disagree.
    """
    leaves = tree.tensors(episodes)
    lengths = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
        raise UsageError(
            f"episodes need one task axis in front of every tensor, of one length above 0; got {shapes or 'none'}."
        )
    return int(next(iter(lengths)))  # type: ignore[arg-type]


def concatenate(parts: Sequence[Any]) -> Any:
    """Nests of one structure, joined along the task axis."""
    flat = [tree.flatten(part) for part in parts]
    joined = [
        torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]
        for leaves in zip(*(leaves for leaves, _ in flat), strict=True)
    ]
    return tree.unflatten(joined, flat[0][1])


def merge_buffers(buffers: Tensors, policy: BufferPolicy) -> Tensors:
    """The tasks' buffers `[task, …]` as the model's, by policy. The random key is not state that returns."""
    if policy == "keep":
        return {}
    return {
        name: value.mean(0) if value.is_floating_point() else value[0] for name, value in buffers.items() if name != RNG
    }
