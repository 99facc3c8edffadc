"""Evolution strategies: unbiased within their own error bars, and what each pair is, by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import Aux, Episodes, Problem, UsageError, functionalize, losses, optim, random, tree
from metalearn.execution import Loop, Vmap
from metalearn.inner import outer_value
from metalearn.metagrad import (
    EvolutionStrategies,
    Outcome,
    PersistentEvolutionStrategies,
    Strategy,
    Truncated,
    Unrolled,
)
from metalearn.testing import assert_close
from tests import problems

D = torch.float64
WAYS = {"loop": Loop(), "vmap": Vmap(), "chunks of 2": Vmap(chunk_size=2)}


def _quadratic() -> tuple[Problem, dict[str, Tensor], Episodes]:
    """Ridge regression's objective in its start alone: quadratic."""
    problem, meta = problems.ridge_problem(num_inner_steps=3)
    given = problems.given(problem, {name: meta[name] for name in ("penalty", "lr")})
    return given, {"init": meta["init"]}, problems.one(problems.values())


def _network() -> tuple[Problem, dict[str, Tensor], Episodes]:
    torch.manual_seed(0)
    model = functionalize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double())
    problem, meta = problems.problem_of(
        model, "sgd, momentum learned", num_inner_steps=2, loss=losses.mean_squared_error
    )
    names = [name for name in meta if name.startswith("init.") or name in ("lr", "momentum")]
    return problem, {name: meta[name] for name in names}, problems.one(problems.values())


def _error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return tree.norm([got[name] - expected[name] for name in expected]).item()


@pytest.mark.parametrize(
    ("make", "sigma"), [(_quadratic, 1.0), (_quadratic, 1e-2), (_network, 1e-3)], ids=["wide", "narrow", "network"]
)
def test_the_expectation_is_the_gradient_within_its_own_standard_error(make, sigma: float) -> None:
    problem, meta, episode = make()
    exact = Unrolled().value_and_grad(problem)(meta, episode)
    ratios = []
    for seed in range(12):
        strategy = EvolutionStrategies(sigma=sigma, num_pairs=200, seed=seed)
        got = strategy.value_and_grad(problem)(meta, episode)
        assert_close(got.value, exact.value, tolerance=1e-15)
        ratios.append(_error(got.grads, exact.grads) / got.aux.metrics["gradient_standard_error"].item())
    # The squared ratio has expectation 1; over 12 seeds its mean is in here but for one time in many thousands.
    assert 0.2 < sum(ratio**2 for ratio in ratios) / 12 < 3
    assert max(ratios) < 4


def test_the_standard_error_falls_with_the_root_of_the_number_of_pairs() -> None:
    problem, meta, episode = _quadratic()
    few, many = (
        EvolutionStrategies(num_pairs=number)
        .value_and_grad(problem)(meta, episode)
        .aux.metrics["gradient_standard_error"]
        for number in (100, 6400)
    )
    assert 6 < few / many < 10.7  # 8 but for chance


def test_one_pair_by_hand_has_no_standard_error() -> None:
    problem, meta, episode = _quadratic()
    got = EvolutionStrategies(sigma=0.5, num_pairs=1).value_and_grad(problem)(meta, episode)
    assert "gradient_standard_error" not in got.aux.metrics
    # The estimate is the noise times the slope along it.
    noise = got.grads["init"] / got.grads["init"].norm()
    up, down = (outer_value(problem, {"init": meta["init"] + sign * 0.5 * noise}, episode)[0] for sign in (1, -1))
    slope = (Unrolled().value_and_grad(problem)(meta, episode).grads["init"] * noise).sum()
    assert_close(up - down, slope, tolerance=1e-12)  # on a quadratic, central differences are exact
    assert slope > 0
    length = (got.grads["init"].norm() / slope).sqrt()  # of the noise: three numbers of N(0, 1)
    assert 0.1 < length < 5


