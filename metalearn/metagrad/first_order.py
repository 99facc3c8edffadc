"""The outer gradient with the inner gradients taken for constants."""

from dataclasses import dataclass, replace

from metalearn.metagrad.base import MetaGradient, Strategy
from metalearn.metagrad.unrolled import Unrolled
from metalearn.optim import GradientTransformation, chain, stop_gradient
from metalearn.problem import Problem
from metalearn.types import Tensors


@dataclass(frozen=True)
class FirstOrder(Strategy):
    r"""First-order MAML: $\partial \nabla_\theta L / \partial \theta$ is left out.

    Only the inner *gradients* are cut. What the optimizer does with them keeps its history, so a learned rate or a
    learned start still gets its gradient.

    Reference: Finn, Abbeel and Levine 2017, arXiv:1703.03400, section 5.2.
    """

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """See `Strategy.value_and_grad`; not exact, and without a carry."""

        def optimizer(meta: Tensors) -> GradientTransformation:
            return chain(stop_gradient(), problem.optimizer(meta))

        return Unrolled().value_and_grad(replace(problem, optimizer=optimizer))
