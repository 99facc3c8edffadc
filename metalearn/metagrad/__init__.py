"""How the outer gradient flows: strategies that are passed in and exchanged."""

from metalearn.metagrad.auto import Auto
from metalearn.metagrad.base import MetaGradient, Outcome, Strategy, StrategyWarning, Unrolling
from metalearn.metagrad.evolution import EvolutionStrategies, PersistentEvolutionStrategies
from metalearn.metagrad.first_order import FirstOrder
from metalearn.metagrad.forward_mode import ForwardMode
from metalearn.metagrad.implicit import Implicit
from metalearn.metagrad.planning import Plan, plan
from metalearn.metagrad.reptile import Reptile
from metalearn.metagrad.stepwise import Stepwise
from metalearn.metagrad.tracing import MetaTrace, trace
from metalearn.metagrad.truncated import Truncated
from metalearn.metagrad.unrolled import Unrolled

__all__ = [
    "Auto",
    "EvolutionStrategies",
    "FirstOrder",
    "ForwardMode",
    "Implicit",
    "MetaGradient",
    "MetaTrace",
    "Outcome",
    "PersistentEvolutionStrategies",
    "Plan",
    "Reptile",
    "Stepwise",
    "Strategy",
    "StrategyWarning",
    "Truncated",
    "Unrolled",
    "Unrolling",
    "plan",
    "trace",
]
