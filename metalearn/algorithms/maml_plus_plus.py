"""MAML++: MAML with the six changes that make it train well."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from metalearn.algorithms.maml import MAML, InnerOptimizer
from metalearn.algorithms.rates import starting_rate
from metalearn.algorithms.roles import Roles
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel
from metalearn.metagrad import Implicit, Reptile, Truncated
from metalearn.optim import GradientTransformation
from metalearn.optim.learned import LSLR, LearnedRates
from metalearn.optim.learned.base import optimizer_of
from metalearn.problem import Problem
from metalearn.state import NORMS, partition
from metalearn.types import Hyper, Tensors

WEIGHTS = "outer_weights"
"""The name under which the weights of the losses come with the model's buffers."""
_LEAST = 0.03
"""What is left of the weight of a loss before the last one."""


@dataclass(frozen=True, kw_only=True)
class MAMLPlusPlus(MAML):
    r"""MAML with a loss after every step, learned rates and norms of their own for every step.

    $\min \sum_i \sum_{k=1}^{K} v_k L_i^{query}(\theta_{i,k})$ with $\theta_{i,k} = \theta_{i,k-1} - \alpha_k \nabla
    L_i^{support}(\theta_{i,k-1})$. Each of the paper's changes is a switch of its own:

    - multi-step loss: `multi_step_until`. At its beginning all $v_k = 1/K$; those before the last fall linearly, to at
      least $0.03/K$, and the last one takes what they lose. From the meta step `multi_step_until` on the last state
      alone is judged;
    - learned rates of every layer and step ($\alpha$): `learned_rates`, LSLR;
    - batch-norm statistics of every step: `normalisation="step"`, which needs batch norms that keep some (the authors'
      code collects them, and normalises by the set at hand also at test);
    - batch-norm weights and biases of every step: `per_step_norms`. They are learned by the outer loop alone;
    - first order until a meta step: `metagrad=first_order metagrad.until=…`;
    - a cosine schedule of the outer rate: `meta.schedule=cosine`.

    The state after k steps, and the query set with it, have row k of what is kept for every step; at test the last row
    holds for all further steps.

    Attributes:
        multi_step_until: the meta step from which on the last state alone is judged; 0 for always.
        learned_rates: whether `inner_lr` is where learned rates start, or fixed.
        per_step_norms: whether norms have weights and biases of their own at every step.

    Reference: Antoniou, Edwards and Storkey 2019, arXiv:1810.09502, section 4; the least weight of a loss is that of
    the authors' code.
    """

    multi_step_until: int = 0
    learned_rates: bool = True
    per_step_norms: bool = True

    def __post_init__(self) -> None:
        """Refuses a meta step before the first."""
        super().__post_init__()
        until = self.multi_step_until
        if isinstance(until, bool) or not isinstance(until, int) or until < 0:
            raise UsageError(f"MAMLPlusPlus(multi_step_until={until!r}): it is a meta step, an integer of at least 0.")

    def at(self, meta_step: int) -> "MAMLPlusPlus":
        """The algorithm that judges the last state alone, once it is time."""
        return replace(self, multi_step_until=0) if meta_step >= self.multi_step_until > 0 else self

    def held(self, meta_step: int) -> Tensors:
        """The weights of the losses at a meta step, `[num_inner_steps]`."""
        if meta_step >= self.multi_step_until or not self.num_inner_steps:
            return {}
        earlier = max(1.0 - meta_step / self.multi_step_until, _LEAST) / self.num_inner_steps
        weights = torch.full((self.num_inner_steps,), earlier, dtype=torch.float64)
        weights[-1] = 1.0 - earlier * (self.num_inner_steps - 1)
        return {WEIGHTS: weights}

    def init(self, model: FunctionalModel, source: Any = None) -> Tensors:
        """As MAML's, but that the norms' parameters have a row for every step, `[num_inner_steps + 1, ...]`."""
        meta, stacked = super().init(model, source), self._names_per_step(self.working_model(model))
        rows = self.num_inner_steps + 1
        return {
            name: value.expand(rows, *value.shape).clone() if name.removeprefix("init.") in stacked else value
            for name, value in meta.items()
        }

    def problem(self, model: FunctionalModel) -> Problem:
        """MAML's problem, with the weights that the model's buffers come with (`held`), or those of the first step."""
        buffers = dict(model.buffers)
        held = buffers.pop(WEIGHTS, self.held(0).get(WEIGHTS))
        weights = None if held is None else held.to(next(iter(model.params.values()))).unbind()
        return replace(
            super().problem(model.with_buffers(buffers)),
            outer_weights=weights,
            holding=lambda held: self.problem(model.with_buffers(held)),
        )

    def protocol(self) -> dict[str, Any]:
        """See `Algorithm.protocol`."""
        switches = ("multi_step_until", "learned_rates", "per_step_norms")
        return {**super().protocol(), **{name: getattr(self, name) for name in switches}}

    def check_strategy(self, strategy: Any) -> None:
        """Refuses strategies that can not judge every step, or never reach what belongs to the first ones."""
        kind = type(strategy).__name__
        exact = "Take Unrolled, FirstOrder or Stepwise (metagrad=stepwise)"
        windows = isinstance(strategy, Truncated) and strategy.windows
        if self.multi_step_until and (windows or isinstance(strategy, Implicit | Reptile)):
            raise UsageError(
                f"{kind} judges one state of the inner loop, and the multi-step loss judges all of them. {exact}, or "
                "set multi_step_until=0 (algorithm.multi_step_until=0)."
            )
        if isinstance(strategy, Reptile) and self.per_step_norms:
            raise UsageError(
                f"{kind} moves only what is adapted, and norms of every step are not. {exact}, or set "
                "per_step_norms=false."
            )
        cut = isinstance(strategy, Truncated) and not windows and strategy.num_steps < self.num_inner_steps
        if cut and (self.learned_rates or self.per_step_norms):
            raise UsageError(
                f"Truncated(num_steps={strategy.num_steps}) never reaches the rates and norms of the first "
                f"{self.num_inner_steps - strategy.num_steps} steps: they would stay as they are. {exact}, or set "
                "learned_rates=false and per_step_norms=false."
            )
        super().check_strategy(strategy)

    def inner_rule(self) -> tuple[InnerOptimizer, Hyper | None]:
        """The inner optimizer with a learned rate for every parameter and step."""
        if not self.learned_rates:
            return super().inner_rule()
        lr, base = starting_rate(self)
        return LSLR(lr, max(self.num_inner_steps, 1), base=base), None

    def roles(self, model: FunctionalModel) -> Roles:
        """What has a value for every step is not adapted."""
        roles = super().roles(model)
        return replace(roles, adapted=roles.adapted - self._names_per_step(model))

    def at_step(self, roles: Roles, meta: Tensors, params: Tensors, step: int) -> Tensors:
        """The parameters after `step` steps, with the norms' of that step."""
        whole = roles.whole(meta, params)
        stacked = (name for name, value in roles.learned.items() if meta[f"init.{name}"].dim() > value.dim())
        rows = {name: whole[name][min(step, len(whole[name]) - 1)] for name in stacked}
        return {**whole, **rows}

    def _optimizer(self, meta: Tensors) -> GradientTransformation:
        # Adapted for another number of steps than in training, it has the rates that were learned.
        optimizer, rate = self.inner_rule()
        if isinstance(optimizer, LearnedRates):
            learned = (value for name, value in meta.items() if name.startswith("optimizer.lr."))
            optimizer = replace(optimizer, num_steps=len(next(learned)))
        return optimizer_of(optimizer, rate, meta, "optimizer.")

    def _names_per_step(self, model: FunctionalModel) -> frozenset[str]:
        """The learned parameters that have a value for every step."""
        if not self.per_step_norms:
            return frozenset()
        norms, _ = partition(model.params, NORMS, model=model, allow_empty=True)
        found = frozenset(norms) & frozenset(super().roles(model).learned)
        if not found:
            raise UsageError(
                f"per_step_norms: {type(model.module).__name__} has no norm whose weights are learned. Set "
                "per_step_norms=false, or give the model norms (of images: model=conv4 model.norm=batch_running)."
            )
        return found
