"""The outer gradient with the inner gradients taken for constants."""

from dataclasses import dataclass, replace
from typing import ClassVar

from metalearn.errors import UsageError
from metalearn.metagrad.base import MetaGradient, Strategy, Unrolling
from metalearn.metagrad.unrolled import Unrolled
from metalearn.optim import GradientTransformation, chain, stop_gradient
from metalearn.problem import Problem
from metalearn.types import Tensors


@dataclass(frozen=True)
class FirstOrder(Strategy):
    r"""First-order MAML: $\partial \nabla_\theta L / \partial \theta$ is left out.

    Only the inner *gradients* are cut. What the optimizer does with them keeps its history, so a learned rate or a
    learned start still gets its gradient.

    References: Finn, Abbeel and Levine 2017, arXiv:1703.03400, section 5.2; annealing: Antoniou, Edwards and Storkey
    2019, arXiv:1810.09502, section 4.

    Attributes:
        until: the meta step from which the exact gradient is taken (MAML++'s annealing of the order); None for never.
    """

    inexact: ClassVar[str] = "It is biased on purpose: it takes the inner gradients for constants."

    until: int | None = None

    def __post_init__(self) -> None:
        if self.until is not None and self.until < 0:
            raise UsageError(f"FirstOrder(until={self.until}): a meta step is at least 0; None for first order always.")

    def at(self, meta_step: int) -> Strategy:
        """`Unrolled` once `until` is reached."""
        return self if self.until is None or meta_step < self.until else Unrolled()

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """See `Strategy.value_and_grad`; not exact, and without a carry."""
        return Unrolled().value_and_grad(_cut(problem))

    def unrolling(self, problem: Problem) -> Unrolling:
        """See `Strategy.unrolling`."""
        return Unrolled().unrolling(_cut(problem))


def _cut(problem: Problem) -> Problem:
    def optimizer(meta: Tensors) -> GradientTransformation:
        return chain(stop_gradient(), problem.optimizer(meta))

    return replace(problem, optimizer=optimizer)
