"""Reverse mode through the whole inner loop, its graph kept in memory."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metalearn import tree
from metalearn.captured import refuse_captured
from metalearn.diagnosis import explained
from metalearn.inner import InnerState, objective_of, unroll
from metalearn.metagrad.base import MetaGradient, Outcome, Strategy, Unrolling, constants, refuse_carry
from metalearn.metagrad.reverse import gradients
from metalearn.problem import Episode, Problem
from metalearn.types import Aux, Tensors


@dataclass(frozen=True)
class Unrolled(Strategy):
    """The exact gradient by backpropagation through every inner step; memory grows with the number of steps.

    Reference: Finn, Abbeel and Levine 2017, arXiv:1703.03400, equation 1.
    """

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """See `Strategy.value_and_grad`; exact, and without a carry."""

        def run(meta: Tensors, episode: Episode, carry: Any = None) -> Outcome:
            refuse_carry(self, carry)
            meta, episode = constants(meta, episode)
            return through_graph(problem, meta, episode, lambda meta: enumerate(unroll(problem, meta, episode)))[0]

        return run

    def unrolling(self, problem: Problem) -> Unrolling:
        """See `Strategy.unrolling`."""
        return Unrolling(problem, None)


def through_graph(
    problem: Problem, meta: Tensors, episode: Episode, states: Callable[[Tensors], Iterable[tuple[int, InnerState]]]
) -> tuple[Outcome, InnerState]:
    """Backpropagation through the graph of some states, a function of `meta`: the outcome, and the last of them."""
    closed: list[Callable[[Iterable[Tensor]], InnerState]] = []

    def objective(meta: Tensors) -> tuple[Tensor, tuple[Aux, list[Tensor]]]:
        last: list[InnerState] = []

        def watched() -> Iterable[tuple[int, InnerState]]:
            for step, state in states(meta):
                last[:] = [state]
                yield step, state

        value, aux = objective_of(problem, meta, episode, watched())
        tensors, close = tree.opened(last[0])
        closed.append(close)
        return value, (aux, tensors)

    with explained(meta):
        (grads,), value, (aux, tensors) = gradients(objective, meta)
    refuse_captured(value)
    return Outcome(value, grads, aux, None), closed[0](tensors)
