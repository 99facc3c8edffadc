"""The exact gradient with one inner step's graph in memory at a time."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from metalearn.errors import UsageError, did_you_mean
from metalearn.metagrad.base import MetaGradient, Outcome, Strategy, Unrolling, constants, refuse_carry
from metalearn.metagrad.keeping import Rows
from metalearn.metagrad.pieces import Mode, Pieces, Point, added
from metalearn.problem import Episode, Problem
from metalearn.types import Tensors


@dataclass(frozen=True)
class Stepwise(Strategy):
    r"""Reverse mode that keeps states instead of graphs, and computes each step again on the way back.

    Forward, it keeps $\theta_0, \theta_k, \theta_{2k} \dots$ On the way back it walks one stretch of $k$ steps after
    the other: it computes the stretch's states again, then pulls the cotangent through its steps from the last to the
    first, $\bar\theta_j = \bar\theta_{j+1} \, \partial\theta_{j+1} / \partial\theta_j$. So the activations of *one*
    step are in memory, with `num_inner_steps / every + every` states. Draws and buffers repeat, as they are part of the
    state.

    Attributes:
        every: keep each so many steps' state. 1 computes every step twice; more computes them three times, with less
            kept; `"sqrt"` keeps the fewest, about the square root of the number of steps.
        mode: second derivatives by `"reverse"` over reverse, or `"forward"` over reverse (Kemaev et al. 2025,
            MixFlow-MG, arXiv:2505.00793), which may be cheaper: measure with `metalearn.metagrad.plan`. The latter
            takes the inner gradient for the derivative of the inner loss: one with hooks on gradients, or with an
            autograd.Function whose backward is something else on purpose, needs the former.
    """

    every: int | Literal["sqrt"] = 1
    mode: Mode = "reverse"

    def __post_init__(self) -> None:
        if self.every != "sqrt" and (not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1):
            raise UsageError(f"Stepwise(every={self.every!r}): it must be an integer of at least 1, or 'sqrt'.")
        if self.mode not in get_args(Mode):
            raise UsageError(f"Stepwise(mode={self.mode!r}). {did_you_mean(str(self.mode), get_args(Mode))}")

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """See `Strategy.value_and_grad`; exact, and without a carry."""
        num_steps, every = problem.num_inner_steps, self._stretch(problem)

        def run(meta: Tensors, episode: Episode, carry: Any = None) -> Outcome:
            refuse_carry(self, carry)
            pieces = Pieces(problem, *constants(meta, episode))
            kept: list[Point] = []
            rows, rows_of_stretch = Rows(math.ceil(num_steps / every)), Rows(every - 1)
            point = began = pieces.starting_point()
            for step in range(num_steps):
                if step % every == 0:
                    point = rows.placed(step // every, point)
                    kept.append(point)
                point = pieces.next_point(point, step)
            back = Backward(pieces, point, num_steps, self.mode)
            aux = back.aux
            for first in reversed(range(0, num_steps, every)):
                stretch = [kept.pop()]
                for step in range(first, min(first + every, num_steps) - 1):
                    stretch.append(rows_of_stretch.placed(len(stretch) - 1, pieces.next_point(stretch[-1], step)))
                while stretch:
                    back.to(stretch.pop())
            grads = added(back.meta, pieces.pull_start(began, back.cotangent))
            return Outcome(back.value, grads, aux, None)

        return run

    def unrolling(self, problem: Problem) -> Unrolling | None:
        """See `Strategy.unrolling`; of reverse mode alone."""
        return Unrolling(problem, self._stretch(problem)) if self.mode == "reverse" else None

    def _stretch(self, problem: Problem) -> int:
        return max(1, math.isqrt(problem.num_inner_steps)) if self.every == "sqrt" else int(self.every)


class Backward:
    """The way back through an inner loop, step by step.

    Attributes:
        step: how many inner steps the point has had that has been reached.
        cotangent: of that point, by its places.
        meta: what has been gathered for `meta`, on the way there.
        value: the sum of the outer losses on the way there.
        aux: of the last outer loss.
    """

    def __init__(self, pieces: Pieces, end: Point, num_steps: int, mode: Mode = "reverse") -> None:
        self.step = num_steps
        self.value, self.meta, self.cotangent, self.aux = pieces.judge(end, num_steps)
        self._pieces, self._point, self._mode = pieces, end, mode

    def to(self, point: Point) -> None:
        """Goes to the point one step before."""
        self.step -= 1
        by_meta, self.cotangent = self._pieces.pull_step(point, self.step, self._point, self.cotangent, self._mode)
        self.meta, self._point = added(self.meta, by_meta), point
        if self.step and self._pieces.problem.outer_weights is not None:
            value, by_meta, by_point, _ = self._pieces.judge(point, self.step)
            self.value = self.value + value
            self.meta, self.cotangent = added(self.meta, by_meta), added(self.cotangent, by_point)
