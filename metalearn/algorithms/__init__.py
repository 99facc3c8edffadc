"""Meta-learning algorithms: one file each, all on the same seams."""

from metalearn.algorithms.base import Algorithm
from metalearn.algorithms.maml import MAML

__all__ = ["MAML", "Algorithm"]
