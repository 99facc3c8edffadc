"""Meta-SGD: MAML that learns the rate of every entry of every parameter too."""

from dataclasses import dataclass

from metalearn.algorithms.maml import MAML, InnerOptimizer
from metalearn.algorithms.rates import starting_rate
from metalearn.optim.learned import LearnedRates
from metalearn.types import Hyper


@dataclass(frozen=True, kw_only=True)
class MetaSGD(MAML):
    r"""MAML with learned rates.

    $\theta_i = \theta - \alpha \circ \nabla_\theta L_i^{support}(\theta)$, and $\min_{\theta, \alpha} \sum_i
    L_i^{query}(\theta_i)$: $\alpha$ has the form of $\theta$, so that it learns the direction of a step too. In `meta`
    it is `"optimizer.lr.NAME"`.

    Attributes:
        inner_lr: where all rates start, a number.
        inner_optimizer: whose rates are learned; the paper's is SGD.

    Reference: Li, Zhou, Chen and Li 2017, arXiv:1707.09835, Algorithm 1 (their rates start from random
    numbers; here all start at `inner_lr`).
    """

    def inner_rule(self) -> tuple[InnerOptimizer, Hyper | None]:
        """`inner_optimizer` with a learned rate for every entry."""
        lr, base = starting_rate(self)
        return LearnedRates(lr, "entry", base=base), None
