"""`check_meta_gradient`: a meta-gradient against finite differences, for users' own models, losses and strategies."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn import random, tree
from metalearn.errors import UsageError
from metalearn.inner import outer_value
from metalearn.metagrad import Outcome, Strategy, Unrolled
from metalearn.problem import Episode, Problem
from metalearn.testing.replay import holding_constants
from metalearn.types import Tensors

_ENOUGH = 1e-3
"""Finite differences that agree to this part of the tolerance are not refined."""


@dataclass(frozen=True)
class GradientReport:
    """What `check_meta_gradient` found.

    Attributes:
        error: the largest difference between the strategy's directional derivative and the finite-difference one,
            relative to the gradient's norm.
        errors: one a direction.
        finite_difference_error: the largest disagreement of the finite differences among themselves, likewise relative.
        gradient_norm: the norm of the strategy's gradient.
        num_redrawn: directions thrown away because the objective has a kink (ReLU, max-pool) close to the point.
    """

    error: float
    errors: tuple[float, ...]
    finite_difference_error: float
    gradient_norm: float
    num_redrawn: int


def check_meta_gradient(
    problem: Problem,
    meta: Tensors,
    episode: Episode,
    *,
    strategy: Strategy | None = None,
    num_directions: int = 4,
    tolerance: float = 1e-6,
    step_sizes: Sequence[float] = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5),
    max_redrawn: int = 40,
    replay_constants: bool = False,
    seed: int = 0,
) -> GradientReport:
    r"""Certifies a strategy's meta-gradient against finite differences of the objective, in float64.

    For random directions $d$ it compares $\langle g, d \rangle$ with Richardson's extrapolation of the central
    differences $D(h) = (f(x + h d) - f(x - h d)) / 2h$, that is $(4 D(h/2) - D(h)) / 3$, at several step sizes $h$.
    A direction counts once two of the extrapolations agree; if none do, it crosses a kink, and is redrawn and
    counted. Of the gradient under test that decision uses the norm alone, as the unit of error.

    Args:
        problem: what to certify, for one task; `MAML(...).problem(functionalize(module.double()))` for a plain model.
        meta: meta-parameters, float64.
        episode: one task's data without the task axis, float64.
        strategy: by default `Unrolled()`.
        num_directions: how many random unit directions in the space of all meta-parameters.
        tolerance: largest error accepted, relative to the gradient's norm (or absolute, for a norm below 1e-6).
        step_sizes: the step sizes $h$, largest first.
        max_redrawn: how many kinks to bear before giving up.
        replay_constants: in the finite differences, keep what torch holds constant on purpose as it is at `meta`: what
            is computed in `torch.no_grad()` (spectral_norm's `u` and `v`, moving averages) and the running statistics
            that batch norm writes. A plain `.detach()` is not replayed: it may be the mistake that one looks for.
        seed: of the directions.

    Returns:
        The report, if the gradient is right.

    Raises:
        AssertionError: the gradient is wrong, or has other names or shapes than `meta`.
        UsageError: `meta` or the loss is not float64, there are kinks wherever one looks, or (with `replay_constants`)
            other functions are called without grad at other points.

    Example:
        >>> from metalearn import Episodes, algorithms, functionalize, losses
        >>> model = functionalize(torch.nn.Linear(1, 1).double())
        >>> maml = algorithms.MAML(loss=losses.mean_squared_error, inner_lr=0.1, num_inner_steps=3)
        >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
        >>> report = check_meta_gradient(maml.problem(model), maml.init(model), Episodes((x, 2 * x), (x, 3 * x)))
        >>> report.error < 1e-8
        True
    """
    meta = tree.detach(meta)
    _require_float64(meta)
    outcome = (strategy or Unrolled()).value_and_grad(problem)(meta, episode)
    if outcome.value.dtype != torch.float64:
        raise UsageError(
            f"the outer loss is {outcome.value.dtype}: build the model and the episode in float64 (module.double())."
        )
    _require_same_shapes(meta, outcome.grads)
    scale = max(tree.norm(outcome.grads).item(), 1e-6)

    def objective(point: Tensors) -> Tensor:
        return outer_value(problem, point, episode)[0]

    function = holding_constants(objective, meta) if replay_constants else objective
    differences = FiniteDifferences(function, meta, step_sizes, scale, enough=tolerance * _ENOUGH)
    errors: list[float] = []
    spreads: list[float] = []
    drawn = 0
    while len(errors) < num_directions:
        if drawn - len(errors) > max_redrawn:
            raise UsageError(
                f"finite differences disagree among themselves in {drawn - len(errors)} directions: the objective has "
                "kinks everywhere near this point, or is noisy. Use a smooth activation, or smaller step_sizes."
            )
        direction = unit_direction(meta, random.fold_in(random.key(seed), drawn))
        drawn += 1
        expected, spread = differences.along(direction)
        if spread > tolerance / 2:
            continue
        got = dot(outcome.grads, direction)
        errors.append(abs(got - expected) / scale)
        spreads.append(spread)
    report = GradientReport(max(errors), tuple(errors), max(spreads), scale, drawn - len(errors))
    if not report.error <= tolerance:
        raise AssertionError(
            f"the meta-gradient of {type(strategy or Unrolled()).__name__} is wrong: relative error {report.error:.1e} "
            f"against finite differences (tolerance {tolerance:.0e}, the differences agree to "
            f"{report.finite_difference_error:.0e}). Per direction: {', '.join(f'{error:.1e}' for error in errors)}."
            f"{_told(strategy or Unrolled(), outcome)}"
        )
    return report


@dataclass(frozen=True)
class FiniteDifferences:
    """Directional derivatives of a function of named tensors by Richardson's extrapolation.

    Attributes:
        function: of the tensors, a scalar.
        point: where.
        step_sizes: which are tried, largest first.
        scale: what differences are relative to.
        enough: smaller step sizes are left out where two in a row differ by no more than this.
    """

    function: Callable[[Tensors], Tensor]
    point: Tensors
    step_sizes: Sequence[float]
    scale: float
    enough: float = 0.0

    def along(self, direction: Tensors) -> tuple[float, float]:
        """The derivative, and by how much the two closest extrapolations in a row differ, relative to scale."""
        estimates: list[float] = []
        for h in self.step_sizes:
            estimates.append((4 * self._central(direction, h / 2) - self._central(direction, h)) / 3)
            if len(estimates) > 1 and closest(estimates[-2:])[1] <= self.enough * self.scale:
                break  # smaller steps would add nothing but rounding
        best, spread = closest(estimates)
        return best, spread / self.scale

    def _central(self, direction: Tensors, h: float) -> float:
        with torch.no_grad():
            up, down = (
                self.function({name: value + sign * h * direction[name] for name, value in self.point.items()}).item()
                for sign in (1, -1)
            )
        return (up - down) / (2 * h)


def closest(estimates: Sequence[float]) -> tuple[float, float]:
    """The second of the two estimates in a row that differ the least, and by how much; NaN differs from everything."""
    pairs = [(abs(a - b), b) for a, b in itertools.pairwise(estimates)]
    spread, best = min(pairs, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
    return best, spread


def assert_close(got: Any, expected: Any, *, tolerance: float = 1e-10) -> float:
    """The difference of two nests of tensors over the norm of the second; raises AssertionError above `tolerance`."""
    difference = [a.double() - b.double() for a, b in zip(tree.tensors(got), tree.tensors(expected), strict=True)]
    wide = [leaf.double() for leaf in tree.tensors(expected)]  # the square of a random key overflows as an integer
    error = (tree.norm(difference) / tree.norm(wide).clamp_min(1e-12)).item()
    if not error <= tolerance:
        raise AssertionError(f"relative error {error:.1e}, tolerance {tolerance:.0e}")
    return error


def _told(strategy: Strategy, outcome: Outcome) -> str:
    """What the strategy itself says about a gradient that is not the objective's."""
    remark = strategy.remark({name: float(value) for name, value in outcome.aux.metrics.items()})
    return "".join(f" {text}" for text in (strategy.inexact, remark) if text)


def unit_direction(meta: Tensors, key: Tensor) -> Tensors:
    """A random direction of length 1 in the space of all entries together."""
    draws = {
        name: random.normal(random.fold_in(key, index), value.shape, dtype=value.dtype)
        for index, (name, value) in enumerate(meta.items())
    }
    length = tree.norm(draws)
    return {name: value / length for name, value in draws.items()}


def dot(a: Tensors, b: Tensors) -> float:
    """The inner product over the names of `b`."""
    return sum((a[name] * b[name]).sum().item() for name in b)


def _require_float64(meta: Tensors) -> None:
    for name, value in meta.items():
        if value.dtype != torch.float64:
            raise UsageError(f"meta[{name!r}] is {value.dtype}: finite differences need float64 (module.double()).")


def _require_same_shapes(meta: Tensors, grads: Tensors) -> None:
    shapes, expected = ({name: tuple(value.shape) for name, value in named.items()} for named in (grads, meta))
    if shapes != expected:
        raise AssertionError(f"the gradient has other names or shapes than meta: got {shapes}, expected {expected}.")
