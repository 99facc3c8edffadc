"""Makes an unroll: traces its pieces, finds out what depends on what, and compiles each piece once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn import tree
from metalearn.compilation import Graph, Program, check_number_of_forms, split, trace, unfilled
from metalearn.execution.pieces import Nest, Pieces, Places
from metalearn.execution.unread import StepIsRead, UnreadStep
from metalearn.execution.unroll import Judge, Step, Unroll
from metalearn.metagrad import Outcome, Unrolling
from metalearn.problem import Problem
from metalearn.types import Tensors

Axes = tuple[int | None, ...]

EXPANDED_FROM = 3
"""From so many steps on the start has a task axis, and the first step is compiled code that the others share."""


@dataclass(frozen=True)
class Inputs:
    """What an unroll is made for.

    Attributes:
        nests: the structures of what the problem holds, of `meta` and of the episode.
        tensors: theirs, in this order.
        tasks: whether the episode's tensors have a task axis.
    """

    nests: tuple[Nest, Nest, Nest]
    tensors: list[Tensor]
    tasks: bool

    @property
    def axes(self) -> Axes:
        """Where the task axis of each tensor is."""
        held, meta, episode = (nest.count for nest in self.nests)
        return (None,) * (held + meta) + (0 if self.tasks else None,) * episode


class Given(NamedTuple):
    """What a piece is given beside the inputs.

    Attributes:
        like: tensors like those to come.
        axes: which of them have a task axis.
        floats: of a state, those that gradients may flow through.
    """

    like: Sequence[Tensor] = ()
    axes: Axes = ()
    floats: Places = ()

    def followed_by(self, *others: "Given") -> "Given":
        """All of them, one after the other."""
        parts = (self, *others)
        return Given(
            [leaf for part in parts for leaf in part.like], tuple(axis for part in parts for axis in part.axes)
        )


def assemble(
    unrolling_of: Callable[[Tensors | None], Unrolling], inputs: Inputs, reduced: Callable[[Outcome], Outcome]
) -> Unroll:
    """The unroll of a problem with at least one inner step.

    Args:
        unrolling_of: a strategy's, of the problem that holds some tensors: the problem, and what is kept on the way
            there.
        inputs: what it is made for.
        reduced: what is made of the outcome, of which everything has a task axis where the inputs have one.

    Raises:
        UsageError: the problem can not be traced, or a step changes its state's structure.
    """
    nests = inputs.nests
    held = nests[0].close(inputs.tensors[: nests[0].count])
    pieces = Pieces(lambda held: unrolling_of(held).problem, nests)
    return _Assembly(unrolling_of(held), inputs, pieces).whole(reduced)


@dataclass
class _Assembly:
    unrolling: Unrolling
    inputs: Inputs
    pieces: Pieces
    batch: Given = field(default=Given(), init=False)
    reads_steps: bool = field(default=False, init=False)
    traced: list[tuple[Any, Graph]] = field(default_factory=list, init=False)
    programs: dict[Any, Any] = field(default_factory=dict, init=False)
    differentiable: dict[int, Places] = field(default_factory=dict, init=False)
    graphs: list[Graph] = field(default_factory=list, init=False)

    def whole(self, reduced: Callable[[Outcome], Outcome]) -> Unroll:
        problem = self.unrolling.problem
        num_steps = problem.num_inner_steps - 1
        start, first = self._start()
        batches = self._batches()
        states = [first]
        for number in range(num_steps):
            states.append(self._after(number, states[number]))
        weights = self._weights(problem)
        end = self._judge(states[num_steps], num_steps, [*weights.values()][-1:], stepping=True)
        judges = {
            n: self._judge(states[n], n, [weights[n]], stepping=False) for n in range(1, num_steps + 1) if weights
        }
        places, steps, meta = end.places, [], {*end.meta}
        for number in reversed(range(num_steps)):
            if number + 1 in judges:
                places = tuple(sorted({*places, *judges[number + 1].places}))
            steps.append(self._step(number, states[number], states[number + 1], places))
            places = steps[-1].places
        meta = meta.union(*(step.meta for step in steps), *(judge.meta for judge in judges.values()))
        finish, close = self._finish(first, places, sorted(meta), end, reduced)
        return Unroll(
            start=start, batches=batches, steps=steps[::-1], end=end, judges=judges, weights=self._weights_now(weights),
            finish=finish, close=close, every=self.unrolling.every,
        )  # fmt: skip

    def _start(self) -> tuple[Program, Given]:
        inputs, start = self.inputs, self.pieces.start
        if not inputs.tasks:
            graph = trace(start, inputs.tensors)
            return Program(graph), self._unfilled(graph.forms(), self.pieces.differentiable)
        shared = self.unrolling.problem.num_inner_steps < EXPANDED_FROM
        axes: list[int | None] = []

        def watched(*tensors: Tensor) -> tuple[Tensor, ...]:
            found = start(list(tensors))
            axes[:] = [None if shared and not torch._C._functorch.is_batchedtensor(leaf) else 0 for leaf in found]
            return tuple(found)

        with torch.no_grad():  # shows which tensors all tasks have in common
            torch.vmap(watched, inputs.axes)(*inputs.tensors)
        out: Any = tuple(axes)
        graph = trace(lambda tensors: torch.vmap(watched, inputs.axes, out)(*tensors), inputs.tensors)
        return Program(graph), Given(_empty(graph.forms()), out, self.pieces.differentiable)

    def _batches(self) -> list[Program]:
        """What gives each step's batch; none where the steps have the same one, which is then found inside the step."""
        try:
            self._graph(lambda tensors: self.pieces.batch_of(tensors, UnreadStep()), Given())
        except StepIsRead:
            numbers = range(self.unrolling.problem.num_inner_steps)
            graphs = [self._graph(_numbered(self.pieces.batch_of, number), Given()) for number in numbers]
            self.batch = self._unfilled(graphs[0].forms())
            return [Program(graph) for graph in graphs]
        self.pieces.batch = None
        return []

    def _weights_now(self, weights: dict[int, Tensor]) -> Callable[[list[Tensor]], Mapping[int, Tensor]]:
        """From the inputs to the weights: those that are tensors may be held, and others at the next call."""
        nest = self.inputs.nests[0]
        if not nest.count or not any(isinstance(each, Tensor) for each in self.unrolling.problem.outer_weights or ()):
            return lambda tensors: weights
        return lambda tensors: self._weights(self.pieces.problem_of(nest.close(tensors[: nest.count])))

    def _weights(self, problem: Problem) -> dict[int, Tensor]:
        weights = problem.outer_weights or ()
        device = self.inputs.tensors[-1].device
        exact = torch.float32 if device.type == "mps" else torch.float64  # the former has no double
        return {
            number: weight.detach() if isinstance(weight, Tensor) else torch.tensor(weight, dtype=exact, device=device)
            for number, weight in enumerate(weights, 1)
        }

    def _judge(self, state: Given, number: int, weight: list[Tensor], *, stepping: bool) -> Judge:
        given = state.followed_by(self.batch if stepping else Given(), Given(weight, (None,) * len(weight)))

        def judged(tensors: list[Tensor], step: Any) -> list[Tensor]:
            return self.pieces.judge(tensors, step, state.floats, stepping=stepping)

        graph = (
            self._graph(_numbered(judged, number), given)
            if stepping
            else self._of_step(("judge", state.floats), judged, number, given)
        )
        num_meta, floats = len(self.inputs.nests[1].floats), state.floats
        meta = [place for place in range(num_meta) if not graph.is_zero(1 + place)]
        own = [place for place in range(len(floats)) if not graph.is_zero(1 + num_meta + place)]
        reported = range(1 + num_meta + len(floats), len(graph.outputs)) if stepping else ()
        graph = graph.keeping([0, *(1 + place for place in meta), *(1 + num_meta + place for place in own), *reported])
        (program,) = self._compiled(graph)
        return Judge(program, tuple(meta), tuple(floats[place] for place in own))

    def _after(self, number: int, state: Given) -> Given:
        """The form of the state after a step."""

        def forward(tensors: list[Tensor], step: Any) -> list[Tensor]:
            return self.pieces.forward(tensors, step, state.floats)

        graph = self._of_step(("forward", state.floats), forward, number, state.followed_by(self.batch))
        return self._unfilled(graph.forms(), self.differentiable[id(graph)])

    def _step(self, number: int, state: Given, after: Given, places: Places) -> Step:
        cotangents = Given([after.like[place] for place in places], self._all_tasks(len(places)))

        def stepped(tensors: list[Tensor], step: Any) -> list[Tensor]:
            return self.pieces.step(tensors, step, state.floats, places)

        key = ("step", state.floats, places)
        graph = self._of_step(key, stepped, number, state.followed_by(self.batch, cotangents))
        count, num_meta = len(state.like), len(self.inputs.nests[1].floats)
        pulled = [place for place in range(count, len(graph.outputs)) if not graph.is_zero(place)]
        meta = tuple(place - count for place in pulled if place < count + num_meta)
        own = tuple(state.floats[place - count - num_meta] for place in pulled if place >= count + num_meta)
        forward, back = self._compiled(graph.keeping([*range(count), *pulled]), num_outputs=count)
        return Step(forward, back, meta, own)

    def _finish(
        self, first: Given, places: Places, meta: list[int], end: Judge, reduced: Callable[[Outcome], Outcome]
    ) -> tuple[Program, Callable[[list[Tensor]], Any]]:
        """What is done at the end: back through the start, and whatever is made of the tasks' outcomes."""
        forms = end.program.graph.forms()
        structure, held = self.inputs.nests[1], self.inputs.nests[0].count
        own = self.inputs.tensors[held : held + structure.count]
        cotangents = [self._of_tasks(first.like[place], first.axes[place]) for place in places]
        gathered = [self._of_tasks(own[structure.floats[place]], None) for place in meta]
        axes = self._all_tasks(len(places))
        count = len(self.inputs.tensors) + len(places)
        closed: list[Callable[[list[Tensor]], Any]] = []

        def pulled(tensors: list[Tensor]) -> list[Tensor]:
            return self.pieces.pull_start(tensors, places)

        def finished(tensors: list[Tensor]) -> list[Tensor]:
            grads = list(self._over_tasks(pulled, axes)(tensors[:count]))
            for place, value in zip(meta, tensors[count:], strict=False):
                grads[place] = grads[place] + value
            value, *reported = tensors[count + len(meta) :]
            assert self.pieces.aux is not None
            outcome = Outcome(value, structure.close(grads), self.pieces.aux.close(reported), None)
            found, close = tree.opened(reduced(outcome))
            closed.append(close)
            return found

        last = [forms[0], *forms[1 + len(end.meta) + len(end.places) :]]
        graph = trace(finished, [*self.inputs.tensors, *cotangents, *gathered, *_empty(last)])
        return Program(graph), closed[-1]

    def _of_step(
        self, key: Any, function: Callable[[list[Tensor], Any], list[Tensor]], number: int, given: Given
    ) -> Graph:
        """A graph of a step: the same one for all numbers, where the code does not look at the number."""
        form = (key, given.axes, [(leaf.shape, leaf.dtype) for leaf in given.like])
        for known, graph in self.traced:
            if known == form:
                return graph
        if not self.reads_steps:
            try:
                graph = self._graph(_numbered(function, UnreadStep()), given)
            except StepIsRead:
                self.reads_steps = True
            else:
                self.traced.append((form, graph))
                return graph
        return self._graph(_numbered(function, number), given)

    def _compiled(self, graph: Graph, *, num_outputs: int | None = None) -> tuple[Program, ...]:
        """A graph, or its halves, compiled; an equal one that is there already is taken."""
        key = (graph.text(), graph.needs, tuple(map(id, graph.constants)), num_outputs)
        if key not in self.programs:
            if num_outputs is None:
                graphs = [graph]
            elif self.unrolling.every is None:
                num_inputs = len(self.inputs.tensors) + self._count + len(self.batch.like)
                graphs = [*split(graph, num_inputs=num_inputs, num_outputs=num_outputs)]
            else:
                graphs = [graph.keeping(range(num_outputs)), graph.keeping(range(num_outputs, len(graph.outputs)))]
            check_number_of_forms(len(self.programs))
            self.programs[key] = tuple(map(Program, graphs))
        found: tuple[Program, ...] = self.programs[key]
        return found

    def _graph(self, function: Callable[[list[Tensor]], list[Tensor]], given: Given) -> Graph:
        """The graph of a function of the inputs and of what is given beside them, for all tasks at once."""
        graph = trace(self._over_tasks(function, given.axes), [*self.inputs.tensors, *given.like])
        self.differentiable[id(graph)] = self.pieces.differentiable
        self.graphs.append(graph)  # as long as its id is in use
        return graph

    def _over_tasks(
        self, function: Callable[[list[Tensor]], list[Tensor]], axes: Axes
    ) -> Callable[[list[Tensor]], Sequence[Tensor]]:
        if not self.inputs.tasks:
            return function
        every = (*self.inputs.axes, *axes)
        batched = torch.vmap(lambda *tensors: tuple(function(list(tensors))), every)
        return lambda tensors: batched(*tensors)

    @property
    def _count(self) -> int:
        assert self.pieces.state is not None
        return self.pieces.state.count

    def _all_tasks(self, count: int) -> Axes:
        return (0 if self.inputs.tasks else None,) * count

    def _unfilled(self, forms: Sequence[Tensor], floats: Places = ()) -> Given:
        return Given(_empty(forms), self._all_tasks(len(forms)), floats)

    def _of_tasks(self, leaf: Tensor, axis: int | None) -> Tensor:
        if not self.inputs.tasks or axis == 0:
            return leaf
        return leaf.new_empty((len(self.inputs.tensors[-1]), *leaf.shape))


def _numbered(
    function: Callable[[list[Tensor], Any], list[Tensor]], number: Any
) -> Callable[[list[Tensor]], list[Tensor]]:
    return lambda tensors: function(tensors, number)


def _empty(forms: Sequence[Tensor]) -> list[Tensor]:
    return [unfilled(leaf) for leaf in forms]
