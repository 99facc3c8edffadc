"""Meta-Curvature: MAML that learns to transform the inner gradients."""

from dataclasses import dataclass

from metalearn.algorithms.maml import MAML, InnerOptimizer
from metalearn.algorithms.rates import starting_rate
from metalearn.optim import learned
from metalearn.types import Hyper


@dataclass(frozen=True, kw_only=True)
class MetaCurvature(MAML):
    r"""MAML with a learned linear transformation of the inner gradients.

    $\theta_i = \theta - \alpha \, M \nabla_\theta L_i^{support}(\theta)$ where $M$ multiplies a convolution's gradient
    $G$ along its axes, $G \times_3 M_f \times_2 M_i \times_1 M_o$, and $\min_{\theta, M} \sum_i L_i^{query}(\theta_i)$.
    All start as the identity (MAML). In `meta` they are `"optimizer.out.NAME"`, `"optimizer.in.NAME"`, and
    `"optimizer.filter.NAME"`; see `metalearn.optim.learned.MetaCurvature`.

    Attributes:
        inner_lr: the fixed rate $\alpha$.
        inner_optimizer: what takes the transformed gradient; the paper's is SGD.

    Reference: Park and Oliva 2019, arXiv:1902.03356, section 3.
    """

    def inner_rule(self) -> tuple[InnerOptimizer, Hyper | None]:
        """The transformation, then `inner_optimizer` at `inner_lr`."""
        lr, base = starting_rate(self)
        return learned.MetaCurvature(base, lr=lr), None
