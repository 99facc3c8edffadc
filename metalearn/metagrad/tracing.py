"""How an outer gradient grows or fades on its way back through the inner steps, and where an inner loop diverges."""

import math
from dataclasses import dataclass

from metalearn import tree
from metalearn.inner import inner_loss_of
from metalearn.metagrad.base import constants
from metalearn.metagrad.pieces import Pieces
from metalearn.metagrad.stepwise import Backward
from metalearn.problem import Episode, Problem
from metalearn.types import Tensors

EXPLODED = 1e4
"""By what factor a gradient may grow on its way back before it is told."""


@dataclass(frozen=True)
class MetaTrace:
    r"""One episode's inner loop, step by step.

    Attributes:
        inner_losses: the inner loss before each step, `num_inner_steps` numbers.
        meta_grad_norms: $\lVert \partial F / \partial \theta_k \rVert$ for the outer loss F and the parameters
            after k = 0, 1, … `num_inner_steps` steps.
    """

    inner_losses: tuple[float, ...]
    meta_grad_norms: tuple[float, ...]

    @property
    def diverges_at(self) -> int | None:
        """The first inner step (from 0) whose loss is no number, or from which the loss only grows, tenfold in all."""
        for step, loss in enumerate(self.inner_losses):
            if not math.isfinite(loss):
                return step
        if not self.inner_losses:
            return None
        lowest = min(range(len(self.inner_losses)), key=self.inner_losses.__getitem__)
        grown = self.inner_losses[-1] - self.inner_losses[lowest]
        return lowest if grown > 9 * abs(self.inner_losses[lowest]) and grown > 1e-6 else None

    @property
    def explodes_at(self) -> int | None:
        """The inner step (from 0) at which the gradient grows most, if it grows by `EXPLODED` in all or overflows."""
        norms = self.meta_grad_norms
        for step in reversed(range(len(norms) - 1)):
            if not math.isfinite(norms[step]):
                return step
        if len(norms) < 2 or max(norms[:-1]) <= EXPLODED * norms[-1]:
            return None
        return max(range(len(norms) - 1), key=lambda step: norms[step] / max(norms[step + 1], 1e-300))

    def told(self) -> str | None:
        """What is wrong with it, in a sentence that names the step; None if nothing is."""
        at = self.diverges_at
        if at is not None:
            return (
                f"the inner loop diverges from inner step {at + 1} on (its loss goes from {self.inner_losses[at]:.3g} "
                f"to {self.inner_losses[-1]:.3g}): lower inner.lr or inner.num_steps"
            )
        at = self.explodes_at
        if at is not None:
            # No clipping mends what is no number.
            clip = ", set meta.clip" if math.isfinite(self.meta_grad_norms[0]) else ""
            return (
                f"the meta-gradient grows from {self.meta_grad_norms[-1]:.3g} to {self.meta_grad_norms[0]:.3g} on its "
                f"way back through the inner steps, most at inner step {at + 1}: lower inner.lr{clip}, or cut it short "
                "with metagrad=truncated"
            )
        return None


def trace(problem: Problem, meta: Tensors, episode: Episode) -> MetaTrace:
    """Goes through one episode's inner loop and back, and notes the losses and the gradient's norms. Not under vmap.

    Takes the time and memory of `Stepwise()`.
    """
    pieces = Pieces(problem, *constants(meta, episode))
    points, losses = [pieces.starting_point()], []
    for step in range(problem.num_inner_steps):
        losses.append(inner_loss_of(problem, pieces.meta, pieces.episode, points[-1].state, step)[0].item())
        points.append(pieces.next_point(points[-1], step))
    back = Backward(pieces, points.pop(), problem.num_inner_steps)
    num_params = len(pieces.start().params)
    norms = [tree.norm(back.cotangent[:num_params]).item()]
    while points:
        back.to(points.pop())
        norms.append(tree.norm(back.cotangent[:num_params]).item())
    return MetaTrace(tuple(losses), tuple(reversed(norms)))
