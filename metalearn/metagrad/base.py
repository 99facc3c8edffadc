"""The seam of the outer gradient: a strategy is an object, exchanged without touching the problem."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.problem import Episode, Problem
from metalearn.types import Aux, Tensors


class Outcome(NamedTuple):
    """What a strategy computes for one episode.

    Attributes:
        value: the objective, a scalar.
        grads: its gradient with respect to `meta`, same names and shapes.
        aux: the model's buffers after the last outer loss, and that loss's metrics.
        carry: what the strategy wants back with the next call (windows that go on across meta steps), or None.
    """

    value: Tensor
    grads: Tensors
    aux: Aux
    carry: Any


class MetaGradient(Protocol):
    """A problem's value and gradient as a function."""

    def __call__(self, meta: Tensors, episode: Episode, carry: Any = None) -> Outcome:
        """The outcome of one episode."""


class Unrolling(NamedTuple):
    """A strategy as a way to go through an inner loop and back, step by step.

    Attributes:
        problem: what is unrolled.
        every: each so many states are kept on the way there, and steps are computed again on the way back; None keeps
            what the way back needs of each step.
    """

    problem: Problem
    every: int | None


class StrategyWarning(UserWarning):
    """A gradient is not what it should be, by its own measure."""


class Strategy(ABC):
    """How the outer gradient flows through the inner loop.

    A strategy of one's own implements `value_and_grad` alone; `metalearn.testing.check_meta_gradient` certifies it.

    Attributes:
        inexact: why its gradient is not the objective's, on purpose; empty where it is. Told by what certifies it.
    """

    inexact: ClassVar[str] = ""

    @abstractmethod
    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """The function `(meta, episode, carry=None) -> Outcome` of a problem.

        Its results carry no history: the gradient is in `grads`. It may run inside `vmap` and is not to be
        differentiated itself.
        """

    def unrolling(self, problem: Problem) -> Unrolling | None:
        """The same gradient as a walk through the steps and back, whose pieces can be compiled; None if it is none."""
        return None

    def at(self, meta_step: int) -> "Strategy":
        """The strategy of one meta step, counted from 0, for those that change during training; by default itself."""
        return self

    def remark(self, metrics: Mapping[str, float]) -> str | None:
        """What is to be told about a gradient, by the metrics that came with it; None while all is well."""
        return None


def constants(meta: Tensors, episode: Episode) -> tuple[Tensors, Episode]:
    """`meta` and the episode cut from their history, for the start of a strategy.

    Raises:
        UsageError: an entry of `meta` is the result of a computation that is being differentiated, or has no
            derivatives; or there is none.
    """
    if not meta:
        raise UsageError("meta is empty: there is nothing to take a gradient of. Use metalearn.inner.outer_value.")
    for name, value in meta.items():
        if not (value.is_floating_point() or value.is_complex()):
            raise UsageError(
                f"meta[{name!r}] is {value.dtype}, which has no derivatives: make it floating-point, or let the "
                "problem's functions hold it as a constant."
            )
        if value.grad_fn is not None or torch._C._functorch.is_gradtrackingtensor(value):
            raise UsageError(
                f"meta[{name!r}] is the result of a computation that is being differentiated, but a strategy's results "
                "carry no history. Compute it inside Problem.init, or use metalearn.adapt, which is differentiable."
            )
    return tree.detach(meta), tree.detach(episode)


def refuse_complex(strategy: Strategy, meta: Tensors) -> None:
    """Raises UsageError for complex entries of `meta` where a strategy moves along real directions alone."""
    for name, value in meta.items():
        if value.is_complex():
            raise UsageError(
                f"{type(strategy).__name__} can not take the gradient of the complex meta[{name!r}]: hold it as "
                "torch.view_as_real(…) and make it complex in Problem.init, or take Unrolled or Stepwise."
            )


def refuse_carry(strategy: Strategy, carry: Any) -> None:
    """Raises UsageError for a carry that a strategy would ignore."""
    if carry is not None:
        raise UsageError(f"{type(strategy).__name__} starts every episode anew: pass carry=None.")


def refuse_ended(problem: Problem, step: int) -> None:
    """Raises UsageError for a carry of windows that has no inner step left to do."""
    if step >= problem.num_inner_steps > 0:
        raise UsageError(
            f"the carry has had {step} inner steps, and the episode has {problem.num_inner_steps}: it is at its end. "
            "Begin the next with carry=None."
        )


def refuse_weights(strategy: Strategy, problem: Problem, why: str) -> None:
    """Raises UsageError for a loss after every step where a strategy can judge the last state alone."""
    if problem.outer_weights is not None:
        raise UsageError(
            f"{type(strategy).__name__} can not differentiate a loss after every step (outer_weights): {why}. "
            "Set outer_weights=None, or take Unrolled or Stepwise."
        )
