"""The optimizers by name, each made from a learning rate."""

from collections.abc import Callable

from metalearn.optim.adadelta import adadelta
from metalearn.optim.adafactor import adafactor
from metalearn.optim.adagrad import adagrad
from metalearn.optim.adam import adam, adamw
from metalearn.optim.adamax import adamax
from metalearn.optim.asgd import asgd
from metalearn.optim.base import GradientTransformation
from metalearn.optim.lion import lion
from metalearn.optim.muon import muon
from metalearn.optim.nadam import nadam
from metalearn.optim.radam import radam
from metalearn.optim.rmsprop import rmsprop
from metalearn.optim.rprop import rprop
from metalearn.optim.sgd import sgd

FAMILY: dict[str, Callable[..., GradientTransformation]] = {
    factory.__name__: factory
    for factory in (
        sgd, adam, adamw, nadam, radam, adamax, adagrad, adadelta, rmsprop, rprop, asgd, adafactor, lion, muon,
    )
}  # fmt: skip
"""`lr` is the first argument of each; what else it takes is in its docstring."""
