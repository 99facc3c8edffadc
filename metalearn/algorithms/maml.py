"""MAML: learn a start from which a few gradient steps suffice."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metalearn import random, tree
from metalearn.algorithms.base import Algorithm, loss_of
from metalearn.functional import RNG, FunctionalModel
from metalearn.inner import Adapted, adapt
from metalearn.losses import Loss
from metalearn.optim import GradientTransformation, sgd
from metalearn.problem import Episode, Problem
from metalearn.types import Aux, Batch, Hyper, Tensors


@dataclass(frozen=True, kw_only=True)
class MAML(Algorithm):
    r"""Model-agnostic meta-learning.

    $\min_\theta \sum_i L_i^{query}(\theta_i)$ with $\theta_i = \theta - \alpha \nabla_\theta L_i^{support}(\theta)$,
    the inner step repeated `num_inner_steps` times. The strategy decides whether the outer gradient is exact (MAML) or
    first-order (FOMAML).

    Attributes:
        loss: `(outputs, targets) -> (loss, metrics)`, for support and query alike (`metalearn.losses`).
        inner_lr: the inner rate $\alpha$.
        num_inner_steps: inner steps in training.
        inner_optimizer: from a rate to a `GradientTransformation`.

    Reference: Finn, Abbeel and Levine 2017, arXiv:1703.03400, Algorithm 2.
    """

    loss: Loss
    inner_lr: Hyper = 0.01
    num_inner_steps: int = 1
    inner_optimizer: Callable[[Hyper], GradientTransformation] = sgd

    def init(self, model: FunctionalModel, source: Any = None) -> Tensors:
        """The model's initial parameters under the prefix `"init."`."""
        return tree.prefixed(model.params, "init.")

    def problem(self, model: FunctionalModel) -> Problem:
        """The bilevel problem of Algorithm 2."""

        def init(meta: Tensors, episode: Episode) -> tuple[Tensors, Tensors]:
            return tree.select(meta, "init."), _keyed(model.buffers, episode.key)

        def inner_loss(meta: Tensors, params: Tensors, buffers: Tensors, batch: Batch, step: int) -> tuple[Tensor, Aux]:
            return loss_of(self.loss, model, params, buffers, batch)

        def outer_loss(
            meta: Tensors, params: Tensors, buffers: Tensors, episode: Episode, step: int
        ) -> tuple[Tensor, Aux]:
            return loss_of(self.loss, model, params, buffers, episode.query)

        return Problem(
            init=init,
            inner_loss=inner_loss,
            optimizer=lambda meta: self.inner_optimizer(self.inner_lr),
            outer_loss=outer_loss,
            num_inner_steps=self.num_inner_steps,
        )

    def adapt(self, model: FunctionalModel, meta: Tensors, buffers: Tensors, support: Batch) -> Adapted:
        """The parameters after the inner steps on a support set `(inputs, targets)`, padded or not."""

        def loss_fn(params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, Aux]:
            return loss_of(self.loss, model, params, buffers, batch)

        return adapt(
            loss_fn,
            tree.select(meta, "init."),
            buffers,
            support,
            optimizer=self.inner_optimizer(self.inner_lr),
            num_inner_steps=self.num_inner_steps,
        )

    def predict(self, model: FunctionalModel, meta: Tensors, adapted: Adapted, x: Tensor) -> Tensor:
        """The adapted model's outputs on `x`, `[example, output]`."""
        outputs: Tensor = model(adapted.params, adapted.buffers, x)[0]
        return outputs


def _keyed(buffers: Tensors, key: Tensor | None) -> Tensors:
    """The buffers with the episode's key folded into the model's: tasks draw different dropout masks."""
    if key is None or RNG not in buffers:
        return buffers
    return {**buffers, RNG: random.fold_in(buffers[RNG], key)}
