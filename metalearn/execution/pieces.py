"""The functions that a compiled unroll is made of, on flat lists of tensors: a step with its pullback, and both ends.

Their inputs are, in this order, the tensors that the problem holds, those of `meta`, of the episode, of the inner
state, of a step's batch where each step has another one, and cotangents. The functions are of one task; `torch.vmap`
makes them functions of all tasks at once, with the derivatives inside.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import vjp

from metalearn import tree
from metalearn.captured import refuse_captured
from metalearn.diagnosis import explained
from metalearn.errors import UsageError
from metalearn.inner import InnerState, outer_loss_of, problem_step, start
from metalearn.metagrad.reverse import gradients, pullback
from metalearn.problem import Problem
from metalearn.types import Aux, Tensors

Places: TypeAlias = tuple[int, ...]
"""Which tensors of an inner state, or of `meta`, are meant."""


@dataclass(frozen=True)
class Nest:
    """What a nest of tensors is without them.

    Attributes:
        close: from tensors to the nest.
        count: how many tensors there are.
        floats: which of them gradients can flow through.
        rest: whatever else is in the nest.
    """

    close: Callable[[Sequence[Tensor]], Any] = field(repr=False)
    count: int
    floats: Places
    rest: tuple[Any, ...]

    @staticmethod
    def of(nest: Any) -> tuple["Nest", list[Tensor]]:
        """The structure of a nest, and its tensors."""
        tensors, close = tree.opened(nest)
        rest = tuple(leaf for leaf in tree.flatten(nest)[0] if not isinstance(leaf, Tensor))
        floats = tuple(n for n, leaf in enumerate(tensors) if leaf.is_floating_point() or leaf.is_complex())
        return Nest(close, len(tensors), floats, rest), tensors

    def filled(self, tensors: Sequence[Tensor], places: Places, values: Sequence[Tensor]) -> Any:
        """The nest of these tensors, with others at some places."""
        own = list(tensors)
        for place, value in zip(places, values, strict=True):
            own[place] = value
        return self.close(own)


@dataclass
class Pieces:
    """A problem as functions of flat lists of tensors.

    Attributes:
        problem_of: the problem that holds some tensors (`Problem.holding`), or None for its own.
        given: the structures of what comes in: the held tensors or None, `meta`, the episode.
        state: the structure of the inner state, once the start has been traced.
        aux: that of what the outer loss reports, likewise.
        batch: that of a step's batch, where each step has another one.
        differentiable: of the state that was traced last, the tensors that gradients may flow through.
    """

    problem_of: Callable[[Tensors | None], Problem]
    given: tuple[Nest, Nest, Nest]
    state: Nest | None = None
    aux: Nest | None = None
    batch: Nest | None = None
    differentiable: Places = ()

    def start(self, inputs: list[Tensor]) -> list[Tensor]:
        """The tensors of the state before the first step."""
        seen = self._open(inputs)

        def started(by_meta: list[Tensor], by_state: list[Tensor]) -> InnerState:
            return start(seen.problem, seen.meta_with(by_meta), seen.episode)

        self.state = None
        return self._watched(started, seen, [])

    def pull_start(self, inputs: list[Tensor], places: Sequence[int]) -> list[Tensor]:
        """Of cotangents of the state's tensors at `places`, those of the floating-point tensors of `meta`."""
        seen = self._open(inputs)

        def started(floats: list[Tensor]) -> list[Tensor]:
            tensors = tree.opened(start(seen.problem, seen.meta_with(floats), seen.episode))[0]
            return [tensors[place] for place in places]

        if not places:
            return [torch.zeros_like(leaf) for leaf in seen.meta_floats]
        _, pull = pullback(started, seen.meta_floats)
        pulled: list[Tensor] = pull(seen.rest, retain_graph=False)[0]
        return pulled

    def batch_of(self, inputs: list[Tensor], step: Any) -> list[Tensor]:
        """The tensors of a step's batch."""
        seen = self._open(inputs)
        self.batch, tensors = Nest.of(seen.problem.batch(seen.episode, step))
        return tensors

    def forward(self, inputs: list[Tensor], step: Any, floats: Places) -> list[Tensor]:
        """The tensors of the state after a step; `floats` are the places in the state before it for gradients."""
        seen = self._open(inputs)
        state, _ = self._open_state(seen, stepping=True)

        def stepped(by_meta: list[Tensor], by_state: list[Tensor]) -> InnerState:
            before = self._filled(state, floats, by_state)
            return problem_step(seen.problem, seen.meta_with(by_meta), seen.episode, before, step)

        return self._watched(stepped, seen, [state[place] for place in floats])

    def step(self, inputs: list[Tensor], step: Any, floats: Places, places: Places) -> list[Tensor]:
        """The tensors of the state after a step; then, of cotangents of those at `places`, what they pull back to.

        These are cotangents of the floating-point tensors of `meta`, and then of those at `floats` before the step.
        """
        seen = self._open(inputs)
        state, cotangents = self._open_state(seen, stepping=True)

        def stepped(by_meta: list[Tensor], by_state: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            before = self._filled(state, floats, by_state)
            after = problem_step(seen.problem, seen.meta_with(by_meta), seen.episode, before, step)
            tensors = tree.tensors(after)
            return [tensors[place] for place in places], tensors

        with explained(seen.meta):
            own = [state[place] for place in floats]
            _, pull, tensors = vjp(stepped, seen.meta_floats, own, has_aux=True)  # type: ignore[misc]
            by_meta, by_state = pull(cotangents, retain_graph=False, create_graph=False)
        return [*tensors, *by_meta, *by_state]

    def judge(self, inputs: list[Tensor], step: Any, floats: Places, *, stepping: bool) -> list[Tensor]:
        """The outer loss, its gradients by the tensors of `meta` and of the state at `floats`, and what it reports.

        It is of the state given after `step` steps or, where `stepping`, of the state one step later: that step and
        the outer loss are differentiated as one. A weight of the loss comes after the state.
        """
        seen = self._open(inputs)
        state, weight = self._open_state(seen, stepping=stepping)

        def loss(by_meta: list[Tensor], by_state: list[Tensor]) -> tuple[Tensor, Aux]:
            now, meta, judged = self._filled(state, floats, by_state), seen.meta_with(by_meta), step
            if stepping:
                now, judged = problem_step(seen.problem, meta, seen.episode, now, step), step + 1
            value, aux = outer_loss_of(seen.problem, meta, seen.episode, now, judged)
            return weight[0].to(value.dtype) * value if weight else value, aux

        with explained(seen.meta):
            own = [state[place] for place in floats]
            (by_meta, by_state), value, aux = gradients(loss, seen.meta_floats, own)
        refuse_captured(value)
        self.aux, reported = Nest.of(aux)
        return [value, *by_meta, *by_state, *reported]

    def _watched(
        self, function: Callable[[list[Tensor], list[Tensor]], InnerState], seen: "_Opened", floats: list[Tensor]
    ) -> list[Tensor]:
        """The tensors of the state that a function of `meta` and of a state gives; `seen` remembers their kinds."""

        def watched(by_meta: list[Tensor], by_state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            state = function(by_meta, by_state)
            structure, tensors = Nest.of(state)
            if self.state is None:
                self.state = structure
            elif structure.rest != self.state.rest or structure.count != self.state.count:
                raise _changed()
            self.differentiable = _places(state)
            return by_meta[0], tensors

        with explained(seen.meta):
            tensors: list[Tensor] = vjp(watched, seen.meta_floats, floats, has_aux=True)[2]  # type: ignore[misc]
        return tensors

    def _filled(self, state: Sequence[Tensor], places: Places, values: Sequence[Tensor]) -> InnerState:
        assert self.state is not None, "the start is traced first"
        filled: InnerState = self.state.filled(state, places, values)
        return filled

    def _open(self, inputs: list[Tensor]) -> "_Opened":
        ends = list(accumulate(nest.count for nest in self.given))
        held, meta, episode = (
            nest.close(inputs[end - nest.count : end]) for nest, end in zip(self.given, ends, strict=True)
        )
        own = inputs[ends[0] : ends[1]]
        return _Opened(self.problem_of(held), meta, episode, self.given[1], own, inputs[ends[2] :])

    def _open_state(self, seen: "_Opened", *, stepping: bool) -> tuple[list[Tensor], list[Tensor]]:
        """The state's tensors and what comes after them; a step's own batch is put into the problem."""
        assert self.state is not None, "the start is traced first"
        state, rest = seen.rest[: self.state.count], seen.rest[self.state.count :]
        if stepping and self.batch is not None:
            batch, rest = self.batch.close(rest[: self.batch.count]), rest[self.batch.count :]
            seen.problem = replace(seen.problem, batch=lambda episode, step: batch)
        return state, rest


@dataclass
class _Opened:
    """The inputs of a piece as what they stand for."""

    problem: Problem
    meta: Tensors
    episode: Any
    structure: Nest
    own: list[Tensor]
    rest: list[Tensor]

    @property
    def meta_floats(self) -> list[Tensor]:
        return [self.own[place] for place in self.structure.floats]

    def meta_with(self, floats: Sequence[Tensor]) -> Tensors:
        meta: Tensors = self.structure.filled(self.own, self.structure.floats, floats)
        return meta


def _places(state: InnerState) -> Places:
    """Where gradients may flow: parameters, optimizer state, and those buffers that depend on something."""
    params, buffers = (len(tree.tensors(part)) for part in state[:2])
    return tuple(
        place
        for place, leaf in enumerate(tree.tensors(state))
        if (leaf.is_floating_point() or leaf.is_complex())
        and (leaf.requires_grad or not params <= place < params + buffers)
    )


def _changed() -> UsageError:
    return UsageError(
        "compiled execution: an inner step changes something in its state that is no tensor (a Python number in the "
        "optimizer's state, say), which compiled code would not follow. Keep it as a tensor."
    )