@pytest.mark.parametrize("strategy", [EvolutionStrategies(num_pairs=5), PersistentEvolutionStrategies(1, num_pairs=5)])
def test_pairs_in_a_loop_and_in_chunks_are_those_at_once(strategy: Strategy) -> None:
    problem, meta, episode = _network()
    at_once = strategy.value_and_grad(problem)
    first = at_once(meta, episode)
    for size in (1, 2, 5, 9):
        run = replace(strategy, chunk_size=size).value_and_grad(problem)
        got = run(meta, episode)
        _same(got, first)
        if first.carry is not None:
            expected = at_once(meta, episode, first.carry)
            _same(run(meta, episode, got.carry), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("strategy", [EvolutionStrategies(num_pairs=6), PersistentEvolutionStrategies(1, num_pairs=6)])
def test_every_way_of_running_tasks_gives_the_same(strategy: Strategy, way: str) -> None:
    problem, meta, _ = _network()
    run = WAYS[way].value_and_grad(strategy, problem)
    got = run(meta, problems.values())
    alone = [strategy.value_and_grad(problem)(meta, problems.one(problems.values(), task)) for task in range(3)]
    assert_close(got.grads, {name: sum(each.grads[name] for each in alone) / 3 for name in meta}, tolerance=1e-9)
    errors = torch.stack([each.aux.metrics["gradient_standard_error"] for each in alone])
    assert_close(got.aux.metrics["gradient_standard_error"], errors, tolerance=1e-9)
    if alone[0].carry is not None:
        again = run(meta, problems.values(), got.carry)
        later = [
            strategy.value_and_grad(problem)(meta, problems.one(problems.values(), task), alone[task].carry)
            for task in range(3)
        ]
        assert again.carry is None
        assert_close(again.grads, {name: sum(each.grads[name] for each in later) / 3 for name in meta}, tolerance=1e-9)


def test_draws_are_of_the_seed_and_of_the_episode() -> None:
    problem, meta, episode = _quadratic()
    run = EvolutionStrategies(num_pairs=3).value_and_grad(problem)
    first = run(meta, episode).grads["init"]
    assert torch.equal(run(meta, episode).grads["init"], first)
    assert _relative(run(meta, episode._replace(key=random.key(99))).grads["init"], first) > 0.1
    assert (
        _relative(EvolutionStrategies(num_pairs=3, seed=1).value_and_grad(problem)(meta, episode).grads["init"], first)
        > 0.1
    )


def _relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def _same(got: Outcome, expected: Outcome) -> None:
    torch.testing.assert_close(tuple(got), tuple(expected), rtol=1e-8, atol=1e-9)


def test_an_outer_loss_that_has_no_derivative() -> None:
    # The share of queries on the wrong side is a step function of the start, whose smoothed slope is a normal density.
    problem = Problem(
        init=lambda meta, episode: ({"w": meta["w"]}, {}),
        inner_loss=lambda meta, params, buffers, batch, step: (0 * params["w"].sum(), Aux(buffers, {})),
        optimizer=lambda meta: optim.sgd(1.0),
        outer_loss=lambda meta, params, buffers, episode, step: ((params["w"] > 0.5).to(D), Aux(buffers, {})),
        num_inner_steps=1,
    )
    meta, episode = {"w": torch.tensor(0.3, dtype=D)}, problems.one(problems.values())
    assert Unrolled().value_and_grad(problem)(meta, episode).grads["w"] == 0
    got = EvolutionStrategies(sigma=0.2, num_pairs=4000).value_and_grad(problem)(meta, episode)
    density = torch.distributions.Normal(0.0, 0.2).log_prob(torch.tensor(0.2, dtype=D)).exp()
    assert abs(got.grads["w"] - density) < 4 * got.aux.metrics["gradient_standard_error"]
    assert got.aux.metrics["gradient_standard_error"] < 0.1 * density


def test_a_loss_that_reads_values_in_a_plain_loop() -> None:
    problem, meta, episode = _quadratic()

    def outer_loss(meta: Any, params: Any, buffers: Any, episode: Any, step: int) -> tuple[Tensor, Aux]:
        loss, aux = problem.outer_loss(meta, params, buffers, episode, step)
        return torch.tensor(float(loss), dtype=D), aux

    reading = replace(problem, outer_loss=outer_loss)
    got = EvolutionStrategies(num_pairs=4, chunk_size=1).value_and_grad(reading)(meta, episode)
    expected = EvolutionStrategies(num_pairs=4).value_and_grad(problem)(meta, episode)
    assert_close(got.grads, expected.grads, tolerance=1e-9)


NUM_STEPS, WINDOW = 6, 2
WEIGHTS = (0.0, 1.0) * (NUM_STEPS // WINDOW)
"""The sum of the losses at the windows' ends."""


def _windowed() -> tuple[Problem, dict[str, Tensor], Episodes]:
    """A rate and a penalty over a training run with momentum, which truncation gets wrong."""
    problem, meta = problems.ridge_problem(NUM_STEPS)
    problem = replace(problem, optimizer=lambda meta: optim.sgd(0.01 * meta["rate"], momentum=0.5))
    given = problems.given(problem, {"init": meta["init"]})
    return given, {"penalty": meta["penalty"], "rate": torch.tensor(2.0, dtype=D)}, problems.one(problems.values())


def _over_windows(
    strategy: Strategy, problem: Problem, meta: dict[str, Tensor], episode: Episodes
) -> dict[str, Tensor]:
    """The sum of the windows' gradients, the meta-parameters held fixed meanwhile."""
    run, carry, total = strategy.value_and_grad(problem), None, {name: torch.zeros(()) for name in meta}
    for window in range(NUM_STEPS // WINDOW):
        outcome = run(meta, episode, carry)
        carry = outcome.carry
        assert (carry is None) == (window == NUM_STEPS // WINDOW - 1)
        total = {name: total[name] + outcome.grads[name] for name in meta}
    return total


def test_persistent_windows_are_unbiased_for_the_sum_of_their_losses_and_truncated_ones_are_not() -> None:
    problem, meta, episode = _windowed()
    exact = Unrolled().value_and_grad(replace(problem, outer_weights=WEIGHTS))(meta, episode).grads
    seeds = [
        tree.to_vector(
            _over_windows(
                PersistentEvolutionStrategies(WINDOW, sigma=1e-3, num_pairs=1000, seed=seed), problem, meta, episode
            )
        )
        for seed in range(16)
    ]
    each = torch.stack(seeds)
    mean, standard_error = each.mean(0), each.std(0) / len(each) ** 0.5
    expected = tree.to_vector(exact)
    assert ((mean - expected).abs() < 4 * standard_error).all()
    assert (standard_error < 0.1 * expected.abs()).all()
    truncated = tree.to_vector(_over_windows(Truncated(WINDOW, windows=True), problem, meta, episode))
    assert ((truncated - expected).abs() > 8 * standard_error).all()


def test_windows_with_weights_judge_every_step_once() -> None:
    problem, meta, episode = _windowed()
    weighted = replace(problem, outer_weights=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    run, carry, values = PersistentEvolutionStrategies(4).value_and_grad(weighted), None, []
    for _ in range(2):
        outcome = run(meta, episode, carry)
        carry = outcome.carry
        values.append(outcome.value)
    assert_close(sum(values), outer_value(weighted, meta, episode)[0], tolerance=1e-14)


def test_one_window_of_all_steps_is_a_plain_evolution_strategy() -> None:
    problem, meta, episode = _windowed()
    got = PersistentEvolutionStrategies(NUM_STEPS, num_pairs=4).value_and_grad(problem)(meta, episode)
    plain = EvolutionStrategies(num_pairs=4).value_and_grad(problem)(meta, episode)
    _same(got, plain)


def test_particles_carry_the_sum_of_their_perturbations() -> None:
    problem, meta, episode = _windowed()
    run = PersistentEvolutionStrategies(WINDOW, num_pairs=3).value_and_grad(problem)
    first = run(meta, episode)
    second = run(meta, episode, first.carry)
    assert (first.carry.step, second.carry.step) == (2, 4)
    assert first.carry.noise.shape == (3, 2)
    fresh = second.carry.noise - first.carry.noise
    assert _relative(fresh, first.carry.noise) > 0.1, "each window perturbs anew"
    # Every pair's halves go on from where they were, each along its own two perturbations.
    moved = [tree.from_vector(0.01 * each[0], meta) for each in (first.carry.noise, fresh)]
    x, y = episode.support
    w, trace = problem.init(meta, episode)[0]["w"], 0.0
    for step in range(4):
        point = {name: meta[name] + moved[step // 2][name] for name in meta}
        trace = 0.5 * trace + x.T @ (x @ w - y) + point["penalty"] * w
        w = w - 0.01 * point["rate"] * trace
    assert_close(second.carry.up.params["w"][0], w, tolerance=1e-13)


def test_an_episode_without_a_key_is_refused() -> None:
    problem, meta, episode = _quadratic()
    for strategy in (EvolutionStrategies(), PersistentEvolutionStrategies(1)):
        with pytest.raises(UsageError, match="draw by the episode's key"):
            strategy.value_and_grad(problem)(meta, episode._replace(key=None))


@pytest.mark.parametrize(
    "wrong", [{"sigma": 0.0}, {"sigma": float("nan")}, {"num_pairs": 0}, {"chunk_size": 0}], ids=str
)
def test_settings_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    for build in (EvolutionStrategies, lambda **settings: PersistentEvolutionStrategies(1, **settings)):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            build(**wrong)
    with pytest.raises(UsageError, match="at least 1 inner step"):
        PersistentEvolutionStrategies(0)


def test_bfloat16_parameters_are_moved_by_finite_noise() -> None:
    problem, meta, episode = _quadratic()
    low = tree.cast(meta, torch.bfloat16), tree.cast(episode, torch.bfloat16)
    got = EvolutionStrategies(sigma=0.5, num_pairs=300).value_and_grad(problem)(*low).grads["init"]
    expected = EvolutionStrategies(sigma=0.5, num_pairs=300).value_and_grad(problem)(meta, episode).grads["init"]
    assert got.dtype == torch.bfloat16
    assert _relative(got.double(), expected) < 0.5
