"""Optimizers as pairs of pure functions over dicts of tensors, differentiable in everything."""

from metalearn.optim.adam import AdamState, AMSGradState, adam, adamw, scale_by_adam
from metalearn.optim.base import CountState, EmptyState, GradientTransformation, apply_updates, chain, stateless
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
    "AdamState",
    "CountState",
    "EmptyState",
    "GradientTransformation",
    "TraceState",
    "adam",
    "adamw",
    "add_decayed_weights",
    "apply_updates",
    "chain",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "sgd",
    "stateless",
    "stop_gradient",
    "trace",
]
