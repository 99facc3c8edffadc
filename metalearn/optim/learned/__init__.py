"""Optimizers whose parameters are meta-parameters: learned rates, preconditioners, and networks a coordinate."""

from metalearn.optim.learned.base import LearnedOptimizer
from metalearn.optim.learned.coordinatewise import CoordinateLSTM, LSTMState
from metalearn.optim.learned.curvature import Kronecker, MetaCurvature, Preconditioner
from metalearn.optim.learned.momenta import CoordinateMLP, MomentaState
from metalearn.optim.learned.rates import LSLR, LearnedRates, MetaSGD

__all__ = [
    "LSLR",
    "CoordinateLSTM",
    "CoordinateMLP",
    "Kronecker",
    "LSTMState",
    "LearnedOptimizer",
    "LearnedRates",
    "MetaCurvature",
    "MetaSGD",
    "MomentaState",
    "Preconditioner",
]
