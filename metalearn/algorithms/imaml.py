"""iMAML: MAML by the implicit function theorem."""

from dataclasses import dataclass

from metalearn.algorithms.maml import MAML
from metalearn.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class IMAML(MAML):
    r"""MAML with a proximal inner problem, whose solution is differentiated without the way that led to it.

    $\theta_i = \arg\min_{\phi} L_i^{support}(\phi) + \frac{\lambda}{2} \lVert \phi - \theta \rVert^2$ and
    $\nabla_\theta L_i^{query}(\theta_i) = (I + \frac{1}{\lambda} \nabla^2 L_i^{support}(\theta_i))^{-1} \nabla
    L_i^{query}(\theta_i)$, which `metagrad.Implicit` computes by conjugate gradients. The gradient is that of a
    minimum, so `num_inner_steps` has to lead near one: the paper takes 16 steps of gradient descent on Omniglot. How
    near, the strategy measures and tells (`inner_residual`).

    Attributes:
        proximal: $\lambda$, above 0; the paper's is 2.

    Reference: Rajeswaran, Finn, Kakade and Levine 2019, arXiv:1909.04630, Algorithms 1 and 2.
    """

    proximal: float = 2.0

    def __post_init__(self) -> None:
        """Refuses to let go of the start: the gradient would be 0."""
        super().__post_init__()
        if not self.proximal > 0:
            raise UsageError(
                f"IMAML(proximal={self.proximal}): without the proximal term the inner minimum does not depend on the "
                "start, and the implicit gradient is 0. Give it a weight above 0, such as 2."
            )
