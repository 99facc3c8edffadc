"""Reptile: move the start towards where plain training on a task ends up."""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn import metagrad, random
from metalearn.algorithms.maml import MAML
from metalearn.errors import UsageError, did_you_mean
from metalearn.functional import FunctionalModel
from metalearn.problem import Episode, Problem
from metalearn.types import Batch, Examples, Present

TrainsOn = Literal["all", "support"]


@dataclass(frozen=True, kw_only=True)
class Reptile(MAML):
    r"""Plain training on each task, and a step of the start towards the result.

    $\theta \leftarrow \theta + \epsilon \frac{1}{n} \sum_i (\theta_i - \theta)$ where $\theta_i$ is $\theta$ after
    `num_inner_steps` steps of the inner optimizer on minibatches of task $i$. There is no query loss to descend, so
    that training may use all examples of its episodes; validation and test adapt to the support set alone, in full
    batches. The direction is `metagrad.Reptile`'s, and $\epsilon$ the rate of an outer SGD (`meta.optimizer=sgd
    meta.lr=1.0`; the paper lets it fall to 0: `meta.schedule=linear`).

    The paper's numbers with transduction are those of a model whose norms use the statistics of the whole query set
    (`normalisation="set"`, or a batch norm without running statistics); without, those of `normalisation="task"`.

    Attributes:
        trains_on: `"all"` examples of a training episode, support and query together, or its `"support"` set.
        batch_size: examples of an inner step's minibatch in training, drawn anew at each step without replacement
            (the paper goes through all before it draws one again); None for all.

    Reference: Nichol, Achiam and Schulman 2018, arXiv:1803.02999, Algorithm 2.
    """

    trains_on: TrainsOn = "all"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Refuses an unknown part of an episode, and a batch of nothing."""
        super().__post_init__()
        if self.trains_on not in get_args(TrainsOn):
            raise UsageError(
                f"Reptile(trains_on={self.trains_on!r}). {did_you_mean(str(self.trains_on), get_args(TrainsOn))}"
            )
        size = self.batch_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise UsageError(f"Reptile(batch_size={size!r}): it must be an integer of at least 1, or None for all.")

    def check_strategy(self, strategy: Any) -> None:
        """Refuses everything but `metagrad.Reptile`: in training there is no query set that a gradient could judge."""
        if not isinstance(strategy, metagrad.Reptile):
            raise UsageError(
                f"algorithm=reptile trains on all examples and has no gradient, but metagrad is "
                f"{type(strategy).__name__}. Leave metagrad at reptile, or choose algorithm=maml (fomaml)."
            )
        super().check_strategy(strategy)

    def protocol(self) -> dict[str, Any]:
        """See `Algorithm.protocol`."""
        return {**super().protocol(), "trains_on": self.trains_on, "inner_batch_size": self.batch_size}

    def problem(self, model: FunctionalModel) -> Problem:
        """The problem of meta-training: the inner loop on minibatches of whatever it trains on."""

        def batch(episode: Episode, step: int) -> Batch:
            examples = _together(episode.support, episode.query) if self.trains_on == "all" else episode.support
            return examples if self.batch_size is None else _minibatch(examples, self.batch_size, episode.key, step)

        def holding(buffers: Any) -> Problem:
            return self.problem(model.with_buffers(buffers))

        return replace(super().problem(model), batch=batch, holding=holding)

    def test_problem(self, model: FunctionalModel) -> Problem:
        """The problem of validation and test: the inner loop on the whole support set."""
        return super().problem(model)


def _together(support: Examples, query: Examples) -> Examples:
    """The rows of two sets as one."""
    inputs, targets = (torch.cat(pair) for pair in zip(support[:2], query[:2], strict=True))
    if len(support) == 2 or len(query) == 2:
        return inputs, targets
    present = (support[2], query[2])
    if any(each.examples is None for each in present):  # a loop has cut the padding off
        return inputs, targets, Present(None, support[2].outputs)
    return inputs, targets, Present(torch.cat([each.rows for each in present]), support[2].outputs)


def _minibatch(examples: Examples, size: int, key: Tensor | None, step: int) -> Examples:
    """Some of the rows, others at every step and in every task."""
    if key is None:
        raise UsageError(
            "Reptile draws minibatches from the episode's key, and these episodes have none (Episodes.key)."
        )
    inputs, targets, *rest = examples
    if size >= len(targets):
        return examples
    rows = torch.argsort(_scores(rest, len(targets), random.fold_in(key, step)))[:size]
    if not rest:
        return inputs[rows], targets[rows]
    shown = rest[0].examples
    return inputs[rows], targets[rows], Present(None if shown is None else shown[rows], rest[0].outputs)


def _scores(rest: list[Present], count: int, key: Tensor) -> Tensor:
    """Numbers to order rows by: random ones, and behind all of them those of padding."""
    scores = random.uniform(key, (count,))
    padded = bool(rest) and rest[0].examples is not None
    return torch.where(rest[0].rows, scores, scores + 1.0) if padded else scores
