"""Gradients from values alone: for inner loops that are chaotic, or outer losses that have no derivative."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from metalearn import random, tree
from metalearn.captured import refuse_captured
from metalearn.errors import UsageError
from metalearn.inner import InnerState, objective_of, outer_value, problem_step, start
from metalearn.metagrad.base import (
    MetaGradient,
    Outcome,
    Strategy,
    constants,
    refuse_carry,
    refuse_complex,
    refuse_ended,
)
from metalearn.problem import Episode, Problem
from metalearn.types import Aux, Tensors

STANDARD_ERROR = "gradient_standard_error"
ESTIMATE = f"It is an estimate: compare its error with its own standard error, the metric {STANDARD_ERROR}."


@dataclass(frozen=True)
class EvolutionStrategies(Strategy):
    r"""The gradient of the objective $f$ smoothed by Gaussian noise, from pairs of opposite perturbations.

    $g = \frac{1}{2 N \sigma} \sum_i \epsilon_i (f(meta + \sigma \epsilon_i) - f(meta - \sigma \epsilon_i))$,
    $\epsilon_i \sim N(0, I)$. Unbiased for the smoothed objective, and for $f$ itself where it is quadratic. The norm
    of its standard error, from two pairs on, comes back as the metric `gradient_standard_error`. Each episode draws by
    its own key.

    Reference: Salimans, Ho, Chen, Sidor and Sutskever 2017, arXiv:1703.03864.

    Attributes:
        sigma: the size of the perturbations.
        num_pairs: how many pairs, N.
        chunk_size: so many pairs at once under vmap; 1 runs them in a plain loop, where a loss may read values.
        seed: of the perturbations.
    """

    inexact: ClassVar[str] = ESTIMATE

    sigma: float = 0.01
    num_pairs: int = 16
    chunk_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_pairs(self, self.sigma, self.num_pairs, self.chunk_size)

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """See `Strategy.value_and_grad`; an estimate, and without a carry."""

        def run(meta: Tensors, episode: Episode, carry: Any = None) -> Outcome:
            refuse_carry(self, carry)
            meta, episode = constants(meta, episode)
            refuse_complex(self, meta)
            value, aux = outer_value(problem, meta, episode)
            refuse_captured(value)

            def difference(noise: Tensor) -> Tensor:
                up, down = (outer_value(problem, moved(meta, noise, s), episode)[0] for s in (self.sigma, -self.sigma))
                return up - down

            noise = _noise(meta, episode, self.seed, 0, self.num_pairs)
            with torch.no_grad():  # the run at `meta` has shown what is captured
                differences = _over_pairs(difference, noise, self.chunk_size)
            grads, error = _weighted(noise, differences, self.sigma, meta)
            aux = aux._replace(metrics={**aux.metrics, **error})
            return Outcome(*tree.detach((value, grads, aux)), carry=None)

        return run


class Particles(NamedTuple):
    """Where the pairs of a persistent evolution strategy are.

    Attributes:
        center: the inner state without perturbations.
        up: those of the pairs' first halves, one more axis in front of each tensor.
        down: those of their second halves.
        noise: the sum of each pair's perturbations so far, `[pair, size of meta]`, in units of sigma.
        step: how many inner steps all of them have had.
    """

    center: InnerState
    up: InnerState
    down: InnerState
    noise: Tensor
    step: int


@dataclass(frozen=True)
class PersistentEvolutionStrategies(Strategy):
    r"""Evolution strategies over windows of a long inner loop, unbiased for the sum of the windows' losses.

    A meta step runs `num_steps` inner steps; the pairs keep their states from window to window (`Outcome.carry`), each
    with the sum $\xi_i$ of its perturbations: $g = \frac{1}{2 N \sigma} \sum_i \xi_i (L_i^+ - L_i^-)$.

    Reference: Vicol, Metz and Sohl-Dickstein 2021, arXiv:2112.13835.

    Attributes:
        num_steps: inner steps a window.
        sigma: the size of the perturbations.
        num_pairs: how many pairs, N.
        chunk_size: so many pairs at once under vmap; 1 runs them in a plain loop, where a loss may read values.
        seed: of the perturbations.
    """

    inexact: ClassVar[str] = ESTIMATE

    num_steps: int
    sigma: float = 0.01
    num_pairs: int = 16
    chunk_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_pairs(self, self.sigma, self.num_pairs, self.chunk_size)
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise UsageError(f"num_steps={self.num_steps!r}: a window has at least 1 inner step.")

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """See `Strategy.value_and_grad`; an estimate. Its carry are the `Particles`."""

        def run(meta: Tensors, episode: Episode, carry: Particles | None = None) -> Outcome:
            meta, episode = constants(meta, episode)
            refuse_complex(self, meta)
            first = 0 if carry is None else carry.step
            refuse_ended(problem, first)
            last = min(first + self.num_steps, problem.num_inner_steps)

            def window(meta: Tensors, state: InnerState | None) -> tuple[Tensor, Aux, InnerState]:
                return _window(problem, meta, episode, state, first, last)

            value, aux, center = window(meta, None if carry is None else carry.center)
            refuse_captured(value)
            fresh = _noise(meta, episode, self.seed, first, self.num_pairs)

            def pair(task: tuple[Tensor, Any]) -> tuple[Tensor, InnerState, InnerState]:
                noise, states = task
                (up, _, above), (down, _, below) = (
                    window(moved(meta, noise, sign * self.sigma), state)
                    for sign, state in zip((1, -1), states, strict=True)
                )
                return up - down, above, below

            states = (None, None) if carry is None else (carry.up, carry.down)
            with torch.no_grad():  # the run at `meta` has shown what is captured
                differences, above, below = _over_pairs(pair, (fresh, states), self.chunk_size)
            summed = fresh if carry is None else carry.noise + fresh
            grads, error = _weighted(summed, differences, self.sigma, meta)
            outcome = Outcome(value, grads, aux._replace(metrics={**aux.metrics, **error}), None)
            if last < problem.num_inner_steps:
                outcome = outcome._replace(carry=Particles(center, above, below, summed, last))
            return tree.detach(outcome)

        return run


def _window(
    problem: Problem, meta: Tensors, episode: Episode, state: InnerState | None, first: int, last: int
) -> tuple[Tensor, Aux, InnerState]:
    # The window before has judged a state that is given.
    states = [] if state is not None else [(first, start(problem, meta, episode))]
    state = states[0][1] if state is None else state
    for step in range(first, last):
        state = problem_step(problem, meta, episode, state, step)
        states.append((step + 1, state))
    value, aux = objective_of(problem, meta, episode, states)
    return value, aux, state


def moved(meta: Tensors, noise: Tensor, scale: float) -> Tensors:
    """`meta + scale * noise`, the noise one vector for all entries."""
    parts = tree.vector_as(noise, meta)
    return {name: value + scale * parts[name] for name, value in meta.items()}


def _noise(meta: Tensors, episode: Episode, seed: int, step: int, num_pairs: int) -> Tensor:
    key = getattr(episode, "key", None)
    if key is None:
        raise UsageError(
            "evolution strategies draw by the episode's key, but the episode has none: without one, every meta step "
            "would perturb along the same directions. Give Episodes(support, query, key=random.key(index))."
        )
    first = next(iter(meta.values()))
    key = random.fold_in(random.fold_in(random.fold_in(random.key(seed, device=first.device), key), step), 0x5E5)
    dtype = torch.promote_types(first.dtype, torch.float32)  # in fewer bits a draw of 1 - 2**-24 is 1: infinite noise
    return random.normal(key, (num_pairs, sum(value.numel() for value in meta.values())), dtype=dtype)


def _weighted(noise: Tensor, differences: Tensor, sigma: float, meta: Tensors) -> tuple[Tensors, Tensors]:
    """The mean over pairs of noise times difference / 2 sigma; and its standard error, which one pair does not show."""
    each = noise * (differences / (2 * sigma))[:, None]
    mean = each.mean(0)
    num_pairs = len(each)
    grads = tree.vector_as(mean, meta)
    if num_pairs == 1:
        return grads, {}
    variance = (each - mean).square().sum() / (num_pairs - 1)
    return grads, {STANDARD_ERROR: (variance / num_pairs).sqrt()}


def _over_pairs(function: Callable[[Any], Any], nest: Any, chunk_size: int | None) -> Any:
    """`function` of every pair: of `nest` without the leading axis of its tensors."""
    if chunk_size != 1:
        return tree.vmapped(function, nest, chunk_size=chunk_size)
    count = len(tree.tensors(nest)[0])
    return tree.joined([function(tree.entry(nest, index)) for index in range(count)], torch.stack)


def _check_pairs(strategy: Strategy, sigma: float, num_pairs: int, chunk_size: int | None) -> None:
    name = type(strategy).__name__
    if not sigma > 0:
        raise UsageError(f"{name}(sigma={sigma}): it must be above 0.")
    if num_pairs < 1:
        raise UsageError(f"{name}(num_pairs={num_pairs}): it must be at least 1.")
    if chunk_size is not None and chunk_size < 1:
        raise UsageError(f"{name}(chunk_size={chunk_size}): it must be at least 1, or None for all pairs at once.")
