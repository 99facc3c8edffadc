"""An inner loop in pieces, each with its pullback: what strategies that do not keep the whole graph are made of.

A piece is a function of `meta` and of those tensors of an inner state that gradients flow through: parameters,
optimizer state, and buffers that have a history (an accumulator has, batch norm's running statistics have none).
Its pullback maps a cotangent of what it returns to cotangents of both. Integers, such as counts and keys, pass through.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import grad, vjp

from metalearn import tree
from metalearn.captured import refuse_captured
from metalearn.diagnosis import explained
from metalearn.inner import InnerState, inner_loss_of, outer_loss_of, problem_step, start, weight_of
from metalearn.metagrad.forward import pushforward
from metalearn.metagrad.reverse import gradients, pullback
from metalearn.problem import Episode, Problem
from metalearn.types import Aux, Tensors

T = TypeVar("T")
Mode = Literal["reverse", "forward"]
"""How a step's second derivatives are taken: reverse over reverse, or forward over reverse."""


class Point(NamedTuple):
    """An inner state without history, and which of its tensors gradients flow through.

    Attributes:
        state: the state.
        places: where they are among the state's leaves.
    """

    state: InnerState
    places: tuple[int, ...]

    def split(self) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], InnerState]]:
        """Those tensors, and the function from others of their kind to the state with them in place."""
        leaves, structure = tree.flatten(self.state)

        def join(values: Sequence[Tensor]) -> InnerState:
            filled = list(leaves)
            for place, value in zip(self.places, values, strict=True):
                filled[place] = value
            joined: InnerState = tree.unflatten(filled, structure)
            return joined

        return [leaves[place] for place in self.places], join

    def sizes(self) -> tuple[int, int, int]:
        """How many of the places are in the parameters, the buffers and the optimizer state."""
        first, second = (len(tree.flatten(part)[0]) for part in self.state[:2])
        params = sum(place < first for place in self.places)
        buffers = sum(first <= place < first + second for place in self.places)
        return params, buffers, len(self.places) - params - buffers


class Judged(NamedTuple):
    """An outer loss, weighted, with its gradients.

    Attributes:
        value: the loss, scalar.
        meta: its gradient by `meta`.
        state: its gradient by the tensors of the point.
        aux: what the loss reported.
    """

    value: Tensor
    meta: Tensors
    state: list[Tensor]
    aux: Aux


