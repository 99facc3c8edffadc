"""Normalisation policies: what norms normalise by in each pass, and what of it returns to the model after a meta step.

A pass is the model on the support set (at inner step k) or on the query set (after k steps), in meta-training or at
test; which of the two, says the mode of the model. `FunctionalModel.normalising` does the work of one pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from metalearn.errors import UsageError, did_you_mean
from metalearn.functional import FunctionalModel
from metalearn.functional.norms import Norms
from metalearn.types import Statistics, Tensors


class Model(Protocol):
    """What a pass is made with: a `FunctionalModel`, or one at a row of its per-step statistics."""

    def __call__(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], *args: Any, **kwargs: Any
    ) -> tuple[Any, Tensors]:
        """The output, and the buffers after the call."""

    def seeing(self, rows: Tensor | None) -> "Model":
        """The same for padded inputs, of which these rows are real."""


_CHOICES = (None, *get_args(Statistics))


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """A policy. The built-in ones are in `POLICIES`; one of your own is another instance.

    Attributes:
        name: how it is called.
        support: what norms normalise the support set by, (in meta-training, at test); None: as the module's mode says.
        query: what they normalise the query set by, likewise.
        returns: whether running statistics return to the model after a meta step, as the tasks' mean; where they do
            not, it keeps those that it has.
        per_step: whether each inner step has running statistics of its own.
        whose: what the running statistics are called on a protocol card.
    """

    name: str
    support: tuple[Statistics | None, Statistics | None]
    query: tuple[Statistics | None, Statistics | None]
    returns: bool = True
    per_step: bool = False
    whose: str = "running statistics"

    def __post_init__(self) -> None:
        """Refuses a choice that there is not, before a run comes to it.

        Raises:
            UsageError: what it is, and what was expected.
        """
        for data in ("support", "query"):
            uses = getattr(self, data)
            if not isinstance(uses, tuple) or len(uses) != 2 or any(use not in _CHOICES for use in uses):
                raise UsageError(
                    f"{data}={uses!r}, expected a pair (training, test): each 'set', 'tracked', 'running' or None."
                )

    def at_support(self, model: FunctionalModel, step: int) -> Model:
        """The model of the support pass at inner step `step`, from 0."""
        return self._at(model, self.support, step)

    def at_query(self, model: FunctionalModel, step: int) -> Model:
        """The model of the query pass after `step` inner steps."""
        return self._at(model, self.query, step)

    def check(self, model: FunctionalModel) -> None:
        """Refuses a model that the policy can not be kept with.

        Raises:
            UsageError: it has no norm that a policy is about, or one without the running statistics that it needs.
        """
        uses, norms = {*self.support, *self.query}, model.norms
        if uses == {None}:
            return
        kind = type(model.module).__name__
        if not norms.statistics and not norms.untracked:
            raise UsageError(
                f"normalisation={self.name!r} is about batch norm, and {kind} has none. Leave it at 'module', or give "
                "the model one (of images: model=conv4 model.norm=batch_running)."
            )
        if uses - {None, "set"} and norms.untracked:
            raise UsageError(
                f"normalisation={self.name!r} needs running statistics, but the batch norm {norms.untracked[0]!r} of "
                f"{kind} keeps none. Build it with track_running_stats=True (model=conv4 model.norm=batch_running)."
            )

    def initial_buffers(self, model: FunctionalModel, num_inner_steps: int) -> Tensors:
        """The model's buffers as this policy has them, at the start of meta-training or returned by a meta step.

        With statistics for each inner step, theirs are `[num_inner_steps + 1, ...]`: a row for each step, and one for
        the query set after the last. Buffers that have their rows already stay as they are.
        """
        if not self.per_step:
            return dict(model.buffers)
        own = dict(model.module.named_buffers())
        return {
            name: value.expand(num_inner_steps + 1, *value.shape).clone()
            if name in model.norms.statistics and value.dim() == own[name].dim()
            else value
            for name, value in model.buffers.items()
        }

    def returning(self, model: FunctionalModel, buffers: Tensors) -> Tensors:
        """Those of a task's buffers that return to the model."""
        if self.returns:
            return buffers
        return {name: value for name, value in buffers.items() if name not in model.norms.statistics}

    def must_return(self, model: FunctionalModel) -> tuple[str, ...]:
        """The buffers without whose return the policy makes no sense: the test reads what only training writes."""
        needs = self.support[1] == "running" and "tracked" in (self.support[0], self.query[0])
        return model.norms.statistics if needs else ()

    def transductive(self, norms: Norms) -> bool:
        """Whether, at test, the output for one query example depends on the others, of a model with these norms."""
        if self.query[1] is None:
            return bool(norms.untracked)
        return self.query[1] != "running" and norms.over_examples

    def _at(self, model: FunctionalModel, uses: tuple[Statistics | None, Statistics | None], step: int) -> Model:
        statistics = uses[0 if model.training else 1]
        if statistics is not None:
            model = model.normalising(statistics)
        return _AtStep(model, step) if self.per_step else model


