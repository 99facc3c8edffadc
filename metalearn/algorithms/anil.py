"""ANIL: almost no inner loop."""

from dataclasses import dataclass

from metalearn.algorithms.maml import MAML
from metalearn.state import Filter


@dataclass(frozen=True, kw_only=True)
class ANIL(MAML):
    r"""MAML whose inner loop adapts the head alone.

    $\phi_i = \phi - \alpha \nabla_\phi L_i^{support}(\theta, \phi)$ for the head $\phi$; the features $\theta$ are
    learned by the outer loop, $\min_{\theta, \phi} \sum_i L_i^{query}(\theta, \phi_i)$, and are the same for all tasks.

    Attributes:
        adapted: the head, `"head.*"`.

    Reference: Raghu, Raghu, Bengio and Vinyals 2020, arXiv:1909.09157, section 4.
    """

    adapted: Filter = "head.*"
