"""What every algorithm offers."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from metalearn.functional import FunctionalModel
from metalearn.problem import Problem
from metalearn.types import Batch, Tensors


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
