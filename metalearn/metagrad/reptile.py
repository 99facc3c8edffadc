"""Reptile's direction: from the adapted parameters back to the start."""

from dataclasses import dataclass
from typing import Any, ClassVar

from metalearn import tree
from metalearn.captured import refuse_captured
from metalearn.diagnosis import explained
from metalearn.errors import UsageError
from metalearn.inner import outer_loss_of, start
from metalearn.metagrad.base import MetaGradient, Outcome, Strategy, constants, refuse_carry, refuse_weights
from metalearn.metagrad.pieces import Pieces
from metalearn.metagrad.reverse import pullback
from metalearn.problem import Episode, Problem
from metalearn.types import Tensors


@dataclass(frozen=True)
class Reptile(Strategy):
    r"""$\theta_0 - \theta_K$ in place of a gradient, so that plain SGD moves the start towards what was adapted.

    An outer `sgd` of rate $\epsilon$ then does $\theta_0 \leftarrow \theta_0 + \epsilon (\theta_K - \theta_0)$. What
    the start does not depend on gets zero. The outer loss is only reported.

    Reference: Nichol, Achiam and Schulman 2018, arXiv:1803.02999, Algorithm 1.
    """

    inexact: ClassVar[str] = "It gives a direction, from the start to what was adapted, and not a gradient."

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """See `Strategy.value_and_grad`; not the gradient of the outer loss, and without a carry."""
        refuse_weights(self, problem, "its direction is the way from the start to the last state")
        if problem.num_inner_steps == 0:
            raise UsageError("Reptile's direction leads to where inner steps end, but num_inner_steps is 0.")

        def run(meta: Tensors, episode: Episode, carry: Any = None) -> Outcome:
            refuse_carry(self, carry)
            pieces = Pieces(problem, *constants(meta, episode))
            began, state = pieces.ends()
            direction = {name: value - state.params[name] for name, value in began.params.items()}
            with explained(pieces.meta):
                _, pull = pullback(lambda meta: start(problem, meta, pieces.episode).params, pieces.meta)
                (grads,) = pull(direction)
            value, aux = outer_loss_of(problem, pieces.meta, pieces.episode, state, problem.num_inner_steps)
            refuse_captured(value)
            return Outcome(*tree.detach((value, grads, aux)), carry=None)

        return run
