"""Optimizers as pairs of pure functions over dicts of tensors, differentiable in everything."""

from metalearn.optim import learned, schedules
from metalearn.optim.accumulation import AccumulationState, accumulate
from metalearn.optim.adadelta import AdadeltaState, adadelta
from metalearn.optim.adafactor import AdafactorState, adafactor
from metalearn.optim.adagrad import AdagradState, adagrad
from metalearn.optim.adam import AdamState, AMSGradState, adam, adamw, scale_by_adam
from metalearn.optim.adamax import AdamaxState, adamax
from metalearn.optim.asgd import ASGDState, asgd
from metalearn.optim.base import (
    CountState,
    EmptyState,
    GradientTransformation,
    MeanState,
    apply_updates,
    chain,
    stateless,
)
from metalearn.optim.clipping import clip, clip_by_global_norm, clip_by_norm
from metalearn.optim.family import FAMILY
from metalearn.optim.groups import ConditionalState, MaskedState, PartitionState, freeze, masked, only_if, partition
from metalearn.optim.hypers import Hypers, Range, hyper_parameters
from metalearn.optim.lion import lion
from metalearn.optim.muon import muon
from metalearn.optim.nadam import NAdamState, nadam
from metalearn.optim.noise import add_noise
from metalearn.optim.radam import radam
from metalearn.optim.rmsprop import CenteredState, RMSpropState, rmsprop
from metalearn.optim.rprop import RpropState, rprop
from metalearn.optim.rules import Rule, Step, from_rule
from metalearn.optim.schedules import per_step
from metalearn.optim.sgd import sgd
from metalearn.optim.transforms import (
    TraceState,
    add_decayed_weights,
    scale,
    scale_by_learning_rate,
    stop_gradient,
    trace,
)
from metalearn.optim.trust import lamb, lars, scale_by_trust_ratio

__all__ = [
    "FAMILY",
    "AMSGradState",
    "ASGDState",
    "AccumulationState",
    "AdadeltaState",
    "AdafactorState",
    "AdagradState",
    "AdamState",
    "AdamaxState",
    "CenteredState",
    "ConditionalState",
    "CountState",
    "EmptyState",
    "GradientTransformation",
    "Hypers",
    "MaskedState",
    "MeanState",
    "NAdamState",
    "PartitionState",
    "RMSpropState",
    "Range",
    "RpropState",
    "Rule",
    "Step",
    "TraceState",
    "accumulate",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "add_decayed_weights",
    "add_noise",
    "apply_updates",
    "asgd",
    "chain",
    "clip",
    "clip_by_global_norm",
    "clip_by_norm",
    "freeze",
    "from_rule",
    "hyper_parameters",
    "lamb",
    "lars",
    "learned",
    "lion",
    "masked",
    "muon",
    "nadam",
    "only_if",
    "partition",
    "per_step",
    "radam",
    "rmsprop",
    "rprop",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_trust_ratio",
    "schedules",
    "sgd",
    "stateless",
    "stop_gradient",
    "trace",
]
