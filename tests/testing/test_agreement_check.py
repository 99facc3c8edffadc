"""`check_agreement` finds what differs, and says why where the strategy knows."""

from dataclasses import replace

import pytest
import torch

from metalearn import UsageError, metagrad, tree
from metalearn.testing import check_agreement, check_meta_gradient
from tests import problems


def _ridge():
    problem, meta = problems.ridge_problem(4)
    return problem, meta, problems.one(problems.values())


def test_exact_strategies_agree() -> None:
    strategies = {
        "stepwise": metagrad.Stepwise("sqrt"),
        "forward": metagrad.ForwardMode(),
        "truncated": metagrad.Truncated(4),
    }
    errors = check_agreement(*_ridge(), strategies)
    assert errors.keys() == strategies.keys()
    assert all(0 <= error < 1e-13 for error in errors.values())


def test_all_that_differ_are_named_with_what_they_say_of_themselves() -> None:
    strategies = {"all": metagrad.Truncated(4), "some": metagrad.Truncated(2), "drawn": metagrad.EvolutionStrategies()}
    with pytest.raises(AssertionError, match=r"some by \d.*biased on purpose.*; drawn by .* It is an estimate") as told:
        check_agreement(*_ridge(), strategies)
    assert "all by" not in str(told.value)


def test_a_value_alone_that_differs_is_found() -> None:
    class Louder(metagrad.Unrolled):
        def value_and_grad(self, problem):
            run = super().value_and_grad(problem)

            def louder(meta, episode, carry=None):
                outcome = run(meta, episode, carry)
                return outcome._replace(value=outcome.value * 1.001)

            return louder

    with pytest.raises(AssertionError, match=r"louder by 1\.0e-03"):
        check_agreement(*_ridge(), {"louder": Louder()})


def test_lower_precision_by_its_tolerance_and_a_reference_of_ones_own() -> None:
    problem, meta, episode = _ridge()
    low = tree.cast(meta, torch.float32), tree.cast(episode, torch.float32)
    check_agreement(problem, *low, {"forward": metagrad.Stepwise(mode="forward")}, tolerance=1e-5)
    check_agreement(problem, meta, episode, {"one": metagrad.Truncated(2)}, reference=metagrad.Truncated(2))
    with pytest.raises(AssertionError, match=r"disagree with Truncated"):
        check_agreement(problem, meta, episode, {"one": metagrad.Unrolled()}, reference=metagrad.Truncated(2))


def test_nothing_to_compare_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="needs strategies to compare"):
        check_agreement(*_ridge(), {})


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (metagrad.FirstOrder(), "biased on purpose: it takes the inner gradients for constants"),
        (metagrad.Truncated(1), "biased on purpose where it cuts steps off"),
        (metagrad.Reptile(), "not a gradient"),
        (metagrad.EvolutionStrategies(), "estimate: compare its error with its own standard error"),
        (metagrad.PersistentEvolutionStrategies(4), "estimate: compare its error with its own standard error"),
        (metagrad.Implicit(tolerance=10.0), "the minimum that the inner loop converges to"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_check_by_finite_differences_says_what_is_inexact_on_purpose(strategy, told: str) -> None:
    with pytest.raises(AssertionError, match=f"{type(strategy).__name__} is wrong.*{told}"):
        check_meta_gradient(*_ridge(), strategy=strategy, num_directions=1)


def test_what_implicit_says_of_its_residual_comes_with_the_check() -> None:
    problem, meta, episode = _ridge()
    strategy = metagrad.Implicit(tolerance=1e-2)
    with (
        pytest.warns(metagrad.StrategyWarning, match="has not converged"),
        pytest.raises(AssertionError, match=r"Implicit is wrong.*has not converged"),
    ):
        check_meta_gradient(replace(problem), meta, episode, strategy=strategy, num_directions=1)
