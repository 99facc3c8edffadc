"""The baseline that trains a new head on each support set, on features of plain training."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from metalearn import inner
from metalearn.algorithms.classes import members_of, without_absent
from metalearn.algorithms.closed_form import ClosedForm, Remembered, wide_enough
from metalearn.algorithms.embedding import no_inner_loss
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.pretraining import Pretrained
from metalearn.errors import UsageError, did_you_mean
from metalearn.functional import FunctionalModel
from metalearn.inner import Adapted
from metalearn.optim import GradientTransformation, sgd
from metalearn.optim.learned import LearnedOptimizer
from metalearn.problem import Episode, Problem
from metalearn.types import Aux, Batch, Examples, Hyper, Tensors

Tuned = Literal["head", "all"]


@dataclass(frozen=True, kw_only=True)
class PretrainedFineTuned(Pretrained):
    r"""Plain training, then a new head trained on each support set.

    With `tuned="head"` the features stay as they are, and a linear layer $W f_\theta(x) + b$ goes from zeros through
    `tuning_steps` steps of the optimizer on $- \log p(y \mid x)$ over the whole support set, whose features are
    computed once. With `tuned="all"` the whole model does, its head from the model's own initial values (as in `MAML`
    with nothing but the features learned): every step then goes through all of it.

    These steps belong to the test. Meta-training takes none, and `inner.num_steps`, `inner.lr` and
    `eval.num_inner_steps` are not about them.

    Attributes:
        tuned: what is trained on the support set.
        tuning_steps: for how many steps. The paper takes 100 passes over minibatches of 4 examples.
        tuning_lr: at what rate. The paper takes 0.01, of which full batches get not far enough in 100 steps.
        inner_optimizer: from a rate to a `GradientTransformation`.

    Reference: Chen, Liu, Kira, Wang and Huang 2019, arXiv:1904.04232, section 3.2, "Baseline".
    """

    tuned: Tuned = "head"
    tuning_steps: int = 100
    tuning_lr: float = 0.1
    inner_optimizer: Callable[[Hyper], GradientTransformation] = sgd

    def __post_init__(self) -> None:
        """Refuses an unknown choice, steps that are none, and a learned optimizer, which nothing would train."""
        super().__post_init__()
        if self.tuned not in get_args(Tuned):
            hint = did_you_mean(str(self.tuned), get_args(Tuned))
            raise UsageError(f"PretrainedFineTuned(tuned={self.tuned!r}). {hint}")
        steps = self.tuning_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise UsageError(f"PretrainedFineTuned(tuning_steps={steps!r}): it must be a whole number of at least 1.")
        if isinstance(self.inner_optimizer, LearnedOptimizer):
            raise UsageError(
                f"PretrainedFineTuned(inner_optimizer={type(self.inner_optimizer).__name__}): meta-training takes no "
                "inner steps, so nothing would train it. Take one of metalearn.optim, or MAML."
            )

    @property
    def serves_fewer_classes(self) -> bool:
        """See `Algorithm.serves_fewer_classes`: a head of its own is made for the classes of a support set."""
        return self.tuned == "head"

    def protocol(self) -> dict[str, Any]:
        """See `Algorithm.protocol`."""
        what = "a new head" if self.tuned == "head" else "a new head and the features"
        how = {"fine_tuning_steps": self.tuning_steps, "fine_tuning_lr": self.tuning_lr}
        return {**super().protocol(), "at_test": f"{what} fine-tuned on the support set", **how}

    def test_problem(self, model: FunctionalModel) -> Problem:
        """The problem of validation and test: the fine-tuning is part of its loss."""
        return self._probe().test_problem(model) if self.tuned == "head" else self._through(model)

    def adapt(self, model: FunctionalModel, meta: Tensors, buffers: Tensors, support: Batch) -> Remembered | Adapted:
        """The support set, which a head is trained on when there is something to predict; or all of a tuned model."""
        tester = self._probe() if self.tuned == "head" else self._whole()
        return tester.adapt(model, meta, buffers, support)

    def predict(self, model: FunctionalModel, meta: Tensors, adapted: Any, x: Tensor) -> Tensor:
        """The logits on `x`, `[example, class]`."""
        tester = self._probe() if self.tuned == "head" else self._whole()
        return tester.predict(model, meta, adapted, x)

    def _probe(self) -> "LinearProbe":
        return LinearProbe(
            loss=self.loss,
            head=self.head,
            normalisation=self.normalisation,
            optimizer=self.inner_optimizer(self.tuning_lr),
            num_steps=self.tuning_steps,
        )

    def _whole(self) -> MAML:
        return MAML(
            loss=self.loss,
            inner_lr=self.tuning_lr,
            num_inner_steps=self.tuning_steps,
            inner_optimizer=self.inner_optimizer,
            learned=["*", f"!{self.head}.*"],
            normalisation=self.normalisation,
        )

    def _through(self, model: FunctionalModel) -> Problem:
        """The problem of tuning the whole model, without inner steps of its own."""
        tuning = self._whole().problem(model)

        def outer_loss(
            meta: Tensors, params: Tensors, buffers: Tensors, episode: Episode, step: int
        ) -> tuple[Tensor, Aux]:
            *_, last = inner.unroll(tuning, meta, episode)
            return tuning.outer_loss(meta, last.params, last.buffers, episode, tuning.num_inner_steps)

        return replace(
            tuning,
            init=lambda meta, episode: ({}, {}),
            inner_loss=no_inner_loss,
            outer_loss=outer_loss,
            num_inner_steps=0,
            holding=lambda buffers: self._through(model.with_buffers(buffers)),
        )


@dataclass(frozen=True, kw_only=True)
class LinearProbe(ClosedForm):
    """A linear layer that is trained on the features of a support set, from zeros, for a fixed number of steps.

    Attributes:
        optimizer: of the steps.
        num_steps: how many.
    """

    optimizer: GradientTransformation
    num_steps: int

    def numbers(self, kind: str) -> dict[str, float]:
        """See `ClosedForm.numbers`: none."""
        return {}

    def outputs(self, meta: Tensors, features: Tensor, support: Examples, query: Tensor, num_classes: int) -> Tensor:
        """See `ClosedForm.outputs`: what the trained layer says."""
        members, present = members_of(support, num_classes), wide_enough(support, num_classes)[2:]

        def loss_fn(params: Tensors, buffers: Tensors, batch: Batch) -> Tensor:
            outputs = without_absent(F.linear(batch, params["weight"], params["bias"]), members)
            return self.loss(outputs, support[1], *present)[0]

        start = {
            "weight": features.new_zeros(num_classes, features.shape[1]),
            "bias": features.new_zeros(num_classes),
        }
        found = inner.adapt(loss_fn, start, {}, features, optimizer=self.optimizer, num_inner_steps=self.num_steps)
        return without_absent(F.linear(query, found.params["weight"], found.params["bias"]), members)
