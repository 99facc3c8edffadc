"""Strategies that are not exact, by hand: what is cut, what windows carry on, Reptile's way; and a user's own."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from metalearn import Aux, Problem, UsageError, tree
from metalearn.execution import Loop, Vmap
from metalearn.inner import outer_value
from metalearn.metagrad import FirstOrder, MetaGradient, Outcome, Reptile, Strategy, Truncated, Unrolled
from metalearn.testing import assert_close, check_meta_gradient
from tests import problems

D = torch.float64
WAYS = {"loop": Loop(), "vmap": Vmap(), "chunks of 2": Vmap(chunk_size=2)}


def _ridge(num_inner_steps: int, **changes: Any) -> tuple[Problem, dict[str, Tensor], Any]:
    problem, meta = problems.ridge_problem(num_inner_steps)
    return replace(problem, **changes), meta, problems.one(problems.values())


def _by_hand(meta: dict[str, Tensor], episode: Any, num_steps: int, *, cut: int, judged: tuple[int, ...]) -> Tensor:
    """The sum of ridge regression's outer losses after some steps; the first `cut` steps' updates are constants."""
    (x, y), (xq, yq) = episode.support, episode.query
    w, total = meta["init"], torch.zeros((), dtype=D)
    for step in range(1, num_steps + 1):
        update = meta["lr"] * (x.T @ (x @ w - y) + meta["penalty"] * w)
        w = w - (update.detach() if step <= cut else update)
        if step == cut:  # the start itself moves the cut state one to one
            w = w.detach() + meta["init"] - meta["init"].detach()
        if step in judged:
            total = total + 0.5 * (xq @ w - yq).square().sum()
    return total


@pytest.mark.parametrize("num_steps", [1, 2, 4, 5, 9])
def test_truncated_is_the_gradient_by_hand(num_steps: int) -> None:
    problem, meta, episode = _ridge(5)
    got = Truncated(num_steps).value_and_grad(problem)(meta, episode)
    cut = max(0, 5 - num_steps)
    expected = grad(lambda meta: _by_hand(meta, episode, 5, cut=cut, judged=(5,)))(meta)
    assert_close(got.grads, expected, tolerance=1e-13)
    exact = Unrolled().value_and_grad(problem)(meta, episode)
    assert_close(got.value, exact.value, tolerance=1e-15)
    bias = (tree.norm([got.grads[name] - exact.grads[name] for name in meta]) / tree.norm(exact.grads)).item()
    assert bias > 1e-3 if cut else bias == 0.0


def test_the_bias_of_truncation_falls_with_the_number_of_steps() -> None:
    # Each step shrinks what went before it by at least 1 - lr (smallest curvature + penalty), 0.9 here.
    problem, meta, episode = _ridge(40)
    exact = Unrolled().value_and_grad(problem)(meta, episode).grads["penalty"]
    biases = [
        abs(Truncated(num_steps).value_and_grad(problem)(meta, episode).grads["penalty"] - exact) / abs(exact)
        for num_steps in (5, 10, 20)
    ]
    assert 1e-2 < biases[0] < 1
    assert biases[1] < 0.9**5 * biases[0]
    assert biases[2] < 0.9**10 * biases[1]


def test_truncation_of_a_loss_after_every_step() -> None:
    weights = (0.1, 0.2, 0.3, 0.4)
    problem, meta, episode = _ridge(4, outer_weights=weights)
    got = Truncated(2).value_and_grad(problem)(meta, episode)

    def by_hand(meta: dict[str, Tensor]) -> Tensor:
        # After each of the steps that are cut, the state is a constant that moves with the start.
        before = [_by_hand(meta, episode, step, cut=step, judged=(step,)) for step in (1, 2)]
        after = [_by_hand(meta, episode, step, cut=2, judged=(step,)) for step in (3, 4)]
        return sum(weight * loss for weight, loss in zip(weights, before + after, strict=True))

    assert_close(got.value, Unrolled().value_and_grad(problem)(meta, episode).value, tolerance=1e-14)
    assert_close(got.grads, grad(by_hand)(meta), tolerance=1e-13)


def test_truncated_says_that_it_is_not_exact() -> None:
    problem, meta, episode = _ridge(4)
    check_meta_gradient(problem, meta, episode, strategy=Truncated(4))
    with pytest.raises(AssertionError, match="Truncated is wrong: relative error"):
        check_meta_gradient(problem, meta, episode, strategy=Truncated(3))


def test_windows_go_on_where_the_last_one_ended() -> None:
    problem, meta, episode = _ridge(5)
    run = Truncated(2, windows=True).value_and_grad(problem)
    first = run(meta, episode)
    second = run(meta, episode, first.carry)
    third = run(meta, episode, second.carry)
    assert [first.carry.step, second.carry.step, third.carry] == [2, 4, None]
    for got, step, cut in ((first, 2, 0), (second, 4, 2), (third, 5, 4)):

        def by_hand(meta: dict[str, Tensor], step: int = step, cut: int = cut) -> Tensor:
            return _by_hand(meta, episode, step, cut=cut, judged=(step,))

        assert_close(got.value, by_hand(meta), tolerance=1e-14)
        assert_close(got.grads, grad(by_hand)(meta), tolerance=1e-13)
    assert not any(leaf.requires_grad for leaf in tree.tensors(second.carry))


def test_a_window_goes_on_with_the_meta_parameters_of_its_own_meta_step() -> None:
    problem, meta, episode = _ridge(4)
    run = Truncated(2, windows=True).value_and_grad(problem)
    carry = run(meta, episode).carry
    moved = {**meta, "lr": meta["lr"] * 2}
    x, y = episode.support
    w = carry.state.params["w"]
    for _ in range(2):
        w = w - moved["lr"] * (x.T @ (x @ w - y) + moved["penalty"] * w)
    xq, yq = episode.query
    assert_close(run(moved, episode, carry).value, 0.5 * (xq @ w - yq).square().sum(), tolerance=1e-14)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_windows_with_weights_judge_every_step_once(num_steps: int) -> None:
    problem, meta, episode = _ridge(4, outer_weights=(0.1, 0.2, 0.3, 0.4))
    run, carry, values = Truncated(num_steps, windows=True).value_and_grad(problem), None, []
    while not values or carry is not None:
        outcome = run(meta, episode, carry)
        values.append(outcome.value)
        carry = outcome.carry
    assert len(values) == -(-4 // num_steps)
    assert_close(sum(values), outer_value(problem, meta, episode)[0], tolerance=1e-14)


@pytest.mark.parametrize("way", WAYS)
def test_windows_in_every_way_of_running_tasks(way: str) -> None:
    model = problems.model_of("batch norm, running statistics")
    problem, meta = problems.problem_of(model, "adam, everything learned", num_inner_steps=3)
    run, alone = (each.value_and_grad(Truncated(2, windows=True), problem) for each in (WAYS[way], Loop()))
    got, expected = run(meta, problems.images()), alone(meta, problems.images())
    for _ in range(2):
        assert_close(got.grads, expected.grads, tolerance=1e-10)
        torch.testing.assert_close((got.value, got.aux, got.carry), (expected.value, expected.aux, expected.carry))
        if got.carry is not None:
            assert got.carry.step == 2
            got, expected = run(meta, problems.images(), got.carry), alone(meta, problems.images(), expected.carry)
    assert got.carry is None


def test_mistakes_with_windows_are_told() -> None:
    problem, meta, episode = _ridge(4)
    carry = Truncated(3, windows=True).value_and_grad(problem)(meta, episode).carry
    shorter = replace(problem, num_inner_steps=3)
    with pytest.raises(UsageError, match="had 3 inner steps, and the episode has 3"):
        Truncated(3, windows=True).value_and_grad(shorter)(meta, episode, carry)
    with pytest.raises(UsageError, match="starts every episode anew"):
        Truncated(3).value_and_grad(problem)(meta, episode, carry)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(UsageError, match="at least 1"):
            Truncated(wrong)


def test_first_order_turns_exact_at_its_meta_step() -> None:
    assert FirstOrder(until=3).at(2) == FirstOrder(until=3)
    assert FirstOrder(until=3).at(3) == Unrolled()
    assert FirstOrder().at(10**9) == FirstOrder()
    assert Unrolled().at(5) == Unrolled()
    with pytest.raises(UsageError, match="at least 0"):
        FirstOrder(until=-1)


def test_reptile_by_hand() -> None:
    problem, meta, episode = _ridge(3)
    got = Reptile().value_and_grad(problem)(meta, episode)
    x, y = episode.support
    w = meta["init"]
    for _ in range(3):
        w = w - meta["lr"] * (x.T @ (x @ w - y) + meta["penalty"] * w)
    assert_close(got.grads["init"], meta["init"] - w, tolerance=1e-14)
    assert got.grads["lr"] == got.grads["penalty"] == 0
    assert_close(got.value, Unrolled().value_and_grad(problem)(meta, episode).value, tolerance=1e-15)


def test_an_outer_step_of_reptile_is_algorithm_1() -> None:
    problem, meta = problems.ridge_problem(num_inner_steps=3)
    episodes = problems.values()
    got = Vmap().value_and_grad(Reptile(), problem)(meta, episodes)
    adapted = [
        meta["init"] - Reptile().value_and_grad(problem)(meta, problems.one(episodes, task)).grads["init"]
        for task in range(3)
    ]
    stepped = meta["init"] - 0.1 * got.grads["init"]
    assert_close(stepped, meta["init"] + 0.1 * (sum(adapted) / 3 - meta["init"]), tolerance=1e-14)


def test_reptile_passes_through_the_way_a_start_is_made_of_meta() -> None:
    problem, meta, episode = _ridge(2, init=lambda meta, episode: ({"w": 3 * meta["init"]}, {}))
    got = Reptile().value_and_grad(problem)(meta, episode).grads["init"]
    plain, _, _ = _ridge(2)
    direction = Reptile().value_and_grad(plain)({**meta, "init": 3 * meta["init"]}, episode).grads["init"]
    assert_close(got, 3 * direction, tolerance=1e-14)


def test_reptile_refuses_a_loss_after_every_step() -> None:
    problem, _, _ = _ridge(2, outer_weights=(0.5, 0.5))
    with pytest.raises(UsageError, match="Reptile can not differentiate a loss after every step"):
        Reptile().value_and_grad(problem)


@dataclass(frozen=True)
class OneStep(Strategy):
    """DARTS' gradient for one step of SGD, the mixed derivative by finite differences.

    Reference: Liu, Simonyan and Yang 2019, arXiv:1806.09055, equations 7 and 8.
    """

    lr: float
    size: float = 1e-4

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        def run(meta: dict[str, Tensor], episode: Any, carry: Any = None) -> Outcome:
            params, buffers = problem.init(meta, episode)

            def inner(meta: dict[str, Tensor], params: dict[str, Tensor]) -> Tensor:
                return problem.inner_loss(meta, params, buffers, problem.batch(episode, 0), 0)[0]

            def outer(params: dict[str, Tensor]) -> tuple[Tensor, Aux]:
                return problem.outer_loss(meta, params, buffers, episode, 1)

            stepped = _moved(params, grad(inner, argnums=1)(meta, params), -self.lr)
            slopes, (value, aux) = grad_and_value(outer, has_aux=True)(stepped)
            up, down = (grad(inner)(meta, _moved(params, slopes, sign * self.size)) for sign in (1, -1))
            return Outcome(value, _moved({}, _moved(up, down, -1), -self.lr / (2 * self.size)), aux, carry)

        return run


def _moved(point: dict[str, Tensor], direction: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: point.get(name, 0) + factor * value for name, value in direction.items()}


@pytest.mark.parametrize("way", WAYS)
def test_a_strategy_of_ones_own_is_certified(way: str) -> None:
    ridge, rest, episode = _ridge(1)
    meta = {"penalty": rest.pop("penalty")}
    problem = problems.given(ridge, rest)
    assert check_meta_gradient(problem, meta, episode, strategy=OneStep(lr=0.05)).error < 1e-8
    with pytest.raises(AssertionError, match="OneStep is wrong"):
        check_meta_gradient(problem, meta, episode, strategy=OneStep(lr=0.06))
    got, expected = (
        each.value_and_grad(strategy, problem)(meta, problems.values())
        for each, strategy in ((WAYS[way], OneStep(lr=0.05)), (Loop(), Unrolled()))
    )
    assert_close((got.value, got.grads), (expected.value, expected.grads), tolerance=1e-8)
