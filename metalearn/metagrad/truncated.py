"""Gradients through the last steps alone, or through one window of steps after the other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.inner import InnerState, problem_step, start
from metalearn.metagrad.base import MetaGradient, Outcome, Strategy, constants, refuse_carry, refuse_ended
from metalearn.metagrad.pieces import Pieces
from metalearn.metagrad.unrolled import through_graph
from metalearn.problem import Episode, Problem
from metalearn.types import Tensors


class Window(NamedTuple):
    """Where a window ended: what the next meta step goes on from.

    Attributes:
        state: the inner state, without history.
        step: how many inner steps it has had.
    """

    state: InnerState
    step: int


@dataclass(frozen=True)
class Truncated(Strategy):
    r"""Backpropagation through the last `num_steps` inner steps; what was before counts as constant.

    The state before them is $\theta_0 + c$ with a constant $c$: a learned start still gets a gradient, as if the steps
    left out had not bent it (as in first-order MAML), and what they did with a learned rate or penalty is dropped.
    Equal to `Unrolled` for `num_steps >= num_inner_steps`; biased otherwise.

    With `windows`, a meta step runs `num_steps` inner steps only, judges the state that they lead to, and the next meta
    step goes on from there (`Outcome.carry`, None at the end of the episode): many outer steps in one long inner loop.

    Reference: Shaban, Cheng, Hatch and Boots 2019, arXiv:1810.10667; windows: Williams and Peng 1990.

    Attributes:
        num_steps: how many steps the gradient goes through, at least 1.
        windows: take one window after the other, a meta step each.
    """

    inexact: ClassVar[str] = "It is biased on purpose where it cuts steps off: num_steps < num_inner_steps, or windows."

    num_steps: int
    windows: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise UsageError(f"Truncated(num_steps={self.num_steps!r}): it must be an integer of at least 1.")

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """See `Strategy.value_and_grad`; exact only where nothing is cut. Its carry is a `Window`."""
        return self._windows(problem) if self.windows else self._last_steps(problem)

    def _last_steps(self, problem: Problem) -> MetaGradient:
        num_cut = max(0, problem.num_inner_steps - self.num_steps)

        def run(meta: Tensors, episode: Episode, carry: Any = None) -> Outcome:
            refuse_carry(self, carry)
            pieces = Pieces(problem, *constants(meta, episode))
            state, cut = pieces.start(), []
            for step in range(num_cut):
                state = pieces.step(state, step)
                if problem.outer_weights is not None or step + 1 == num_cut:
                    cut.append((step + 1, state))

            def states(meta: Tensors) -> Iterator[tuple[int, InnerState]]:
                state = began = start(problem, meta, pieces.episode)
                yield 0, state
                for step, constant in cut:
                    state = _moved(began, constant)
                    yield step, state
                yield from _steps(pieces, meta, state, num_cut, problem.num_inner_steps)

            return through_graph(problem, pieces.meta, pieces.episode, states)[0]

        return run

    def _windows(self, problem: Problem) -> MetaGradient:
        def run(meta: Tensors, episode: Episode, carry: Window | None = None) -> Outcome:
            pieces = Pieces(problem, *constants(meta, episode))
            first = 0 if carry is None else carry.step
            refuse_ended(problem, first)
            last = min(first + self.num_steps, problem.num_inner_steps)

            def states(meta: Tensors) -> Iterator[tuple[int, InnerState]]:
                began = start(problem, meta, pieces.episode)
                state = began if carry is None else _moved(began, tree.detach(carry.state))
                if carry is None:  # otherwise the window before has judged it
                    yield first, state
                yield from _steps(pieces, meta, state, first, last)

            outcome, state = through_graph(problem, pieces.meta, pieces.episode, states)
            return outcome._replace(carry=None if last == problem.num_inner_steps else Window(state, last))

        return run


def _steps(pieces: Pieces, meta: Tensors, state: InnerState, first: int, last: int) -> Iterator[tuple[int, InnerState]]:
    for step in range(first, last):
        state = problem_step(pieces.problem, meta, pieces.episode, state, step)
        yield step + 1, state


def _moved(began: InnerState, constant: InnerState) -> InnerState:
    """A constant state whose parameters move with those that it began from."""
    params = {
        name: value + (began.params[name] - began.params[name].detach()) for name, value in constant.params.items()
    }
    return constant._replace(params=params)
