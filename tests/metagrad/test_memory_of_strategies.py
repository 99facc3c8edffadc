"""What strategies promise of their memory, in bytes of tensors alive at once; states are taken from the promise."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from metalearn import Episodes, Problem, functionalize, losses, tree
from metalearn.metagrad import ForwardMode, Stepwise, Strategy, Truncated, Unrolled
from metalearn.metagrad.memory import peak_bytes
from metalearn.testing import assert_close
from tests import problems

D = torch.float64


def _network(num_inner_steps: int, optimizer: str = "sgd") -> tuple[Problem, dict[str, torch.Tensor], Episodes]:
    """An MLP whose activations on many examples take far more than its parameters."""
    torch.manual_seed(0)
    model = functionalize(
        nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    )
    problem, meta = problems.problem_of(
        model, optimizer, num_inner_steps=num_inner_steps, loss=losses.mean_squared_error
    )
    meta = {name: value * 0.1 if name == "lr" else value for name, value in meta.items() if name != "rates"}
    return problem, meta, problems.one(problems.values(1, examples=200))


def _peak(strategy: Strategy, num_inner_steps: int, optimizer: str = "sgd") -> int:
    problem, meta, episode = _network(num_inner_steps, optimizer)
    run = strategy.value_and_grad(problem)
    run(meta, episode)  # the first call of a model keeps what it finds out
    return peak_bytes(lambda: run(meta, episode), "cpu")


def _state_bytes(num_params: int = 113) -> int:
    return num_params * 8


def test_unrolled_grows_with_every_step() -> None:
    per_step = (_peak(Unrolled(), 20) - _peak(Unrolled(), 10)) / 10
    activations = 200 * (8 + 8) * 8
    assert per_step > 2 * activations


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_stepwise_is_flat_but_for_the_states_it_keeps(mode: str) -> None:
    short, long = (_peak(Stepwise(mode=mode), steps) for steps in (4, 64))
    stored = 60 * (_state_bytes() + 16)  # and the optimizer's counter, in a chain of its own
    assert long - short <= stored * 1.25
    assert long - stored < 1.1 * short


def test_stepwise_with_a_square_root_of_states_is_flatter_still() -> None:
    every_step, root = _peak(Stepwise(), 100), _peak(Stepwise("sqrt"), 100)
    # 19 states in place of 100.
    assert every_step - root > 0.9 * 80 * _state_bytes()
    assert root - _peak(Stepwise("sqrt"), 4) < 1.25 * 17 * (_state_bytes() + 16)


def test_the_state_of_adam_is_kept_too() -> None:
    per_step = (_peak(Stepwise(), 40, "adam") - _peak(Stepwise(), 10, "adam")) / 30
    assert 2.9 * _state_bytes() < per_step < 3.4 * _state_bytes()


def test_truncated_is_flat_in_the_steps_that_it_cuts() -> None:
    assert _peak(Truncated(3), 40) < 1.05 * _peak(Truncated(3), 5)


def _few(num_inner_steps: int) -> tuple[Problem, dict[str, torch.Tensor], Episodes]:
    problem, meta, episode = _network(num_inner_steps)
    held = {name: value for name, value in meta.items() if name.startswith(("init.", "lr."))}
    return problems.given(problem, held), {name: value for name, value in meta.items() if name not in held}, episode


def test_forward_mode_is_flat() -> None:
    def peak(steps: int) -> int:
        problem, meta, episode = _few(steps)
        run = ForwardMode().value_and_grad(problem)
        run(meta, episode)
        return peak_bytes(lambda: run(meta, episode), "cpu")

    assert peak(40) < 1.05 * peak(5)


def test_forward_mode_takes_less_in_chunks() -> None:
    problem, meta, episode = _few(3)
    whole, single = (
        peak_bytes(_run(ForwardMode(chunk_size=size).value_and_grad(problem), meta, episode), "cpu")
        for size in (None, 1)
    )
    assert single < 0.5 * whole


def _run(run: Callable[..., object], meta: dict[str, torch.Tensor], episode: Episodes) -> Callable[[], object]:
    run(meta, episode)
    return lambda: run(meta, episode)


@pytest.mark.slow
def test_a_thousand_steps_in_a_constant_number_of_activations() -> None:
    strategy = Stepwise("sqrt")
    problem, meta, episode = _network(1000)
    run = strategy.value_and_grad(problem)
    got = []
    peak = peak_bytes(lambda: got.append(run(meta, episode)), "cpu")
    states = 2 * 32 * (_state_bytes() + 16)
    assert peak - 1.25 * states < 1.1 * _peak(strategy, 4)
    expected = Unrolled().value_and_grad(problem)(meta, episode)
    assert tree.norm(expected.grads) > 1e-3
    assert_close((got[0].value, got[0].grads), (expected.value, expected.grads), tolerance=1e-10)
