"""Reverse mode through the whole inner loop, its graph kept in memory."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.func import grad_and_value

from metalearn.captured import refuse_captured
from metalearn.diagnosis import explained
from metalearn.errors import UsageError
from metalearn.inner import outer_value
from metalearn.metagrad.base import MetaGradient, Outcome, Strategy, constants
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
            if carry is not None:
                raise UsageError("Unrolled starts every episode anew: pass carry=None.")
            meta, episode = constants(meta, episode)

            def objective(meta: Tensors) -> tuple[Tensor, Aux]:
                return outer_value(problem, meta, episode)

            with explained(meta):
                grads, (value, aux) = grad_and_value(objective, has_aux=True)(meta)
            refuse_captured(value)
            return Outcome(value, grads, aux, None)

        return run