@dataclass(frozen=True)
class Pieces:
    """A problem at one `meta` and one episode, both without history."""

    problem: Problem
    meta: Tensors
    episode: Episode

    def start(self) -> InnerState:
        """The state before the first step."""
        return tree.detach(_given_all(start(self.problem, self.meta, self.episode)))

    def step(self, state: InnerState, step: int) -> InnerState:
        """The state after step number `step`, from 0; without history, and with nothing kept for a gradient."""
        # The first step runs with a graph all the same: it would show a captured tensor that requires grad.
        with explained(self.meta), torch.set_grad_enabled(step == 0):
            return tree.detach(_given_all(problem_step(self.problem, self.meta, self.episode, state, step)))

    def ends(self) -> tuple[InnerState, InnerState]:
        """The states before the first step and after the last."""
        began = state = self.start()
        for step in range(self.problem.num_inner_steps):
            state = self.step(state, step)
        return began, state

    def starting_point(self) -> Point:
        """The state before the first step, and where gradients flow through it."""
        return self._seen(lambda meta, leaves: start(self.problem, meta, self.episode), [])

    def next_point(self, point: Point, step: int) -> Point:
        """The state after step number `step`, from 0, and where gradients flow through it."""
        if not any(map(_is_differentiable, point.state.buffers.values())):
            state = self.step(point.state, step)
            if not any(map(_is_differentiable, state.buffers.values())):
                return Point(state, _places(state))
        leaves, join = point.split()
        return self._seen(
            lambda meta, leaves: problem_step(self.problem, meta, self.episode, join(leaves), step), leaves
        )

    def pull_start(self, point: Point, cotangent: Sequence[Tensor]) -> Tensors:
        """The cotangent of `meta` for one of the starting point."""
        if not point.places:
            return _zeros(self.meta)
        with explained(self.meta):
            _, pull = pullback(lambda meta: _at(start(self.problem, meta, self.episode), point.places), self.meta)
            pulled: tuple[Tensors] = pull(list(cotangent), retain_graph=False)
        return tree.detach(pulled[0])

    def pull_step(
        self, point: Point, step: int, after: Point, cotangent: Sequence[Tensor], mode: Mode = "reverse"
    ) -> tuple[Tensors, list[Tensor]]:
        """The cotangents of `meta` and of a point, for one of the point `after` it by step number `step`."""
        if not after.places:
            return _zeros((self.meta, point.split()[0]))
        pull = self._pull_reverse if mode == "reverse" else self._pull_forward
        with explained(self.meta):
            return tree.detach(pull(point, step, after, cotangent))

    def judge(self, point: Point, step: int) -> Judged:
        """The outer loss of the state after `step` steps, times its weight, and the gradients."""
        leaves, join = point.split()
        weight = weight_of(self.problem, step)

        def loss(meta: Tensors, leaves: list[Tensor]) -> tuple[Tensor, Aux]:
            value, aux = outer_loss_of(self.problem, meta, self.episode, join(leaves), step)
            return value if weight is None else weight * value, aux

        with explained({**self.meta, **point.state.params, **point.state.buffers}):
            (by_meta, by_state), value, aux = gradients(loss, self.meta, leaves)
        refuse_captured(value)
        return Judged(*tree.detach((value, by_meta, by_state, aux)))

    def _seen(self, function: Callable[[Tensors, list[Tensor]], InnerState], leaves: list[Tensor]) -> Point:
        """The state that a function of `meta` and leaves gives, and which of its buffers depend on them."""
        found: dict[str, Any] = {}

        def watched(meta: Tensors, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            state = _given_all(function(meta, leaves))
            found["places"] = _places(state)
            tensors, found["closed"] = tree.opened(state)
            return next(iter(meta.values())), tensors

        with explained(self.meta):
            tensors = vjp(watched, self.meta, leaves, has_aux=True)[2]  # type: ignore[misc]
        return Point(found["closed"](tree.detach(tensors)), found["places"])

    def _pull_reverse(
        self, point: Point, step: int, after: Point, cotangent: Sequence[Tensor]
    ) -> tuple[Tensors, list[Tensor]]:
        leaves, join = point.split()

        def stepped(meta: Tensors, leaves: list[Tensor]) -> list[Tensor]:
            return _given_all(_at(problem_step(self.problem, meta, self.episode, join(leaves), step), after.places))

        _, pull = pullback(stepped, self.meta, leaves)
        pulled: tuple[Tensors, list[Tensor]] = pull(list(cotangent), retain_graph=False)
        return pulled

    def _pull_forward(
        self, point: Point, step: int, after: Point, cotangent: Sequence[Tensor]
    ) -> tuple[Tensors, list[Tensor]]:
        r"""The same without a second reverse pass through the loss.

        With $\bar g$ the cotangent of the inner gradient and $\bar b$ that of the new buffers $b'$, both cotangents of
        the loss's arguments $z$ are one directional derivative of its gradient, by the symmetry of second derivatives:
        $\partial_\epsilon \nabla_z [L + \epsilon \langle \bar b, b' \rangle](\theta + \epsilon \bar g)$ at 0.
        """
        leaves, join = point.split()
        names, num_params = list(point.state.params), point.sizes()[0]
        first, second, _ = after.sizes()
        bars = list(cotangent)
        buffers_bar = bars[first : first + second]
        places = tuple(place - len(names) for place in after.places[first : first + second])

        def gradient(params: list[Tensor], along: Tensor) -> tuple[Tensors, list[Tensor]]:
            def loss(meta: Tensors, leaves: list[Tensor]) -> Tensor:
                value, aux = inner_loss_of(self.problem, meta, self.episode, join(leaves), step)
                if not places:
                    return value
                new = _at(aux.buffers, places)
                return value + along * sum(_inner_product(*pair) for pair in zip(buffers_bar, new, strict=True))

            found: tuple[Tensors, list[Tensor]]
            found = grad(loss, argnums=(0, 1))(self.meta, [*params, *leaves[num_params:]])
            return found

        def updated(meta: Tensors, grads: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
            state, named = join(leaves), dict(zip(names, grads, strict=True))
            params, _, opt_state = self.problem.optimizer(meta).step(named, state.opt_state, state.params)
            new = InnerState(params, after.state.buffers, opt_state)
            return _given_all(_at(new, after.places[:first] + after.places[first + second :]))

        # Copies: a tangent takes as much memory as the whole storage that its primal is a part of.
        params, zero = [leaf.clone() for leaf in leaves[:num_params]], (buffers_bar or bars)[0].real.new_zeros(())
        _, pull = pullback(updated, self.meta, gradient(params, zero)[1][:num_params], leaves)
        meta_bar, grads_bar, leaves_bar = pull(bars[:first] + bars[first + second :], retain_graph=False)
        by_meta, by_leaves = pushforward(gradient, (params, zero), (grads_bar, torch.ones_like(zero)))[1]
        return added(meta_bar, by_meta), added(leaves_bar, by_leaves)


def added(left: Any, right: Any) -> Any:
    """The sum of two nests of tensors of one structure."""
    leaves, structure = tree.flatten(left)
    return tree.unflatten([a + b for a, b in zip(leaves, tree.flatten(right)[0], strict=True)], structure)


def _zeros(nest: T) -> T:
    return tree.map_tensors(torch.zeros_like, nest)


def _inner_product(left: Tensor, right: Tensor) -> Tensor:
    return (left.conj() * right).real.sum()


def _given_all(nest: T) -> T:
    """The same nest, where nothing in it depends on a captured tensor: pieces are cut, and the outer loss not told."""
    for leaf in tree.tensors(nest):
        refuse_captured(leaf)
    return nest


def _at(nest: Any, places: Sequence[int]) -> list[Tensor]:
    leaves = tree.flatten(nest)[0]
    return [leaves[place] for place in places]


def _places(state: InnerState) -> tuple[int, ...]:
    """Where gradients may flow: parameters, optimizer state, and those buffers that depend on something."""
    num_params, num_buffers = (len(tree.flatten(part)[0]) for part in state[:2])
    return tuple(
        place
        for place, leaf in enumerate(tree.flatten(state)[0])
        if _is_differentiable(leaf) and (leaf.requires_grad or not 0 <= place - num_params < num_buffers)
    )


def _is_differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
