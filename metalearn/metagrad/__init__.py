"""How the outer gradient flows: strategies that are passed in and exchanged."""

from metalearn.metagrad.base import MetaGradient, Outcome, Strategy
from metalearn.metagrad.first_order import FirstOrder
from metalearn.metagrad.unrolled import Unrolled

__all__ = ["FirstOrder", "MetaGradient", "Outcome", "Strategy", "Unrolled"]
