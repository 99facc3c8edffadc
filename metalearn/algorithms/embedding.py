"""A model's features: what is left of it without its head, under a normalisation policy."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.base import keyed
from metalearn.errors import UsageError
from metalearn.functional import FunctionalModel
from metalearn.normalisation import Model, Normalisation, policy_of
from metalearn.optim import sgd
from metalearn.problem import Episode, Problem
from metalearn.types import Aux, Batch, Examples, Tensors

Judge: TypeAlias = Callable[["Embedding", Tensors, Tensors, Episode], tuple[Tensor, Tensors, Tensors]]
"""From features, `meta`, buffers and an episode to the loss, its metrics, and the buffers after."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The features of a model, for algorithms that put something else in the place of its head.

    Its parameters are `"init.…"` in `meta`, by the model's own names.

    Attributes:
        model: the model without its head.
        policy: what its norms normalise by.
        num_features: the width of what the head was given.
        num_outputs: the width of what it returned: the most classes that an episode has.
    """

    model: FunctionalModel
    policy: Normalisation
    num_features: int
    num_outputs: int

    @classmethod
    def of(cls, model: FunctionalModel, *, head: str, normalisation: str | Normalisation) -> "Embedding":
        """The model without the submodule `head`.

        Raises:
            UsageError: there is no such submodule, it has no linear layer, or the policy does not go with the model, or
                has statistics for each inner step.
        """
        policy = policy_of(normalisation)
        if policy.per_step:
            raise UsageError(
                f"normalisation={policy.name!r} keeps running statistics for each inner step, and this algorithm "
                "trains its features without any. Take normalisation='shared'."
            )
        features = model.without(head)
        policy.check(features)
        linear = [part for part in model.module.get_submodule(head).modules() if isinstance(part, nn.Linear)]
        if not linear:
            kind = type(model.module.get_submodule(head)).__name__
            raise UsageError(
                f"head={head!r} is a {kind}, expected the linear layer that the model ends with (or a Sequential with "
                "it): its width is the number of classes. Give the name of that layer (algorithm.head=…)."
            )
        return cls(
            model=features,
            policy=policy,
            num_features=linear[0].in_features,
            num_outputs=linear[-1].out_features,
        )

    def init(self) -> Tensors:
        """The initial parameters, `"init.…"`."""
        return tree.prefixed(self.model.params, "init.")

    def holding(self, buffers: Tensors) -> "Embedding":
        """The same with other buffers: those of the whole model, or of the features alone."""
        own = {name: buffers.get(name, value) for name, value in self.model.buffers.items()}
        return replace(self, model=self.model.with_buffers(own))

    def buffers(self, key: Tensor | None) -> Tensors:
        """The buffers that a task begins with: the episode's key is folded in, so that tasks draw different masks."""
        return keyed(dict(self.model.buffers), key)

    def returning(self, buffers: Tensors) -> Tensors:
        """Those of a task's buffers that return to the model."""
        return self.policy.returning(self.model, buffers)

    @property
    def must_return(self) -> tuple[str, ...]:
        """The buffers without whose return the policy makes no sense."""
        return self.policy.must_return(self.model)

    def problem(self, judge: Judge) -> Problem:
        """The problem without inner steps whose outer loss is `judge`'s."""

        def init(meta: Tensors, episode: Episode) -> tuple[Tensors, Tensors]:
            return {}, self.buffers(episode.key)

        def outer_loss(
            meta: Tensors, params: Tensors, buffers: Tensors, episode: Episode, step: int
        ) -> tuple[Tensor, Aux]:
            loss, metrics, buffers = judge(self, meta, buffers, episode)
            return loss, Aux(self.returning(buffers), metrics)

        return Problem(
            init=init,
            inner_loss=no_inner_loss,
            optimizer=lambda meta: sgd(0.0),
            outer_loss=outer_loss,
            num_inner_steps=0,
            must_return=self.must_return,
            holding=lambda buffers: self.holding(buffers).problem(judge),
        )

    def of_set(self, meta: Tensors, buffers: Tensors, examples: Examples) -> tuple[Tensor, Tensors]:
        """The features of a set alone, `[example, feature]`, as a support set is normalised; and the buffers after."""
        return self._pass(self.policy.at_support(self.model, 0), meta, buffers, examples[0], rows_of(examples))

    def of_episode(
        self, meta: Tensors, buffers: Tensors, support: Examples, inputs: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensors]:
        """The features of a support set and of query inputs, and the buffers after.

        Both are one batch where the policy normalises them alike: a norm over the set at hand then takes its statistics
        over support and query together, as the authors' code of ProtoNet and R2D2 does in training. Where it does not
        (`normalisation="task"`), the support set comes first, and the query set is normalised by what it left.

        Args:
            meta: with the parameters.
            buffers: the model's.
            support: the support set.
            inputs: the query's, `[example, *input_shape]`.
            rows: which of these are real, bool `[example]`; None for all.
        """
        if self.policy.support != self.policy.query:
            features, buffers = self.of_set(meta, buffers, support)
            at_query = self.policy.at_query(self.model, 0)
            return features, *self._pass(at_query, meta, buffers, inputs, rows)
        count, at_both = len(support[0]), self.policy.at_query(self.model, 0)
        real = _joined(support[0], rows_of(support), inputs, rows)
        features, buffers = self._pass(at_both, meta, buffers, torch.cat([support[0], inputs]), real)
        return features[:count], features[count:], buffers

    def _pass(
        self, model: Model, meta: Tensors, buffers: Tensors, inputs: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensors]:
        features, buffers = model.seeing(rows)(tree.select(meta, "init."), buffers, inputs)
        return features.flatten(1), buffers


def no_inner_loss(meta: Tensors, params: Tensors, buffers: Tensors, batch: Batch, step: int) -> tuple[Tensor, Aux]:
    """What is called where somebody asks for inner steps all the same."""
    raise UsageError("this algorithm has no inner steps: num_inner_steps must be 0.")


def rows_of(examples: Examples) -> Tensor | None:
    """Which rows of a set are real, bool `[example]`; None for all."""
    return examples[2].examples if len(examples) == 3 else None


def _joined(first: Tensor, rows: Tensor | None, second: Tensor, more: Tensor | None) -> Tensor | None:
    if rows is None and more is None:
        return None
    whole = [
        torch.ones(len(inputs), dtype=torch.bool, device=inputs.device) if real is None else real
        for inputs, real in ((first, rows), (second, more))
    ]
    return torch.cat(whole)
