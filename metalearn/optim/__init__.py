"""Optimizers as pairs of pure functions over dicts of tensors, differentiable in everything."""

from metalearn.optim.adadelta import AdadeltaState, adadelta
from metalearn.optim.adafactor import AdafactorState, adafactor
from metalearn.optim.adagrad import AdagradState, adagrad
from metalearn.optim.adam import AdamState, AMSGradState, adam, adamw, scale_by_adam
from metalearn.optim.adamax import AdamaxState, adamax
from metalearn.optim.asgd import ASGDState, asgd
from metalearn.optim.base import CountState, EmptyState, GradientTransformation, apply_updates, chain, stateless
from metalearn.optim.hypers import Hypers, Range, hyper_parameters
from metalearn.optim.lion import LionState, lion
from metalearn.optim.muon import MuonState, muon
from metalearn.optim.nadam import NAdamState, nadam
from metalearn.optim.radam import radam
from metalearn.optim.rmsprop import CenteredState, RMSpropState, rmsprop
from metalearn.optim.rprop import RpropState, rprop
from metalearn.optim.rules import Rule, Step, from_rule
from metalearn.optim.sgd import sgd
from metalearn.optim.transforms import (
    TraceState,
    add_decayed_weights,
    scale,
    scale_by_learning_rate,
    stop_gradient,
    trace,
)

__all__ = [
    "AMSGradState",
    "ASGDState",
    "AdadeltaState",
    "AdafactorState",
    "AdagradState",
    "AdamState",
    "AdamaxState",
    "CenteredState",
    "CountState",
    "EmptyState",
    "GradientTransformation",
    "Hypers",
    "LionState",
    "MuonState",
    "NAdamState",
    "RMSpropState",
    "Range",
    "RpropState",
    "Rule",
    "Step",
    "TraceState",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "add_decayed_weights",
    "apply_updates",
    "asgd",
    "chain",
    "from_rule",
    "hyper_parameters",
    "lion",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "sgd",
    "stateless",
    "stop_gradient",
    "trace",
]
