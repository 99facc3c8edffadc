"""MAML: learn a start from which a few gradient steps suffice."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn import random, tree
from metalearn.algorithms.base import Algorithm, loss_of
from metalearn.algorithms.roles import Roles
from metalearn.errors import UsageError
from metalearn.functional import RNG, FunctionalModel
from metalearn.inner import Adapted, InnerState, inner_step
from metalearn.losses import Loss
from metalearn.normalisation import Normalisation, policy_of
from metalearn.optim import GradientTransformation, sgd
from metalearn.optim.learned import LearnedOptimizer
from metalearn.optim.learned.base import check_rate, optimizer_of
from metalearn.problem import Episode, Problem, check_num_steps
from metalearn.state import Filter
from metalearn.types import Aux, Batch, Hyper, Tensors


@dataclass(frozen=True, kw_only=True)
class MAML(Algorithm):
    r"""Model-agnostic meta-learning.

    $\min_\theta \sum_i L_i^{query}(\theta_i)$ with $\theta_i = \theta - \alpha \nabla_\theta L_i^{support}(\theta)$,
    the inner step repeated `num_inner_steps` times. The strategy decides whether the outer gradient is exact (MAML) or
    first-order (FOMAML).

    Attributes:
        loss: `(outputs, targets) -> (loss, metrics)`, for support and query alike (`metalearn.losses`).
        inner_lr: the inner rate $\alpha$, by default 0.01; None for a learned optimizer, which has its own.
        num_inner_steps: inner steps in training.
        inner_optimizer: from a rate to a `GradientTransformation`, or a `metalearn.optim.learned.LearnedOptimizer` (as
            Meta-SGD and MAML++'s LSLR are), whose meta-parameters for what is adapted are `"optimizer.…"` in `meta`.
        adapted: which parameters the inner loop adapts (`metalearn.state.Filter`): `"head.*"` is ANIL, `"features.*"`
            BOIL. The others are used as they were learned.
        learned: which parameters' start is meta-learned; the others stay at the model's own values.
        proximal: the weight of iMAML's term $\frac{1}{2} \lVert \theta - \theta_0 \rVert^2$ in the inner loss, which
            holds on to the start: an implicit gradient (`metagrad.Implicit`) needs it.
        normalisation: what norms normalise by in each pass: a name in `metalearn.normalisation.POLICIES`, or a policy.

    References: Finn, Abbeel and Levine 2017, arXiv:1703.03400, Algorithm 2; the proximal term: Rajeswaran et al. 2019,
    arXiv:1909.04630, equation 4.
    """

    loss: Loss
    inner_lr: Hyper | None = None
    num_inner_steps: int = 1
    inner_optimizer: Callable[[Hyper], GradientTransformation] | LearnedOptimizer = sgd
    adapted: Filter = "*"
    learned: Filter = "*"
    normalisation: str | Normalisation = "module"
    proximal: float = 0.0

    def __post_init__(self) -> None:
        """Refuses a normalisation policy that there is not, a term that would push away from the start, two rates."""
        policy_of(self.normalisation)
        if self.inner_lr is None and not isinstance(self.inner_optimizer, LearnedOptimizer):
            object.__setattr__(self, "inner_lr", 0.01)  # told by the protocol card, so no None that stands for it
        check_rate("MAML", self.inner_optimizer, self.inner_lr, names=("inner_optimizer", "inner_lr"))
        if not self.proximal >= 0:
            raise UsageError(f"proximal={self.proximal}: the weight of the proximal term is at least 0.")

    def init(self, model: FunctionalModel, source: Any = None) -> Tensors:
        """The model's initial parameters that are learned, `"init.…"`, and a learned optimizer's, `"optimizer.…"`."""
        policy_of(self.normalisation).check(model)
        roles = self._roles(model)
        meta = tree.prefixed(roles.learned, "init.")
        if isinstance(self.inner_optimizer, LearnedOptimizer):
            meta |= tree.prefixed(self.inner_optimizer.init(roles.start(meta)), "optimizer.")
        return meta

    def problem(self, model: FunctionalModel) -> Problem:
        """The bilevel problem of Algorithm 2."""
        roles, norms = self._roles(model), policy_of(self.normalisation)
        norms.check(model)
        initial_buffers = norms.initial_buffers(model, self.num_inner_steps)

        def init(meta: Tensors, episode: Episode) -> tuple[Tensors, Tensors]:
            return roles.start(meta), _keyed(initial_buffers, episode.key)

        def inner_loss(meta: Tensors, params: Tensors, buffers: Tensors, batch: Batch, step: int) -> tuple[Tensor, Aux]:
            at_support = norms.at_support(model, step)
            loss, aux = loss_of(self.loss, at_support, roles.whole(meta, params), buffers, batch)
            return self._held(loss, params, roles.start(meta)), aux

        def outer_loss(
            meta: Tensors, params: Tensors, buffers: Tensors, episode: Episode, step: int
        ) -> tuple[Tensor, Aux]:
            at_query = norms.at_query(model, step)
            loss, aux = loss_of(self.loss, at_query, roles.whole(meta, params), buffers, episode.query)
            return loss, aux._replace(buffers=norms.returning(model, aux.buffers))

        return Problem(
            init=init,
            inner_loss=inner_loss,
            optimizer=self._optimizer,
            outer_loss=outer_loss,
            num_inner_steps=self.num_inner_steps,
            must_return=norms.must_return(model),
            holding=lambda buffers: self.problem(model.with_buffers(buffers)),
        )

    def adapt(self, model: FunctionalModel, meta: Tensors, buffers: Tensors, support: Batch) -> Adapted:
        """The adapted parameters after the inner steps on a support set `(inputs, targets)`, padded or not."""
        roles, norms = self._roles(model), policy_of(self.normalisation)
        norms.check(model)
        check_num_steps(self.num_inner_steps)
        optimizer, began = self._optimizer(meta), roles.start(meta)
        buffers = norms.initial_buffers(model.with_buffers(buffers), self.num_inner_steps)

        def loss_fn(step: int, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, Aux]:
            at_support = norms.at_support(model, step)
            loss, aux = loss_of(self.loss, at_support, roles.whole(meta, params), buffers, batch)
            return self._held(loss, params, began), aux

        state = InnerState(began, buffers, optimizer.init(began))
        for step in range(self.num_inner_steps):
            state, _ = inner_step(partial(loss_fn, step), optimizer, state, support)
        return Adapted(*state)

    def predict(self, model: FunctionalModel, meta: Tensors, adapted: Adapted, x: Tensor) -> Tensor:
        """The adapted model's outputs on `x`, `[example, output]`."""
        at_query = policy_of(self.normalisation).at_query(model, self.num_inner_steps)
        outputs: Tensor = at_query(self._roles(model).whole(meta, adapted.params), adapted.buffers, x)[0]
        return outputs

    def _optimizer(self, meta: Tensors) -> GradientTransformation:
        return optimizer_of(self.inner_optimizer, self.inner_lr, meta, "optimizer.")

    def _held(self, loss: Tensor, params: Tensors, began: Tensors) -> Tensor:
        if self.proximal == 0:
            return loss
        distances = [(value - began[name]).square().sum() for name, value in params.items()]
        return loss + 0.5 * self.proximal * torch.stack(distances).sum()

    def _roles(self, model: FunctionalModel) -> Roles:
        return Roles.of(model, adapted=self.adapted, learned=self.learned)


def _keyed(buffers: Tensors, key: Tensor | None) -> Tensors:
    """The buffers with the episode's key folded into the model's: tasks draw different dropout masks."""
    if key is None or RNG not in buffers:
        return buffers
    return {**buffers, RNG: random.fold_in(buffers[RNG], key)}
