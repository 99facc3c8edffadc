"""Algorithms without an inner loop: what fits a support set is known in closed form, from its features."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metalearn import metagrad
from metalearn.algorithms.base import Algorithm, check_kind
from metalearn.algorithms.embedding import Embedding, rows_of
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel
from metalearn.losses import Loss
from metalearn.normalisation import Normalisation, policy_of
from metalearn.problem import Episode, Problem
from metalearn.types import Batch, Examples, Present, Tensors


@dataclass(frozen=True)
class Remembered:
    """What a closed-form algorithm keeps of a support set: all of it.

    It is encoded together with what is predicted (`Embedding.of_episode`), and what fits it is computed then.

    Attributes:
        support: the set.
        buffers: the model's.
    """

    support: Examples
    buffers: Tensors


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Algorithm):
    """An algorithm that learns features, and computes what stands on them from the support set at once.

    A subclass says what that is (`outputs`), and which numbers of its own it learns (`numbers`). Its problem has no
    inner steps: everything is in the outer loss, so that every exact strategy gives the same gradient.

    Attributes:
        loss: `(outputs, targets) -> (loss, metrics)`, of the query set.
        head: the name of the model's last linear layer, which is left out; its width says how many classes there are at
            most. Classes without a support example get the output minus infinity.
        normalisation: what norms normalise by: a name in `metalearn.normalisation.POLICIES`, or a policy.
        train_ways: classes in an episode of meta-training, for a classification that is trained with more of them than
            it is validated and tested with; None for as many.
    """

    loss: Loss
    head: str = "head"
    normalisation: str | Normalisation = "module"
    train_ways: int | None = None

    num_inner_steps: ClassVar[int] = 0
    kinds: ClassVar[tuple[str, ...]] = ("classification",)
    """The kinds of tasks that it is for."""

    def __post_init__(self) -> None:
        """Refuses a normalisation policy that there is not, and too few ways."""
        policy_of(self.normalisation)
        ways = self.train_ways
        if ways is not None and (isinstance(ways, bool) or not isinstance(ways, int) or ways < 2):
            raise UsageError(
                f"{type(self).__name__}(train_ways={ways!r}): it must be a whole number of at least 2, or None for the "
                "task's own."
            )

    @property
    def has_inner_steps(self) -> bool:
        """See `Algorithm.has_inner_steps`."""
        return False

    @property
    def serves_fewer_classes(self) -> bool:
        """See `Algorithm.serves_fewer_classes`."""
        return True

    def protocol(self) -> dict[str, Any]:
        """See `Algorithm.protocol`."""
        return {} if self.train_ways is None else {"train_ways": self.train_ways}

    def init(self, model: FunctionalModel, source: Any = None) -> Tensors:
        """The features' initial parameters, `"init.…"`, and the algorithm's own numbers."""
        kind = check_kind(self, source, self.kinds)
        embedding = self._embedding(model)
        like = next(iter(embedding.model.params.values()), torch.empty(0))
        numbers = {
            name: torch.tensor(value, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
            for name, value in self.numbers(kind).items()
        }
        return {**embedding.init(), **numbers}

    def problem(self, model: FunctionalModel) -> Problem:
        """The problem of meta-training: no inner step, and an outer loss that depends on the support set too."""
        embedding = self._embedding(model)
        return self._problem(embedding, embedding.num_outputs if self.train_ways is None else self.train_ways)

    def test_problem(self, model: FunctionalModel) -> Problem:
        """The same, with as many classes as the model has outputs."""
        embedding = self._embedding(model)
        return self._problem(embedding, embedding.num_outputs)

    def training_source(self, source: Any) -> Any:
        """The source with `train_ways` classes in an episode, for meta-training alone."""
        if self.train_ways is None:
            return source
        if not hasattr(source, "with_ways"):
            raise UsageError(
                f"algorithm.train_ways={self.train_ways} needs a task source that can draw other ways, and "
                f"{type(source).__name__} has no method with_ways. Set task.ways and test_task.ways instead."
            )
        return source.with_ways(self.train_ways, splits=("train",))

    def adapt(self, model: FunctionalModel, meta: Tensors, buffers: Tensors, support: Batch) -> Remembered:
        """The support set, to be fitted when there is something to predict."""
        return Remembered(support, buffers)

    def predict(self, model: FunctionalModel, meta: Tensors, adapted: Remembered, x: Tensor) -> Tensor:
        """The outputs on `x`, `[example, output]`; minus infinity for classes that the support set does not have."""
        embedding = self._embedding(model).holding(adapted.buffers)
        found, _ = self._fitted(
            embedding, embedding.num_outputs, meta, embedding.buffers(None), adapted.support, x, None
        )
        return found

    def check_strategy(self, strategy: Any) -> None:
        """Refuses strategies that are about inner steps, as there are none."""
        refuse_without_steps(type(self).__name__, strategy)

    @abstractmethod
    def numbers(self, kind: str) -> dict[str, float]:
        """The initial values of what is learned beside the features for tasks of a kind, scalars by name in `meta`."""

    @abstractmethod
    def outputs(self, meta: Tensors, features: Tensor, support: Examples, query: Tensor, num_classes: int) -> Tensor:
        """The outputs on query features, `[example, output]`.

        Args:
            meta: the algorithm's own numbers are in it.
            features: of the support set, `[example, feature]`, of float32 at least.
            support: the set that they are of, for its targets and for which rows are real.
            query: of the query set, likewise.
            num_classes: how many classes there are at most; of a regression without meaning.
        """

    def _embedding(self, model: FunctionalModel) -> Embedding:
        return Embedding.of(model, head=self.head, normalisation=self.normalisation)

    def _problem(self, embedding: Embedding, num_classes: int) -> Problem:
        def judge(
            embedding: Embedding, meta: Tensors, buffers: Tensors, episode: Episode
        ) -> tuple[Tensor, Tensors, Tensors]:
            inputs, *rest = wide_enough(episode.query, num_classes)
            outputs, buffers = self._fitted(
                embedding, num_classes, meta, buffers, episode.support, inputs, rows_of(episode.query)
            )
            return *self.loss(outputs, *rest), buffers

        return embedding.problem(judge)

    def _fitted(
        self,
        embedding: Embedding,
        num_classes: int,
        meta: Tensors,
        buffers: Tensors,
        support: Examples,
        inputs: Tensor,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensors]:
        features, query, buffers = embedding.of_episode(meta, buffers, support, inputs, rows)
        dtype = torch.promote_types(features.dtype, torch.float32)
        with _in_full_precision(features.device):
            outputs = self.outputs(meta, features.to(dtype), support, query.to(dtype), num_classes)
        return outputs, buffers


def wide_enough(examples: Examples, num_classes: int) -> Examples:
    """A set whose mask of classes has `num_classes` entries: a source of fewer classes knows nothing of the others."""
    if len(examples) == 2 or examples[1].is_floating_point():
        return examples
    inputs, targets, present = examples
    missing = num_classes - present.outputs.shape[-1]
    if missing <= 0:
        return examples
    others = torch.zeros(missing, dtype=torch.bool, device=present.outputs.device)
    return inputs, targets, Present(present.examples, torch.cat([present.outputs, others]))


def refuse_without_steps(algorithm: str, strategy: Any) -> None:
    """Raises UsageError for a strategy that has no gradient where meta-training takes no inner steps."""
    for kind, direction in _WITHOUT_SENSE.items():
        if isinstance(strategy, kind):
            raise UsageError(
                f"{algorithm} is trained without inner steps, and metagrad {kind.__name__} is {direction}. Leave "
                "metagrad at unrolled."
            )


_WITHOUT_SENSE: dict[type, str] = {
    metagrad.Reptile: "the direction from a start to what inner steps made of it",
    metagrad.Implicit: "the gradient of the minimum that inner steps lead to",
    metagrad.FirstOrder: "the gradient without the second derivatives of inner steps",
    metagrad.Truncated: "the gradient through the last of many inner steps",
    metagrad.PersistentEvolutionStrategies: "an estimate over windows of inner steps",
}


@contextmanager
def _in_full_precision(device: torch.device) -> Iterator[None]:
    """Without autocast: sums of squares and linear systems lose too much in half precision."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield
