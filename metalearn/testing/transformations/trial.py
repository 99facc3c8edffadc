"""The outer loss after an inner loop with a transformation, as a function of everything that goes in."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.inner import adapt
from metalearn.testing.transformations.subject import Data, Subject, loss_of, regression
from metalearn.types import Tensors

PARAMETERS, STATE, DATA = "initial parameters", "initial state", "data"
_WARM_STEPS = 2


@dataclass(frozen=True)
class Trial:
    """The outer loss after an inner loop, as a function of how far everything that goes in is moved.

    Attributes:
        subject: the transformation.
        num_steps: inner steps.
        state: what the loop goes on from; None starts a fresh one.
    """

    subject: Subject
    num_steps: int
    state: Any = None
    data: Data = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", regression(self.subject))

    def rows(self) -> dict[str, list[str]]:
        """The entries of `origin` by the row that they belong to."""
        if self.state is not None:
            return {STATE: list(self.origin())}
        rows = {f"hyper-parameter {name!r}": [f"hyper.{name}"] for name in self.subject.hypers}
        return {**rows, PARAMETERS: [f"params.{name}" for name in self.subject.params], DATA: ["data.x", "data.y"]}

    def origin(self) -> Tensors:
        """Zeros: where nothing is moved."""
        if self.state is not None:
            return {f"state.{i}": torch.zeros_like(leaf) for i, leaf in enumerate(self._floats())}
        moved = {
            **tree.prefixed(self.subject.hypers, "hyper."),
            **tree.prefixed(self.subject.params, "params."),
            "data.x": self.data[0][0],
            "data.y": self.data[0][1],
        }
        return {name: torch.zeros_like(value) for name, value in moved.items()}

    def __call__(self, moved: Tensors) -> Tensor:
        """The outer loss."""
        subject, (support, query), state = self.subject, self.data, self.state
        hypers, params = subject.hypers, subject.params
        if state is not None:
            factors = iter(moved.values())
            # A factor, because second moments have to stay positive.
            state = tree.map_tensors(lambda x: x * (1 + next(factors)) if x.is_floating_point() else x, state)
        else:
            hypers = {name: value + _reach(value) * moved[f"hyper.{name}"] for name, value in hypers.items()}
            params = {name: value + moved[f"params.{name}"] for name, value in params.items()}
            support = (support[0] + moved["data.x"], support[1] + moved["data.y"])
        adapted = adapt(
            loss_of, params, {}, support, optimizer=subject.optimizer(hypers), num_inner_steps=self.num_steps,
            opt_state=state,
        )  # fmt: skip
        return loss_of(adapted.params, {}, query)

    def _floats(self) -> list[Tensor]:
        return [leaf for leaf in tree.tensors(self.state) if leaf.is_floating_point()]


def _reach(value: Tensor) -> Tensor:
    """The unit in which a hyper-parameter is moved, so that finite differences stay in its range: 0.999 below 1."""
    size = value.abs()
    unit = torch.where((value > 0) & (value < 1), torch.minimum(value, 1 - value), size)
    return torch.where(unit == 0, 0.1 * torch.ones_like(unit), unit)


def trials(subject: Subject, num_steps: int) -> list[Trial]:
    """One from a fresh state, with respect to all but that, and one from a warm state with respect to it."""
    fresh = Trial(subject, num_steps)
    warm = adapt(loss_of, subject.params, {}, fresh.data[0], optimizer=subject.optimizer(), num_inner_steps=_WARM_STEPS)
    has_floats = any(leaf.is_floating_point() for leaf in tree.tensors(warm.opt_state))
    return [fresh, *([Trial(subject, num_steps, warm.opt_state)] if has_floats else [])]


def gradient(trial: Trial) -> Tensors:
    """By everything that is moved, in reverse mode by plain autograd."""
    point, value = _value(trial)
    return _grad(value, point)


def _value(trial: Trial) -> tuple[Tensors, Tensor]:
    point = {name: value.requires_grad_() for name, value in trial.origin().items()}
    return point, trial(point)


def _grad(value: Tensor, point: Tensors, *, create_graph: bool = False) -> Tensors:
    if not value.requires_grad:  # nothing was differentiable at all
        return {name: torch.zeros_like(each) for name, each in point.items()}
    grads = torch.autograd.grad(
        value, list(point.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(point, grads, strict=True))


def second_derivative(trial: Trial, direction: Tensors) -> Tensors:
    """The derivative of `gradient` along a direction, reverse over reverse."""
    point, value = _value(trial)
    grads = _grad(value, point, create_graph=True)
    return _grad(torch.stack([(grads[name] * each).sum() for name, each in direction.items()]).sum(), point)