@dataclass(frozen=True)
class _AtStep:
    """A model that takes buffers with per-step statistics, and uses the row of one step; the last for steps beyond."""

    model: FunctionalModel
    step: int

    def __call__(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], *args: Any, **kwargs: Any
    ) -> tuple[Any, Tensors]:
        rows = {name: min(self.step, len(buffers[name]) - 1) for name in self.model.norms.statistics}
        own = {name: buffers[name][row] for name, row in rows.items()}
        output, after = self.model(params, {**buffers, **own}, *args, **kwargs)
        stacked = {
            name: buffers[name] if after[name] is own[name] else _with_row(buffers[name], row, after[name])
            for name, row in rows.items()
        }
        return output, {**after, **stacked}

    def seeing(self, rows: Tensor | None) -> Model:
        return replace(self, model=self.model.seeing(rows))


def _with_row(stacked: Tensor, row: int, value: Tensor) -> Tensor:
    return torch.cat([stacked[:row], value[None], stacked[row + 1 :]])


POLICIES: dict[str, Normalisation] = {
    policy.name: policy
    for policy in (
        Normalisation(name="module", support=(None, None), query=(None, None)),
        Normalisation(name="set", support=("set", "set"), query=("set", "set"), returns=False),
        Normalisation(
            name="task",
            support=("tracked", "tracked"),
            query=("running", "running"),
            whose="the task's own running statistics",
        ),
        Normalisation(
            name="step",
            support=("tracked", "running"),
            query=("tracked", "running"),
            per_step=True,
            whose="running statistics per inner step",
        ),
        Normalisation(
            name="shared",
            support=("tracked", "running"),
            query=("tracked", "running"),
            whose="running statistics shared by all tasks",
        ),
        Normalisation(
            name="frozen",
            support=("running", "running"),
            query=("running", "running"),
            returns=False,
            whose="the model's running statistics, frozen",
        ),
    )
}
"""The policies by name.

- `module`: as the module and its mode say; a batch norm that tracks is `shared`, one that does not is `set`.
- `set`: always the set at hand, also at test (transductive): Finn, Abbeel and Levine 2017, arXiv:1703.03400, as their
  code has it.
- `task`: a task updates running statistics on its support set, from the model's on, and normalises the query set by
  them. Where a task ends up returns to the model, as the mean over tasks.
- `step`: each inner step has running statistics of its own, which training collects and the test reads (BNRS of
  Antoniou, Edwards and Storkey 2019, arXiv:1810.09502). As the paper has it: the authors' code collects them too, but
  normalises by the set at hand also at test. The query set after k steps has row k, that of the parameters there.
- `shared`: one set of running statistics, which training updates and the test reads.
- `frozen`: always the model's running statistics (a pretrained model's, say), which stay as they are.
"""


def policy_of(policy: str | Normalisation) -> Normalisation:
    """The policy of that name, or the policy itself.

    Raises:
        UsageError: with the close matches.
    """
    if isinstance(policy, Normalisation):
        return policy
    if policy not in POLICIES:
        raise UsageError(f"normalisation={policy!r} is not a policy. {did_you_mean(str(policy), POLICIES)}")
    return POLICIES[policy]
