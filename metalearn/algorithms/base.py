"""What every algorithm offers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.functional import RNG, FunctionalModel
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

    def test_problem(self, model: FunctionalModel) -> Problem:
        """The problem of validation and test, for algorithms that train on another one; by default the same."""
        return self.problem(model)

    def training_source(self, source: Any) -> Any:
        """Where meta-training draws its episodes from, for algorithms that need other ones; by default `source`."""
        return source

    @property
    def has_inner_steps(self) -> bool:
        """Whether a task is adapted to by inner steps, whose number is a choice."""
        return True

    @property
    def serves_fewer_classes(self) -> bool:
        """Whether it may be tested with fewer classes than it was trained with, having no head made for them."""
        return False

    def protocol(self) -> dict[str, Any]:
        """What the protocol card should say of it beside its inner loop, as plain data."""
        return {}

    def at(self, meta_step: int) -> "Algorithm":
        """The algorithm of one meta step, counted from 0, for those that change during training; by default itself."""
        return self

    def held(self, meta_step: int) -> Tensors:
        """Numbers that `problem` finds among its model's buffers at this meta step: what changes at every step.

        As tensors, so that nothing is compiled anew for them. None by default.
        """
        return {}

    def check_strategy(self, strategy: Any) -> None:  # noqa: B027 (none is refused by default)
        """Refuses a strategy that makes no sense with the algorithm; by default none.

        Raises:
            UsageError: with the reason.
        """

    @abstractmethod
    def adapt(self, model: FunctionalModel, meta: Tensors, buffers: Tensors, support: Batch) -> Any:
        """The model adapted to a support set."""

    @abstractmethod
    def predict(self, model: FunctionalModel, meta: Tensors, adapted: Any, x: Tensor) -> Tensor:
        """The adapted model's outputs on `x`: logits or values, `[example, output]`."""


def check_kind(algorithm: Algorithm, source: Any, kinds: Sequence[str] = ("classification",)) -> str:
    """The kind of a source's tasks, which is one of `kinds`; the first of them where the source does not say.

    Raises:
        UsageError: it is another one.
    """
    kind: str = getattr(source, "kind", kinds[0])
    if kind not in kinds:
        raise UsageError(
            f"{type(algorithm).__name__} is for a {' or '.join(kinds)}, and the task {source.name!r} is a {kind}. "
            "Choose algorithm=r2d2 or algorithm=maml."
        )
    return kind


def loss_of(loss: Loss, model: Model, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, Aux]:
    """The loss of a model on a set `(inputs, targets)`, or `(inputs, targets, Present)`: then on its real rows."""
    inputs, *rest = batch
    if len(rest) == 2:
        model = model.seeing(rest[1].examples)
    outputs, buffers = model(params, buffers, inputs)
    value, metrics = loss(outputs, *rest)
    return value, Aux(buffers, metrics)


def keyed(buffers: Tensors, key: Tensor | None) -> Tensors:
    """The buffers with the episode's key folded into the model's: tasks draw different dropout masks."""
    if key is None or RNG not in buffers:
        return buffers
    return {**buffers, RNG: random.fold_in(buffers[RNG], key)}
