"""A meta-learning problem: what is learned and what is adapted, as pure functions of explicit arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from metalearn.errors import UsageError
from metalearn.optim import GradientTransformation
from metalearn.types import Aux, Batch, Tensors

Episode: TypeAlias = Any
"""One task's data; `metalearn.types.Episodes` without the task axis, or any nest of tensors of a user's own."""


def support_set(episode: Episode, step: int) -> Batch:
    """The whole support set, at every inner step."""
    return episode.support


@dataclass(frozen=True, kw_only=True)
class Problem:
    r"""A bilevel problem: find `meta` that minimises $\sum_k w_k L^{out}(meta, \theta_k)$.

    Here $\theta_0$ = `init(meta, episode)` and $\theta_{k+1} = \theta_k + u_k$, with the updates $u_k$ of
    `optimizer(meta)` on the gradient of `inner_loss` with respect to $\theta_k$.

    Everything differentiable is an argument. A tensor that requires grad and is captured instead is refused by the
    strategies, because some of them would silently drop its gradient. One task is seen at a time: no task axis.

    Attributes:
        init: `(meta, episode) -> (params, buffers)` that the inner loop starts from.
        inner_loss: `(meta, params, buffers, batch, step) -> (loss, Aux(buffers, metrics))`.
        optimizer: `meta -> GradientTransformation`, so that a rate, or a whole optimizer, can be learned.
        outer_loss: `(meta, params, buffers, episode, step) -> (loss, Aux)`; `step` counts the inner steps done.
        num_inner_steps: inner steps of an episode, 0 or more.
        batch: `(episode, step) -> batch` for the inner step; the support set by default.
        outer_weights: the weight of the outer loss after each inner step 1 … `num_inner_steps` (MAML++'s multi-step
            loss); None judges the last state alone.
        must_return: names of buffers that have to return to the model after a meta step, as its test reads what only
            training writes (shared running statistics): an execution that keeps them back is refused.
        holding: makes the same problem that holds other tensors, by the same names, than it was made with: a model's
            buffers, which change between meta steps. None where it holds none such.
    """

    init: Callable[[Tensors, Episode], tuple[Tensors, Tensors]]
    inner_loss: Callable[[Tensors, Tensors, Tensors, Batch, int], tuple[Tensor, Aux]]
    optimizer: Callable[[Tensors], GradientTransformation]
    outer_loss: Callable[[Tensors, Tensors, Tensors, Episode, int], tuple[Tensor, Aux]]
    num_inner_steps: int
    batch: Callable[[Episode, int], Batch] = support_set
    outer_weights: Sequence[float | Tensor] | None = None
    must_return: Sequence[str] = ()
    holding: "Callable[[Tensors], Problem] | None" = None

    def __post_init__(self) -> None:
        check_num_steps(self.num_inner_steps)
        if self.outer_weights is not None and len(self.outer_weights) != self.num_inner_steps:
            raise UsageError(
                f"outer_weights has {len(self.outer_weights)} weights for {self.num_inner_steps} inner steps: "
                "give one a step (the loss after step 1, 2, …), or None to judge the last state alone."
            )


def check_num_steps(num_inner_steps: int) -> None:
    """Raises UsageError unless the number of inner steps is an integer of at least 0."""
    if isinstance(num_inner_steps, bool) or not isinstance(num_inner_steps, int) or num_inner_steps < 0:
        raise UsageError(f"num_inner_steps is {num_inner_steps!r}, but must be an integer of at least 0.")
