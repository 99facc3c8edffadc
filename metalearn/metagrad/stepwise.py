"""The exact gradient with one inner step's graph in memory at a time."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from metalearn.errors import UsageError, did_you_mean
from metalearn.metagrad.base import MetaGradient, Outcome, Strategy, constants, refuse_carry
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
            MixFlow-MG, arXiv:2505.00793), which may be cheaper: measure with `metalearn.metagrad.plan`.
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
        num_steps = problem.num_inner_steps
        every = max(1, math.isqrt(num_steps)) if self.every == "sqrt" else int(self.every)

        def run(meta: Tensors, episode: Episode, carry: Any = None) -> Outcome:
            refuse_carry(self, carry)
            pieces = Pieces(problem, *constants(meta, episode))
            kept: dict[int, Point] = {}
            point = began = pieces.starting_point()
            for step in range(num_steps):
                if step % every == 0:
                    kept[step] = point
                point = pieces.next_point(point, step)
            back = _Backward(pieces, self.mode, point, num_steps)
            aux = back.aux
            for first in reversed(range(0, num_steps, every)):
                back.through(kept.pop(first), first, min(first + every, num_steps))
            grads = added(back.meta, pieces.pull_start(began, back.cotangent))
            return Outcome(back.value, grads, aux, None)

        return run


class _Backward:
    """The way back: what has been gathered for `meta`, and the cotangent of the point that has been reached."""

    def __init__(self, pieces: Pieces, mode: Mode, end: Point, num_steps: int) -> None:
        self._pieces = pieces
        self._mode = mode
        self._point = end
        self.value, self.meta, self.cotangent, self.aux = pieces.judge(end, num_steps)

    def through(self, point: Point, first: int, last: int) -> None:
        """Goes back from the point after `last` steps to the given one, after `first`."""
        points = [point]
        for step in range(first, last - 1):
            points.append(self._pieces.next_point(points[-1], step))
        for step in reversed(range(first, last)):
            point = points.pop()
            by_meta, self.cotangent = self._pieces.pull_step(point, step, self._point, self.cotangent, self._mode)
            self.meta = added(self.meta, by_meta)
            self._point = point
            if step and self._pieces.problem.outer_weights is not None:
                value, by_meta, by_point, _ = self._pieces.judge(point, step)
                self.value = self.value + value
                self.meta, self.cotangent = added(self.meta, by_meta), added(self.cotangent, by_point)
