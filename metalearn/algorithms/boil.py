"""BOIL: body only update in inner loop."""

from dataclasses import dataclass

from metalearn.algorithms.maml import MAML
from metalearn.state import Filter


@dataclass(frozen=True, kw_only=True)
class BOIL(MAML):
    r"""MAML whose inner loop adapts everything but the head.

    $\theta_i = \theta - \alpha \nabla_\theta L_i^{support}(\theta, \phi)$ for the features $\theta$; the head $\phi$ is
    learned by the outer loop, and is the same for all tasks.

    Attributes:
        adapted: all but the head, `"!head.*"`.

    Reference: Oh, Yoo, Kim and Yun 2021, arXiv:2008.08882, section 3.
    """

    adapted: Filter = "!head.*"
