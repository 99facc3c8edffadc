"""How the tasks of a meta-batch are run, separate from what is computed for each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from metalearn import inner, tree
from metalearn.captured import refuse_captured
from metalearn.compilation import CONVOLUTIONS, Convolutions, convolutions_as
from metalearn.errors import UsageError, did_you_mean
from metalearn.execution.compiled import COMPILED_AS, CompiledAs, compiled_parts
from metalearn.execution.precision import Precision, check_precision, in_precision, products_in
from metalearn.execution.recorded import Recorded
from metalearn.functional import RNG
from metalearn.metagrad import Outcome, Strategy
from metalearn.problem import Episode, Problem
from metalearn.types import Aux, Tensors

BufferPolicy: TypeAlias = Literal["mean", "keep"]
"""What returns to the model after a meta step: the tasks' mean (running statistics), or nothing (each stays as is)."""

POLICIES: tuple[BufferPolicy, ...] = ("mean", "keep")

NonfinitePolicy: TypeAlias = Literal["stop", "skip"]
"""A task whose loss or gradient is no number spoils the mean, which ends training, or is left out."""

NONFINITE: tuple[NonfinitePolicy, ...] = ("stop", "skip")

SKIPPED = "skipped_tasks"
"""The metric that counts the tasks left out of a meta-batch: the same for all tasks, so that the mean is the count."""


class BatchedMetaGradient(Protocol):
    """The value and gradient of a problem over a batch of episodes."""

    def __call__(self, meta: Tensors, episodes: Episode, carry: Any = None, held: Tensors | None = None) -> Outcome:
        """Value and gradient averaged over tasks; metrics `[task]` each; buffers merged; carry `[task, …]`.

        `held` are tensors for the problem to hold in place of its own, see `Problem.holding`.
        """


@dataclass(frozen=True, kw_only=True)
class Execution(ABC):
    """A way of running tasks. All give the same value and gradient; the derivative is always taken *inside*, by task.

    Attributes:
        buffers: how the tasks' buffers are merged into the model's: `"mean"` averages floating-point buffers over the
            tasks (integers, such as a count of batches, are the same in all tasks and are taken from the first);
            `"keep"` returns none.
        nonfinite: `"stop"` lets a task that is no number make the mean one of those, which ends training; `"skip"`
            leaves it out of the mean and counts it in the metric `skipped_tasks`.
        task_clip: the largest norm of one task's gradient, scaled down to it where it is larger; None for any.
        precision: of the meta-gradient's arithmetic, see `metalearn.execution.precision`. `evaluate` is float32 in all.
        compiled: run meta-gradients by compiled code, made at the first call for each form (structure, shapes) of the
            arguments. `"whole"` is one graph: of all tasks at once, or of one task where they run in a loop. `"pieces"`
            compiles an inner step, its pullback, and the last step with the outer gradient, and folds over them: what
            is compiled does not grow with the steps, and it is for strategies that walk through them and back
            (`Unrolled`, `FirstOrder`, `Stepwise`). None runs the code as it is. `evaluate` is never compiled.
        convolutions: of compiled code, where vmap makes groups of the tasks: `"grouped"` leaves them to cuDNN or
            oneDNN, `"products"` makes batched products of matrices of them.
        cuda_graphs: record all that compiled code launches on a CUDA device once for each form of the arguments, and
            launch it as one.
    """

    buffers: BufferPolicy = "mean"
    nonfinite: NonfinitePolicy = "stop"
    task_clip: float | None = None
    precision: Precision = "float32"
    compiled: CompiledAs | None = None
    convolutions: Convolutions = "grouped"
    cuda_graphs: bool = False

    at_once: ClassVar[bool]
    """Whether a piece has a task axis, or is one task alone."""

    def __post_init__(self) -> None:
        if self.compiled is not None and self.compiled not in COMPILED_AS:
            raise UsageError(f"compiled={self.compiled!r}. {did_you_mean(str(self.compiled), COMPILED_AS)}")
        if self.convolutions not in CONVOLUTIONS:
            hint = did_you_mean(str(self.convolutions), CONVOLUTIONS)
            raise UsageError(f"execution.convolutions={self.convolutions!r} is no way of computing them. {hint}")
        if self.compiled is None and (self.cuda_graphs or self.convolutions != "grouped"):
            name = "cuda_graphs=true" if self.cuda_graphs else f"convolutions={self.convolutions}"
            raise UsageError(f"execution.{name} is of compiled code: set execution.compile=true (compiled='pieces').")
        check_precision(self.precision)
        if self.buffers not in POLICIES:
            raise UsageError(f"buffers={self.buffers!r} is not a policy. {did_you_mean(str(self.buffers), POLICIES)}")
        if self.nonfinite not in NONFINITE:
            hint = did_you_mean(str(self.nonfinite), NONFINITE)
            raise UsageError(f"nonfinite={self.nonfinite!r} is not a policy. {hint}")
        if self.task_clip is not None and not self.task_clip > 0:
            raise UsageError(f"task_clip={self.task_clip}: a norm to clip to is above 0; None clips nothing.")

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
    def parts(self, episodes: Any) -> Iterator[Any]:
        """The tasks in pieces that are run at once, in task order."""

    @abstractmethod
    def over_tasks(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """From a function of one task to that of such a piece: nests of tensors with a leading task axis."""

    def run(self, function: Callable[[Any], Any], episodes: Any) -> Iterator[Any]:
        """`function` of every task, in task order, piece by piece."""
        return map(self.over_tasks(function), self.parts(episodes))

    def value_and_grad(self, strategy: Strategy, problem: Problem) -> BatchedMetaGradient:
        """The function `(meta, episodes, carry=None, held=None) -> Outcome`, averaged over the tasks in task order.

        Raises:
            UsageError: see `check`; compiled pieces of a strategy that is no walk through the steps.
        """
        self.check(problem)
        in_parts = self._in_parts(strategy, problem)

        def run(meta: Tensors, episodes: Episode, carry: Any = None, held: Tensors | None = None) -> Outcome:
            num_tasks = count_tasks(episodes)
            if held is not None and problem.holding is None:
                raise UsageError("held: this problem (Problem.holding) is not made to hold other tensors.")
            with products_in(self.precision, device_of(meta)), convolutions_as(self.convolutions):
                return in_parts(held, meta, list(self.parts((episodes, carry))), num_tasks)

        return run

    def _in_parts(
        self, strategy: Strategy, problem: Problem
    ) -> Callable[[Tensors | None, Tensors, list[Any], int], Outcome]:
        def problem_of(held: Tensors | None) -> Problem:
            now = problem if held is None or problem.holding is None else problem.holding(held)
            return in_precision(now, self.precision)

        def one_part(held: Tensors | None, meta: Tensors, part: Any) -> Outcome:
            one_task = strategy.value_and_grad(problem_of(held))
            found: Outcome = self.over_tasks(lambda task: one_task(meta, *task))(part)
            return found

        if self.compiled is not None:
            run = compiled_parts(self.compiled, strategy, problem_of, one_part, self.reduced, tasks=self.at_once)
            return Recorded(run) if self.cuda_graphs else run
        return lambda held, meta, parts, count: self.reduced((one_part(held, meta, part) for part in parts), count)

    def reduced(self, parts: Iterable[Outcome], num_tasks: int) -> Outcome:
        """The mean over tasks, of outcomes with a leading task axis; metrics `[task]`, buffers merged, carry kept."""
        count: Tensor | int = num_tasks
        value: Tensor | None = None
        grads: Tensors = {}
        rest: list[tuple[Aux, Any, Tensor | None]] = []
        for part in parts:
            part, kept = self._mended(part)
            part_value, part_grads = tree.map_tensors(lambda leaf: leaf.sum(0), (part.value, part.grads))
            value = part_value if value is None else value + part_value
            grads = {name: grads[name] + grad for name, grad in part_grads.items()} if grads else part_grads
            rest.append((part.aux, part.carry, kept))
        assert value is not None
        refuse_captured(value)
        aux, carry, kept = concatenate(rest)
        if kept is not None:
            aux, count = without_skipped(aux, kept), kept.sum()
        merged = Aux(merge_buffers(aux.buffers, self.buffers), aux.metrics)
        return Outcome(value / count, {k: v / count for k, v in grads.items()}, merged, carry)

    def _mended(self, part: Outcome) -> tuple[Outcome, Tensor | None]:
        """Some tasks with their gradients clipped and zeros for those to skip; and which are kept, `[task]`."""
        if self.task_clip is not None:
            part = part._replace(grads=clipped_by_task(part.grads, self.task_clip))
        if self.nonfinite != "skip":
            return part, None
        finite = [leaf.isfinite().reshape(len(leaf), -1).all(1) for leaf in part.grads.values()]
        kept = torch.stack([part.value.isfinite(), *finite]).all(0)
        value, grads = tree.map_tensors(lambda leaf: torch.where(along(kept, leaf), leaf, 0), (part.value, part.grads))
        return part._replace(value=value, grads=grads), kept

    def evaluate(self, problem: Problem, meta: Tensors, episodes: Episode, *, num_inner_steps: int) -> Tensors:
        """The outer loss (`"loss"`) and metrics of every task after 0 … `num_inner_steps` steps, `[task, step]`."""
        longer = replace(problem, num_inner_steps=num_inner_steps, outer_weights=None)
        meta = tree.detach(meta)
        count_tasks(episodes)
        with products_in("float32", device_of(meta)):
            parts = list(self.run(lambda episode: inner.evaluate(longer, meta, episode), episodes))
        table: Tensors = concatenate(parts)
        return table


def device_of(meta: Tensors) -> torch.device:
    """Where a computation with `meta` happens; the CPU where it is empty, which the strategies refuse."""
    return next((value.device for value in meta.values()), torch.device("cpu"))


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
    return tree.joined(parts, torch.cat)


def clipped_by_task(grads: Tensors, norm: float) -> Tensors:
    """Gradients `[task, …]`, each task's scaled down to a norm if it has a larger one; what is no number stays so."""
    largest = torch.stack([leaf.abs().reshape(len(leaf), -1).amax(1) for leaf in grads.values()]).amax(0)
    unit = torch.where(largest > 0, largest, 1)  # squares of large entries would overflow
    squares = [(leaf / along(unit, leaf)).square().reshape(len(leaf), -1).sum(1) for leaf in grads.values()]
    found = torch.stack(squares).sum(0).sqrt() * unit
    scale = torch.where(found > norm, norm / unit / (found / unit), 1)
    return {
        name: torch.where(along(found > norm, leaf), leaf * along(scale, leaf), leaf) for name, leaf in grads.items()
    }


def without_skipped(aux: Aux, kept: Tensor) -> Aux:
    """What tasks reported, with the mean of those kept in the places of the others, and how many these are."""

    def filled(leaf: Tensor) -> Tensor:
        mask = along(kept, leaf)
        if not leaf.is_floating_point():
            return torch.where(mask, leaf, leaf.index_select(0, kept.to(torch.uint8).argmax()[None])[0])
        mean = torch.where(mask, leaf, 0).sum(0) / kept.sum()
        return torch.where(mask, leaf, mean)

    aux = tree.map_tensors(filled, aux)
    skipped = (~kept).sum().to(torch.get_default_dtype()).expand(len(kept))
    return aux._replace(metrics={**aux.metrics, SKIPPED: skipped})


def along(per_task: Tensor, leaf: Tensor) -> Tensor:
    """One value a task, `[task]`, in the shape that broadcasts against `[task, …]`."""
    return per_task.reshape(-1, *[1] * (leaf.dim() - 1))


def merge_buffers(buffers: Tensors, policy: BufferPolicy) -> Tensors:
    """The tasks' buffers `[task, …]` as the model's, by policy. The random key is not state that returns."""
    if policy == "keep":
        return {}
    return {
        name: value.mean(0) if value.is_floating_point() else value[0] for name, value in buffers.items() if name != RNG
    }
