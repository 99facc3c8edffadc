"""Differentiable meta-learning for PyTorch: the state held outside the model, every gradient certified."""

from metalearn import algorithms, execution, losses, metagrad, models, optim, random, tasks, testing, tree
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel, functionalize
from metalearn.inner import Adapted, adapt
from metalearn.problem import Problem
from metalearn.types import Aux, Episodes

__version__ = "0.1.0"

__all__ = [
    "Adapted",
    "Aux",
    "Episodes",
    "FunctionalModel",
    "Problem",
    "UsageError",
    "adapt",
    "algorithms",
    "execution",
    "functionalize",
    "losses",
    "metagrad",
    "models",
    "optim",
    "random",
    "tasks",
    "testing",
    "tree",
]
