"""How the outer gradient flows: strategies that are passed in and exchanged."""

from metalearn.metagrad.base import MetaGradient, Outcome, Strategy
from metalearn.metagrad.evolution import EvolutionStrategies, PersistentEvolutionStrategies
from metalearn.metagrad.first_order import FirstOrder
from metalearn.metagrad.forward_mode import ForwardMode
from metalearn.metagrad.implicit import Implicit
from metalearn.metagrad.reptile import Reptile
from metalearn.metagrad.stepwise import Stepwise
from metalearn.metagrad.truncated import Truncated
from metalearn.metagrad.unrolled import Unrolled

__all__ = [
    "EvolutionStrategies",
    "FirstOrder",
    "ForwardMode",
    "Implicit",
    "MetaGradient",
    "Outcome",
    "PersistentEvolutionStrategies",
    "Reptile",
    "Stepwise",
    "Strategy",
    "Truncated",
    "Unrolled",
]
