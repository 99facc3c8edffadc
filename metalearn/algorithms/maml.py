"""MAML: learn a start from which a few gradient steps suffice."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn import metagrad, tree
from metalearn.algorithms.base import Algorithm, keyed, loss_of
from metalearn.algorithms.roles import Roles
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel
from metalearn.inner import Adapted, inner_step, start
from metalearn.losses import Loss
from metalearn.normalisation import Normalisation, policy_of
from metalearn.optim import GradientTransformation, sgd
from metalearn.optim.learned import LearnedOptimizer, LearnedRates
from metalearn.optim.learned.base import check_rate, optimizer_of
from metalearn.problem import Episode, Problem
from metalearn.state import Filter, describe
from metalearn.types import Aux, Batch, Episodes, Hyper, Tensors

InnerOptimizer = Callable[[Hyper], GradientTransformation] | LearnedOptimizer


@dataclass(frozen=True, kw_only=True)
class MAML(Algorithm):
    r"""Model-agnostic meta-learning.

    $\min_\theta \sum_i L_i^{query}(\theta_i)$ with $\theta_i = \theta - \alpha \nabla_\theta L_i^{support}(\theta)$,
    the inner step repeated `num_inner_steps` times. The strategy decides whether the outer gradient is exact (MAML) or
    first-order (FOMAML).

    The algorithms that are MAML but for one thing are subclasses of it, which change one of its methods: with which
    model it works (`working_model`), how it steps (`inner_rule`), where a task starts (`task_start`), or with which
    parameters the model is called after a step (`at_step`).

    Attributes:
        loss: `(outputs, targets) -> (loss, metrics)`, for support and query alike (`metalearn.losses`).
        inner_lr: the inner rate $\alpha$, by default 0.01; None for a learned optimizer, which has its own.
        num_inner_steps: inner steps in training.
        inner_optimizer: from a rate to a `GradientTransformation`, or a `metalearn.optim.learned.LearnedOptimizer`,
            whose meta-parameters for what is adapted are `"optimizer.…"` in `meta`.
        adapted: which parameters the inner loop adapts (`metalearn.state.Filter`): `"head.*"` is ANIL, `"!head.*"`
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
    inner_optimizer: InnerOptimizer = sgd
    adapted: Filter = "*"
    learned: Filter = "*"
    normalisation: str | Normalisation = "module"
    proximal: float = 0.0

    def __post_init__(self) -> None:
        """Refuses a normalisation policy that there is not, a term that would push away from the start, two rates."""
        policy_of(self.normalisation)
        if self.inner_lr is None and not isinstance(self.inner_optimizer, LearnedOptimizer):
            object.__setattr__(self, "inner_lr", 0.01)  # told by the protocol card, so no None that stands for it
        check_rate(type(self).__name__, self.inner_optimizer, self.inner_lr, names=("inner_optimizer", "inner_lr"))
        if not self.proximal >= 0:
            raise UsageError(f"proximal={self.proximal}: the weight of the proximal term is at least 0.")

    def init(self, model: FunctionalModel, source: Any = None) -> Tensors:
        """The model's initial parameters that are learned, `"init.…"`, and a learned optimizer's, `"optimizer.…"`."""
        model, (optimizer, _) = self.working_model(model), self.inner_rule()
        policy_of(self.normalisation).check(model)
        roles = self.roles(model)
        meta = tree.prefixed(roles.learned, "init.")
        if isinstance(optimizer, LearnedOptimizer):
            meta |= tree.prefixed(optimizer.init(roles.start(meta)), "optimizer.")
        return meta

    def problem(self, model: FunctionalModel) -> Problem:
        """The bilevel problem of Algorithm 2."""
        return self._problem(self.working_model(model))

    def _problem(self, model: FunctionalModel) -> Problem:
        roles, norms = self.roles(model), policy_of(self.normalisation)
        norms.check(model)
        initial_buffers = norms.initial_buffers(model, self.num_inner_steps)

        def init(meta: Tensors, episode: Episode) -> tuple[Tensors, Tensors]:
            buffers = keyed(initial_buffers, episode.key)
            return self.task_start(model, roles, meta, buffers, episode.support), buffers

        def inner_loss(meta: Tensors, params: Tensors, buffers: Tensors, batch: Batch, step: int) -> tuple[Tensor, Aux]:
            at_support, whole = norms.at_support(model, step), self.at_step(roles, meta, params, step)
            loss, aux = loss_of(self.loss, at_support, whole, buffers, batch)
            return self._held_back(loss, params, roles, meta), aux

        def outer_loss(
            meta: Tensors, params: Tensors, buffers: Tensors, episode: Episode, step: int
        ) -> tuple[Tensor, Aux]:
            at_query, whole = norms.at_query(model, step), self.at_step(roles, meta, params, step)
            loss, aux = loss_of(self.loss, at_query, whole, buffers, episode.query)
            return loss, aux._replace(buffers=norms.returning(model, aux.buffers))

        return Problem(
            init=init,
            inner_loss=inner_loss,
            optimizer=self._optimizer,
            outer_loss=outer_loss,
            num_inner_steps=self.num_inner_steps,
            must_return=norms.must_return(model),
            holding=lambda buffers: self._problem(model.with_buffers(buffers)),
        )

    def adapt(self, model: FunctionalModel, meta: Tensors, buffers: Tensors, support: Batch) -> Adapted:
        """The adapted parameters after the inner steps on a support set `(inputs, targets)`, padded or not."""
        problem, episode = self.test_problem(model.with_buffers(buffers)), Episodes(support, support)
        state = start(problem, meta, episode)
        for step in range(problem.num_inner_steps):

            def loss_fn(step: int, params: Tensors, buffers: Tensors, batch: Batch) -> tuple[Tensor, Aux]:
                return problem.inner_loss(meta, params, buffers, batch, step)

            batch = problem.batch(episode, step)
            state, _ = inner_step(partial(loss_fn, step), problem.optimizer(meta), state, batch)
        return Adapted(*state)

    def predict(self, model: FunctionalModel, meta: Tensors, adapted: Adapted, x: Tensor) -> Tensor:
        """The adapted model's outputs on `x`, `[example, output]`."""
        model, step = self.working_model(model), self.num_inner_steps
        whole = self.at_step(self.roles(model), meta, adapted.params, step)
        outputs: Tensor = policy_of(self.normalisation).at_query(model, step)(whole, adapted.buffers, x)[0]
        return outputs

    def protocol(self) -> dict[str, Any]:
        """See `Algorithm.protocol`."""
        said: dict[str, Any] = {"proximal": self.proximal} if self.proximal else {}
        rule, _ = self.inner_rule()
        if isinstance(rule, LearnedRates):
            rate = f"learned, from {rule.lr}"
            said |= {"inner_lr_train": rate, "inner_lr_test": rate}
        return said | ({"inner_optimizer": str(rule)} if isinstance(rule, LearnedOptimizer) else {})

    def check_strategy(self, strategy: Any) -> None:
        """Refuses strategies whose gradient of something learned is always 0: it would stay as it is."""
        if isinstance(strategy, metagrad.Reptile) and self.adapted not in ("*", self.learned):
            raise UsageError(
                f"Reptile moves the start of what is adapted, and {type(self).__name__} learns more than that "
                f"(adapted={describe(self.adapted)}, learned={describe(self.learned)}): the rest would stay as it is. "
                "Take Unrolled or FirstOrder (metagrad=first_order), or learn what is adapted alone."
            )
        optimizer, _ = self.inner_rule()
        if isinstance(optimizer, LearnedOptimizer) and isinstance(strategy, metagrad.Implicit | metagrad.Reptile):
            why = (
                "the minimum of the inner loss does not depend on the way that leads to it"
                if isinstance(strategy, metagrad.Implicit)
                else "its direction is one of the start alone"
            )
            raise UsageError(
                f"{type(strategy).__name__} can not learn the inner optimizer {type(optimizer).__name__}: {why}. Take "
                "Unrolled or Stepwise (metagrad=unrolled; a proximal term goes with it too), or a fixed optimizer."
            )

    def working_model(self, model: FunctionalModel) -> FunctionalModel:
        """The model that is adapted; by default the user's."""
        return model

    def inner_rule(self) -> tuple[InnerOptimizer, Hyper | None]:
        """The inner optimizer, learned or not, and its rate where that is not learned."""
        return self.inner_optimizer, self.inner_lr

    def task_start(
        self, model: FunctionalModel, roles: Roles, meta: Tensors, buffers: Tensors, support: Batch
    ) -> Tensors:
        """The parameters that the inner loop of one task starts from; by default they are the same for all tasks."""
        return roles.start(meta)

    def at_step(self, roles: Roles, meta: Tensors, params: Tensors, step: int) -> Tensors:
        """All parameters of the model, after `step` inner steps have led to `params`."""
        return roles.whole(meta, params)

    def roles(self, model: FunctionalModel) -> Roles:
        """Which parameters of the working model are adapted, and which are learned."""
        return Roles.of(model, adapted=self.adapted, learned=self.learned)

    def _optimizer(self, meta: Tensors) -> GradientTransformation:
        return optimizer_of(*self.inner_rule(), meta, "optimizer.")

    def _held_back(self, loss: Tensor, params: Tensors, roles: Roles, meta: Tensors) -> Tensor:
        if self.proximal == 0:
            return loss
        began = roles.start(meta)
        distances = [(value - began[name]).square().sum() for name, value in params.items()]
        return loss + 0.5 * self.proximal * torch.stack(distances).sum()
