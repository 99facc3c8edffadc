"""Two sets of runs on the same episodes: the difference of their means, with an interval that says what it is about.

Every run s of a side was measured on every episode i, so a value is `side + seed_s + episode_i + rest_si`. With the
means over a side's S runs, a_i and b_i, the difference D is the mean of d_i = a_i - b_i, and its variance

    V = var(d_i) / n                                   from drawing n episodes: what both sides share is not in it
      + var_s(A_s) / S_A + var_s(B_s) / S_B            from training with other seeds; A_s, B_s are the runs' means

The second line is there with two runs or more on both sides; from one run nobody can tell how far another seed would
have been. The runs of a side share the episodes too, so that the variance of their means is of the training alone.
(The part that is particular to a run *and* an episode is counted in both lines: the interval errs on the wide side.)
The interval is t * sqrt(V), Student's t with the degrees of freedom of Satterthwaite's rule, V² / sum(part² / its
degrees).

With `pair_seeds` the second line is var_s(A_s - B_s) / S, of the differences between runs of one seed: narrower where a
seed (the initial weights, the order of the tasks) makes both sides better or worse. The degrees of freedom are then
S - 1, as Satterthwaite's rule promises too much there: with two pairs its interval held the truth in 88% of simulated
comparisons. Whether seeds are pairs is for the design to say, not for the result.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from metalearn.errors import UsageError
from metalearn.training.results import finite_or_none
from metalearn.training.student import quantile, two_sided_p

BETTER = {"accuracy": 1, "loss": -1}
"""Metrics of which more (1) or less (-1) is better; of others we do not know."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, and how far it may be off.

    Attributes:
        mean: the value; None where one that went into it is not finite.
        ci95: the half-width of the 95% interval; None where there is none to be had.
        standard_error: sqrt(V).
        degrees_of_freedom: of V; None where V is 0.
    """

    mean: float | None
    ci95: float | None
    standard_error: float | None
    degrees_of_freedom: float | None


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """A minus B.

    Attributes:
        p_value: of a difference at least as large if there were none; two-sided.
        better: "A", "B", or None where 0 is in the interval or where nobody knows which direction is the better one.
        distinguishable: whether 0 lies outside the interval.
        includes: what the interval is about: `("episodes",)` for these trained models, `("episodes", "seeds")`, or
            `("episodes", "pairs of seeds")`.
        unpaired_ci95: what the half-width would be, with the same factor t, had each side had episodes of its own.
        correlation: of a_i and b_i over episodes; None where one of them is constant.
        share_a_higher: of the episodes.
        share_equal: of the episodes.
        num_episodes: n.
    """

    p_value: float | None
    better: str | None
    distinguishable: bool
    includes: tuple[str, ...]
    unpaired_ci95: float | None
    correlation: float | None
    share_a_higher: float
    share_equal: float
    num_episodes: int


def difference(a: Tensor, b: Tensor, *, metric: str, pair_seeds: bool = False) -> Difference:
    """The difference A - B of a metric.

    Args:
        a: of every run of A on every episode, `[run, episode]`.
        b: of B, on the same episodes in the same order, `[run, episode]`.
        metric: its name, which says whether more is better.
        pair_seeds: whether the runs are pairs, in their order, that were trained with the same seed.

    Raises:
        UsageError: pairs of runs are wanted where the sides have other numbers of them.

    Example:
        >>> import torch
        >>> found = difference(torch.tensor([[0.5, 0.7, 0.9]]), torch.tensor([[0.4, 0.6, 0.8]]), metric="accuracy")
        >>> round(found.mean, 6), found.better, found.includes
        (0.1, 'A', ('episodes',))
    """
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    of_a, of_b = a.mean(0), b.mean(0)
    between = of_a - of_b
    seeds = _from_seeds(a.mean(1), b.mean(1), pair_seeds=pair_seeds)
    degrees = seeds[0].degrees_of_freedom if pair_seeds and seeds else None
    paired = _estimate(between.mean().item(), [_part(between), *seeds], degrees=degrees)
    unpaired = _estimate(0.0, [_part(of_a), _part(of_b), *seeds])
    distinguishable = paired.mean is not None and paired.ci95 is not None and abs(paired.mean) > paired.ci95
    better = None
    if distinguishable and metric in BETTER:
        better = "A" if BETTER[metric] * (paired.mean or 0.0) > 0 else "B"
    return Difference(
        **asdict(paired),
        p_value=_p_value(paired),
        better=better,
        distinguishable=distinguishable,
        includes=("episodes", *(("pairs of seeds" if pair_seeds else "seeds",) if seeds else ())),
        unpaired_ci95=_with_the_factor_of(paired, unpaired),
        correlation=_correlation(of_a, of_b),
        share_a_higher=(between > 0).double().mean().item(),
        share_equal=(between == 0).double().mean().item(),
        num_episodes=len(between),
    )


def over_runs(values: Tensor) -> dict[str, Any]:
    """The mean over runs that differ in their seed, with the deviation among them, as plain data.

    Args:
        values: of two runs or more on the same episodes, `[run, episode]`.

    Returns:
        `mean`, `ci95` (over episodes and seeds, as for a difference), `std_over_seeds` (with n - 1), `num_runs`,
        `num_episodes`.
    """
    exact = values.detach().double().cpu()
    found = _estimate(exact.mean().item(), [_part(exact.mean(0)), _part(exact.mean(1))])
    return {
        "mean": found.mean,
        "ci95": found.ci95,
        "std_over_seeds": finite_or_none(exact.mean(1).std(correction=1).item()),
        "num_runs": len(exact),
        "num_episodes": exact.shape[1],
    }


@dataclass(frozen=True)
class _Part:
    """A part of a variance, and the degrees of freedom that it was estimated with."""

    variance: float
    degrees_of_freedom: int


def _from_seeds(a: Tensor, b: Tensor, *, pair_seeds: bool) -> list[_Part]:
    """Of the means of the runs, `[run]` each; none where a side has but one."""
    if pair_seeds and len(a) != len(b):
        raise UsageError(f"A has {len(a)} runs and B {len(b)}: pairs of seeds need as many of each.")
    if min(len(a), len(b)) < 2:
        return []
    return [_part(a - b)] if pair_seeds else [_part(a), _part(b)]


def _part(values: Tensor) -> _Part:
    """Of the mean of independent values."""
    count = len(values)
    return _Part(values.var(correction=1).item() / count if count > 1 else math.nan, count - 1)


def _estimate(mean: float, parts: Sequence[_Part], *, degrees: float | None = None) -> Estimate:
    """An estimate whose variance is the sum of these parts; `degrees` in the place of those by Satterthwaite's rule."""
    variance = sum(part.variance for part in parts)
    if not (math.isfinite(mean) and math.isfinite(variance)):
        return Estimate(mean=finite_or_none(mean), ci95=None, standard_error=None, degrees_of_freedom=None)
    if variance == 0:
        return Estimate(mean=mean, ci95=0.0, standard_error=0.0, degrees_of_freedom=None)
    # Of shares, which can not underflow as squares of small variances do.
    degrees = degrees or 1 / sum((part.variance / variance) ** 2 / part.degrees_of_freedom for part in parts)
    error = math.sqrt(variance)
    return Estimate(mean=mean, ci95=quantile(degrees) * error, standard_error=error, degrees_of_freedom=degrees)


def _with_the_factor_of(paired: Estimate, unpaired: Estimate) -> float | None:
    # Else an interval that has fewer degrees of freedom would look as if pairing had lost something.
    if paired.degrees_of_freedom is None or unpaired.standard_error is None:
        return unpaired.ci95
    return quantile(paired.degrees_of_freedom) * unpaired.standard_error


def _p_value(found: Estimate) -> float | None:
    if found.mean is None or found.standard_error is None:
        return None
    if found.degrees_of_freedom is None:  # every episode has the same difference
        return 1.0 if found.mean == 0 else 0.0
    return two_sided_p(found.mean / found.standard_error, found.degrees_of_freedom)


def _correlation(a: Tensor, b: Tensor) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    scale = (a.square().sum() * b.square().sum()).sqrt().item()
    return finite_or_none((a * b).sum().item() / scale) if scale > 0 else None
