"""Accumulation: one step on the mean of several gradients; and a user's own transformation inside all of ours."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metalearn import UsageError, optim, tree
from metalearn.optim import schedules
from metalearn.testing import assert_close, check_transformation

D = torch.float64
OPTIMIZERS: dict[str, Callable[[], optim.GradientTransformation]] = {
    "sgd": lambda: optim.sgd(0.1, momentum=0.9),
    "adam": lambda: optim.adam(0.1, weight_decay=0.1),
    "clipped": lambda: optim.chain(optim.clip_by_global_norm(0.5), optim.rmsprop(0.1)),
}


def start(dtype: torch.dtype = D) -> dict[str, Tensor]:
    return {"w": torch.linspace(-1, 1, 6, dtype=dtype).reshape(3, 2), "scalar": torch.ones((), dtype=dtype)}


def gradient(step: int, params: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: value * torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in params.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_is_one_step_on_the_mean_bit_by_bit(optimizer: str, every: int, dtype: torch.dtype) -> None:
    alone = OPTIMIZERS[optimizer]()
    several = optim.accumulate(alone, every)
    params = expected = start(dtype)
    opt_state, expected_state = several.init(params), alone.init(params)
    for step in range(4):
        grads = [gradient(10 * step + index, params) for index in range(every)]
        for index, each in enumerate(grads):
            before, inner = params, opt_state.inner
            params, updates, opt_state = several.step(each, opt_state, params)
            if index < every - 1:
                assert all(torch.equal(params[name], value) for name, value in before.items())
                assert not any(value.any() for value in updates.values())
                assert_close(opt_state.inner, inner, tolerance=0.0)
        mean = {name: sum(each[name] for each in grads) / every for name in params}
        expected, expected_updates, expected_state = alone.step(mean, expected_state, expected)
        for name, value in expected.items():
            assert torch.equal(params[name], value)
            assert torch.equal(updates[name], expected_updates[name])
            assert torch.equal(opt_state.total[name], torch.zeros_like(value))
        assert_close(opt_state.inner, expected_state, tolerance=0.0)
    assert int(opt_state.num_steps) == 4 * every


def test_the_mean_over_batches_is_the_gradient_of_the_whole() -> None:
    x, y = torch.linspace(-1, 1, 12, dtype=D).reshape(6, 2), torch.linspace(0, 1, 6, dtype=D)

    def loss(params: dict[str, Tensor], rows: slice) -> Tensor:
        return (x[rows] @ params["w"] - y[rows]).square().mean()

    params = {"w": torch.ones(2, dtype=D)}
    optimizer = optim.accumulate(optim.adam(0.1), 3)
    opt_state, moved = optimizer.init(params), params
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        moved, _, opt_state = optimizer.step(torch.func.grad(loss)(moved, rows), opt_state, moved)
    whole = optim.adam(0.1)
    expected = whole.step(torch.func.grad(loss)(params, slice(0, 6)), whole.init(params), params)[0]
    assert_close(moved, expected, tolerance=1e-12)


def test_what_is_left_at_the_end_moves_nothing_and_stays_in_the_state() -> None:
    optimizer, params = optim.accumulate(optim.sgd(1.0), 3), {"w": torch.zeros(())}
    opt_state, moves = optimizer.init(params), []
    for value in range(1, 8):
        updates, opt_state = optimizer.update({"w": torch.tensor(float(value))}, opt_state, params)
        moves.append(updates["w"].item())
    assert moves == [0.0, 0.0, -2.0, 0.0, 0.0, -5.0, 0.0]
    assert opt_state.total["w"] == 7.0


CERTIFIED: dict[str, tuple[Callable, dict[str, float], bool]] = {
    "every step": (lambda h: optim.accumulate(optim.sgd(h["lr"]), 1), {"lr": 0.3}, True),
    "sgd": (
        lambda h: optim.accumulate(optim.sgd(h["lr"], momentum=h["momentum"]), 2),
        {"lr": 0.3, "momentum": 0.8},
        True,
    ),
    "gradients left in the state": (lambda h: optim.accumulate(optim.sgd(h["lr"]), 3), {"lr": 0.3}, True),
    "adam": (
        lambda h: optim.accumulate(optim.adam(h["lr"], b1=h["b1"], b2=h["b2"], eps=1e-2), 2),
        {"lr": 0.1, "b1": 0.7, "b2": 0.9},
        True,
    ),
    "a schedule of the inner steps": (
        lambda h: optim.accumulate(optim.sgd(schedules.linear(h["start"], 0.1, num_steps=4)), 2),
        {"start": 0.4},
        True,
    ),
    "noise before it": (
        lambda h: optim.chain(optim.add_noise(h["scale"], 0), optim.accumulate(optim.adam(0.1, eps=1e-2), 2)),
        {"scale": 0.1},
        True,
    ),
}


@pytest.mark.parametrize("row", CERTIFIED)
def test_every_derivative_is_certified(row: str) -> None:
    make, hypers, is_whole = CERTIFIED[row]
    report = check_transformation(make, hypers=hypers, is_whole=is_whole)
    assert all(report.row(name, steps).gradient_norm > 1e-5 for name in hypers for steps in (5, 20))
    # The state that is certified is that after two gradients: of sgd without momentum, what is left over alone.
    is_used_up = row in {"every step", "a schedule of the inner steps"}
    assert (report.row("initial state", 5).gradient_norm > 1e-5) != is_used_up


def test_tasks_of_a_batch_may_be_at_different_steps() -> None:
    optimizer, params = optim.accumulate(optim.adam(0.1), 3), start()
    states = []
    for age in range(5):
        opt_state = optimizer.init(params)
        for step in range(age):
            _, opt_state = optimizer.update(gradient(step, params), opt_state, params)
        states.append(opt_state)
    grads = gradient(9, params)
    batched = torch.vmap(lambda one: optimizer.step(grads, one, params))(tree.joined(states, torch.stack))
    for age, opt_state in enumerate(states):
        assert_close(tree.entry(batched, age), optimizer.step(grads, opt_state, params), tolerance=1e-14)
    assert [bool(value != 0) for value in batched[1]["scalar"]] == [False, False, True, False, False]


def cubed(rate: Tensor | float) -> optim.GradientTransformation:
    """What a user writes: two functions, a state of their own, nothing of ours but the name of the pair."""

    def init(params: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        return {"average": {name: torch.zeros_like(value) for name, value in params.items()}}

    def update(updates, state, params):
        average = {name: 0.5 * state["average"][name] + value**3 for name, value in updates.items()}
        return {name: -rate * value for name, value in average.items()}, {"average": average}

    return optim.GradientTransformation(init, update)


AROUND: dict[str, Callable[[Tensor | float], optim.GradientTransformation]] = {
    "alone": cubed,
    "chained": lambda rate: optim.chain(optim.clip_by_norm(1.0), cubed(rate), optim.scale(0.5)),
    "masked": lambda rate: optim.chain(
        optim.masked(cubed(rate), "weight"), optim.masked(optim.scale(-0.1), "!weight")
    ),
    "partitioned": lambda rate: optim.partition({"weight": cubed(rate), "*": optim.adam(0.05, eps=1e-2)}),
    "accumulated": lambda rate: optim.accumulate(cubed(rate), 2),
    "now and then": lambda rate: optim.only_if(cubed(rate), lambda num_steps: num_steps % 2 == 0),
    "frozen in part": lambda rate: optim.chain(optim.add_noise(0.01, 3), cubed(rate), optim.freeze("scale")),
    "all of it": lambda rate: optim.partition(
        {"weight": optim.accumulate(optim.chain(optim.clip(1.0), cubed(rate)), 2), "*": optim.only_if(
            optim.chain(cubed(rate), optim.scale_by_trust_ratio(0.1)), lambda num_steps: num_steps != 1
        )}
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", AROUND)
def test_a_users_own_pair_goes_with_all_of_ours(way: str) -> None:
    report = check_transformation(lambda h: AROUND[way](h["rate"]), hypers={"rate": 0.4})
    assert report.row("rate", 20).gradient_norm > 1e-5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optim.accumulate(optim.sgd(0.1), 0), ["every", "0", "at least 1"]),
        (lambda: optim.accumulate(optim.sgd(0.1), 2.0), ["every", "2.0", "whole"]),
        (lambda: optim.accumulate(optim.sgd(0.1), True), ["every", "True"]),
        (
            lambda: (part := optim.accumulate(optim.sgd(0.1), 2)).update(
                {"v": torch.ones(1)}, part.init(start()), start()
            ),
            ["'v'", "no parameter"],
        ),
    ],
)
def test_mistakes_are_named(call, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
