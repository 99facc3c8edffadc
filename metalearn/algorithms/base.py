"""What every algorithm offers."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from metalearn.functional import FunctionalModel
from metalearn.losses import Loss
from metalearn.normalisation import Model
from metalearn.problem import Problem
from metalearn.types import Aux, Batch, Tensors


class Algorithm(ABC):
    """What is meta-learned, and how a model is adapted with it. Algorithms are small frozen dataclasses."""

    @abstractmethod
    def init(self, model: FunctionalModel, source: Any = None) -> Tensors:
        """The meta-parameters to start from: one dict of tensors, with prefixes such as `"init."` and `"lr."`."""

    @abstractmethod
    def problem(self, model: FunctionalModel) -> Problem:
        """The bilevel problem that meta-training solves."""

    @abstractmethod
    def adapt(self, model: FunctionalModel, meta: Tensors, buffers: Tensors, support: Batch) -> Any:
        """The model adapted to a support set."""

    @abstractmethod
    def predict(self, model: FunctionalModel, meta: Tensors, adapted: Any, x: Tensor) -> Tensor:
        """The adapted model's outputs on `x`: logits or values, `[example, output]`."""


def loss_of(loss: Loss, model: Model, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, Aux]:
    """The loss of a model on a set `(inputs, targets)`, or `(inputs, targets, Present)`: then on its real rows."""
    inputs, *rest = batch
    if len(rest) == 2:
        model = model.seeing(rest[1].examples)
    outputs, buffers = model(params, buffers, inputs)
    value, metrics = loss(outputs, *rest)
    return value, Aux(buffers, metrics)
