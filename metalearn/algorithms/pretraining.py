"""The baselines' common part, plain training on all classes at once; and the one with nearest prototypes."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from metalearn import random
from metalearn.algorithms.base import Algorithm, check_kind
from metalearn.algorithms.closed_form import Remembered, refuse_without_steps
from metalearn.algorithms.embedding import Embedding
from metalearn.algorithms.protonet import Distance, ProtoNet
from metalearn.errors import UsageError
from metalearn.functional import RNG, FunctionalModel
from metalearn.losses import Loss
from metalearn.normalisation import Normalisation, policy_of
from metalearn.problem import Episode, Problem
from metalearn.types import Batch, Tensors

_WEIGHT, _BIAS = "classifier.weight", "classifier.bias"
_OF_CLASSIFIER = 0xC1A55


@dataclass(frozen=True, kw_only=True)
class Pretrained(Algorithm):
    r"""Plain classification of all training classes: no episodes, no support set.

    $\min_{\theta, W, b} - \log p(y \mid x)$ with $p(y \mid x) = \text{softmax}(W f_\theta(x) + b)_y$ over minibatches
    of images of any training class. The features are `"init.…"` in `meta`, the classifier of all training classes is
    `"classifier.…"`; it is not used at test, where each task gets a head of its own. A subclass says which.

    A meta step takes `meta.batch_size` minibatches of `num_examples` images each and averages their gradients, which is
    one minibatch of `meta.batch_size * num_examples` images, but for a norm over the set at hand, whose statistics are
    those of each. `loss` and `accuracy` of meta-training are of all training classes; validation and test are few-shot.

    Attributes:
        loss: `(outputs, targets) -> (loss, metrics)`.
        head: the name of the model's last linear layer, which the classifier takes the place of.
        normalisation: what norms normalise by: a name in `metalearn.normalisation.POLICIES`, or a policy.
        num_examples: images of one of the minibatches.
    """

    loss: Loss
    head: str = "head"
    normalisation: str | Normalisation = "module"
    num_examples: int = 64

    num_inner_steps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        """Refuses a normalisation policy that there is not, and minibatches of nothing."""
        policy_of(self.normalisation)
        size = self.num_examples
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"{type(self).__name__}(num_examples={size!r}): it must be a whole number of at least 1.")

    @property
    def has_inner_steps(self) -> bool:
        """See `Algorithm.has_inner_steps`: meta-training takes none, and the test does what is set otherwise."""
        return False

    def protocol(self) -> dict[str, Any]:
        """See `Algorithm.protocol`."""
        objective = f"classification of all training classes, minibatches of {self.num_examples} examples"
        return {"meta_training": objective}

    def init(self, model: FunctionalModel, source: Any = None) -> Tensors:
        """The features' initial parameters, and a classifier for the training classes of `source`."""
        embedding, num_classes = self._embedding(model), _num_classes(source, type(self).__name__)
        like = next(iter(embedding.model.params.values()))
        key = random.fold_in(model.buffers[RNG], _OF_CLASSIFIER)
        bound = 1 / math.sqrt(embedding.num_features)  # as torch.nn.Linear begins

        def uniform(number: int, *shape: int) -> Tensor:
            drawn = random.uniform(random.fold_in(key, number), shape)
            return ((2 * drawn - 1) * bound).to(like)

        classifier = {_WEIGHT: uniform(0, num_classes, embedding.num_features), _BIAS: uniform(1, num_classes)}
        return {**embedding.init(), **classifier}

    def problem(self, model: FunctionalModel) -> Problem:
        """The problem of meta-training: the loss of the query set, whose labels are those of all training classes."""
        return self._embedding(model).problem(self._judge)

    @abstractmethod
    def test_problem(self, model: FunctionalModel) -> Problem:
        """The problem of validation and test, without inner steps either."""

    def training_source(self, source: Any) -> Any:
        """Minibatches of the training classes, labelled by their numbers among all of them."""
        check_kind(self, source)
        if not hasattr(source, "minibatches"):
            raise UsageError(
                f"{type(self).__name__} trains on all classes at once, and the task source {type(source).__name__} can "
                "not give its examples so (it has no method minibatches). Choose algorithm=protonet, or a task of "
                "images or rows by class."
            )
        return source.minibatches(self.num_examples)

    def check_strategy(self, strategy: Any) -> None:
        """Refuses strategies that are about inner steps: meta-training takes none."""
        refuse_without_steps(type(self).__name__, strategy)

    def _embedding(self, model: FunctionalModel) -> Embedding:
        return Embedding.of(model, head=self.head, normalisation=self.normalisation)

    def _judge(
        self, embedding: Embedding, meta: Tensors, buffers: Tensors, episode: Episode
    ) -> tuple[Tensor, Tensors, Tensors]:
        features, buffers = embedding.of_set(meta, buffers, episode.query)
        return *self.loss(F.linear(features, meta[_WEIGHT], meta[_BIAS]), *episode.query[1:]), buffers


@dataclass(frozen=True, kw_only=True)
class PretrainedPrototypes(Pretrained):
    r"""Plain training, then the class whose mean of features is nearest.

    The features stay as they are; the logits are those of `ProtoNet`, $s \cos(f_\theta(x), c_k)$ by default.

    Attributes:
        distance: `"cosine"`, or `"euclidean"` (squared).

    References: Chen, Liu, Kira, Wang and Huang 2019, arXiv:1904.04232 (the baseline); Chen, Wang, Liu, Xu and Darrell
    2020, arXiv:2003.04390 (its nearest prototypes by cosine, "Classifier-Baseline").
    """

    distance: Distance = "cosine"

    def __post_init__(self) -> None:
        """Refuses what `ProtoNet` would."""
        super().__post_init__()
        self.tester()

    @property
    def serves_fewer_classes(self) -> bool:
        """See `Algorithm.serves_fewer_classes`."""
        return True

    def tester(self) -> ProtoNet:
        """What validation and test do with the features."""
        return ProtoNet(loss=self.loss, head=self.head, normalisation=self.normalisation, distance=self.distance)

    def protocol(self) -> dict[str, Any]:
        """See `Algorithm.protocol`."""
        return {**super().protocol(), "at_test": f"nearest prototypes ({self.distance})"}

    def test_problem(self, model: FunctionalModel) -> Problem:
        """The problem of validation and test: `ProtoNet`'s, with the features as they are."""
        return self.tester().test_problem(model)

    def adapt(self, model: FunctionalModel, meta: Tensors, buffers: Tensors, support: Batch) -> Remembered:
        """The support set, as `ProtoNet` keeps it."""
        return self.tester().adapt(model, meta, buffers, support)

    def predict(self, model: FunctionalModel, meta: Tensors, adapted: Remembered, x: Tensor) -> Tensor:
        """The logits on `x`, `[example, class]`."""
        return self.tester().predict(model, meta, adapted, x)


def _num_classes(source: Any, algorithm: str) -> int:
    count = getattr(source, "num_training_classes", None)
    if count is None:
        what = "init(model, source) was given no source" if source is None else f"{source.name!r} does not say"
        raise UsageError(
            f"{algorithm} trains a classifier of all training classes, and how many there are {what} "
            "(num_training_classes). Choose algorithm=protonet, or a task of images or rows by class."
        )
    return int(count)
