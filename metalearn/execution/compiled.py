"""Meta-gradients by compiled code: one graph of it all, or pieces to fold over."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from metalearn import tree
from metalearn.compilation import Compiled, check_number_of_forms, form_of
from metalearn.errors import UsageError
from metalearn.execution.assembly import Inputs, assemble
from metalearn.execution.pieces import Nest
from metalearn.metagrad import Outcome, Strategy, Unrolling
from metalearn.metagrad.base import constants, refuse_carry
from metalearn.problem import Problem
from metalearn.types import Tensors

CompiledAs: TypeAlias = Literal["pieces", "whole"]
COMPILED_AS: tuple[CompiledAs, ...] = get_args(CompiledAs)

OfPart: TypeAlias = Callable[[Tensors | None, Tensors, Any], Outcome]
"""`(held, meta, (episodes, carry)) -> Outcome` of some tasks, everything with a leading task axis."""

OfParts: TypeAlias = Callable[[Tensors | None, Tensors, list[Any], int], Outcome]
"""`(held, meta, parts, number of tasks) -> Outcome`, the mean over all tasks."""

Reduced: TypeAlias = Callable[[Iterable[Outcome], int], Outcome]


def compiled_parts(
    compiled: CompiledAs,
    strategy: Strategy,
    problem_of: Callable[[Tensors | None], Problem],
    one_part: OfPart,
    reduced: Reduced,
    *,
    tasks: bool,
) -> OfParts:
    """The meta-gradient by compiled code.

    Args:
        compiled: as one graph, or in pieces.
        strategy: how the gradient flows.
        problem_of: the problem that holds some tensors.
        one_part: the meta-gradient of some tasks, as it is.
        reduced: the mean over tasks.
        tasks: whether a part has a task axis, or is one task.
    """
    if compiled == "pieces":
        one_task = _InPieces(strategy, problem_of, reduced, tasks=tasks)
        if one_task.is_walk:
            return one_task
    return _Whole(one_part, reduced)


class _Whole:
    """One graph: the mean is part of it where all tasks run at once."""

    def __init__(self, one_part: OfPart, reduced: Reduced) -> None:
        self._one = Compiled(one_part)
        self._all = Compiled(lambda held, meta, part, count: reduced([one_part(held, meta, part)], count))
        self._reduced = reduced

    def __call__(self, held: Tensors | None, meta: Tensors, parts: list[Any], num_tasks: int) -> Outcome:
        refuse_history(meta)
        if len(parts) == 1:
            found: Outcome = self._all(held, meta, parts[0], num_tasks)
            return found
        return self._reduced((self._one(held, meta, part) for part in parts), num_tasks)


class _InPieces:
    """A fold over pieces, made for each form of the arguments."""

    def __init__(
        self,
        strategy: Strategy,
        problem_of: Callable[[Tensors | None], Problem],
        reduced: Reduced,
        *,
        tasks: bool,
    ) -> None:
        unrolling = strategy.unrolling(problem_of(None))
        if unrolling is None:
            raise UsageError(
                f"compiled pieces are of strategies that walk through steps and back, and {type(strategy).__name__} "
                "does not: compile it as one graph (execution.compile=whole, compiled='whole'), or take Unrolled."
            )
        self.is_walk = unrolling.problem.num_inner_steps > 0  # without a step there is nothing to cut into pieces
        self._strategy, self._problem_of, self._reduced, self._tasks = strategy, problem_of, reduced, tasks
        self._made: list[tuple[Any, Callable[[list[Tensor]], Outcome]]] = []

    def __call__(self, held: Tensors | None, meta: Tensors, parts: list[Any], num_tasks: int) -> Outcome:
        refuse_history(meta)
        if len(parts) == 1:
            return self._outcome(held, meta, parts[0], num_tasks)
        return self._reduced((self._outcome(held, meta, part, None) for part in parts), num_tasks)

    def _outcome(self, held: Tensors | None, meta: Tensors, part: Any, num_tasks: int | None) -> Outcome:
        episode, carry = part
        refuse_carry(self._strategy, carry)
        form, tensors = form_of((held, meta, episode, num_tasks))
        for known, run in self._made:
            if known == form:
                return run(tensors)
        check_number_of_forms(len(self._made))
        constants(meta, episode)
        run = self._assembled(held, meta, episode, num_tasks)
        self._made.append((form, run))
        return run(tensors)

    def _assembled(
        self, held: Tensors | None, meta: Tensors, episode: Any, num_tasks: int | None
    ) -> Callable[[list[Tensor]], Outcome]:
        nests, tensors = zip(*(Nest.of(tree.detach(nest)) for nest in (held, meta, episode)), strict=True)

        def unrolling_of(held: Tensors | None) -> Unrolling:
            found = self._strategy.unrolling(self._problem_of(held))
            assert found is not None
            return found

        def ended(outcome: Outcome) -> Outcome:
            if not self._tasks:
                outcome = tree.map_tensors(lambda leaf: leaf.unsqueeze(0), outcome)
            return outcome if num_tasks is None else self._reduced([outcome], num_tasks)

        inputs = Inputs(nests, [leaf for each in tensors for leaf in each], self._tasks)
        return assemble(unrolling_of, inputs, ended)


def refuse_history(meta: Tensors) -> None:
    """Raises UsageError where `meta` is the result of a computation that is being differentiated."""
    if any(value.grad_fn is not None for value in meta.values()):
        constants(meta, ())
