"""One table of optimizers: each row equals torch.optim, and is differentiable in everything."""

import pytest
import torch
from torch import Tensor

from metalearn import UsageError, optim
from metalearn.testing import assert_close

D = torch.float64

ROWS = {
    "sgd": (lambda: optim.sgd(0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "sgd momentum": (lambda: optim.sgd(0.05, momentum=0.9), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
    "sgd nesterov": (
        lambda: optim.sgd(0.05, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    ),
    "sgd weight decay": (
        lambda: optim.sgd(0.05, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1),
    ),
    "sgd everything": (
        lambda: optim.sgd(0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    "adam": (lambda: optim.adam(0.05), lambda p: torch.optim.Adam(p, 0.05)),
    "adam betas": (
        lambda: optim.adam(0.05, b1=0.7, b2=0.9, eps=1e-3),
        lambda p: torch.optim.Adam(p, 0.05, betas=(0.7, 0.9), eps=1e-3),
    ),
    "adam weight decay": (
        lambda: optim.adam(0.05, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1),
    ),
}


def _start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (3, 2), "b": (2,), "scalar": (), "dead": (2,)}
    return {name: torch.randn(shape, generator=generator, dtype=D) for name, shape in shapes.items()}


def _loss(params: dict[str, Tensor]) -> Tensor:
    # Rosenbrock-like and not separable; "dead" has a gradient of exactly zero.
    flat = torch.cat([params["w"].flatten(), params["b"], params["scalar"].reshape(1)])
    return ((1 - flat[:-1]) ** 2 + 2 * (flat[1:] - flat[:-1] ** 2) ** 2).mean() + 0.0 * params["dead"].sum()


@pytest.mark.parametrize("row", ROWS)
def test_equals_torch_optim_over_50_steps(row: str) -> None:
    ours, theirs = ROWS[row][0](), {name: value.clone().requires_grad_() for name, value in _start().items()}
    reference, params = ROWS[row][1](list(theirs.values())), _start()
    state = ours.init(params)
    for _ in range(50):
        updates, state = ours.update(torch.func.grad(_loss)(params), state, params)
        params = optim.apply_updates(params, updates)
        reference.zero_grad()
        _loss(theirs).backward()
        reference.step()
        for name, value in params.items():
            torch.testing.assert_close(value, theirs[name].detach(), rtol=1e-12, atol=1e-12)
    assert (params["w"] - _start()["w"]).abs().max() > 0.05


@pytest.mark.parametrize("row", ROWS)
def test_inputs_are_not_mutated_and_state_can_be_vmapped(row: str) -> None:
    optimizer, params = ROWS[row][0](), _start()
    before = {name: value.clone() for name, value in params.items()}
    state = optimizer.init(params)
    optimizer.update(params, state, params)
    assert all(torch.equal(params[name], before[name]) for name in params)
    stacked = {name: torch.stack([value, 2 * value]) for name, value in params.items()}
    states = torch.vmap(optimizer.init)(stacked)
    updates, _ = torch.vmap(optimizer.update)(stacked, states, stacked)
    for index in range(2):
        one = {name: value[index] for name, value in stacked.items()}
        assert_close(
            {name: value[index] for name, value in updates.items()},
            optimizer.update(one, state, one)[0],
            tolerance=1e-14,
        )


RATES = {
    "float": lambda: 0.1,
    "tensor": lambda: torch.tensor(0.1, dtype=D),
    "dict": lambda: dict.fromkeys(_start(), torch.tensor(0.1, dtype=D)),
    "schedule": lambda: lambda count: torch.tensor([0.1, 9.0], dtype=D)[count],
    "schedule of dicts": lambda: lambda count: dict.fromkeys(_start(), 0.1),
}


@pytest.mark.parametrize("factory", [optim.sgd, optim.adam])
@pytest.mark.parametrize("form", RATES)
def test_every_form_of_a_rate_is_the_same_rate(factory, form: str) -> None:
    params, grads = _start(), torch.func.grad(_loss)(_start())
    expected, _ = factory(0.1).update(grads, factory(0.1).init(params), params)
    optimizer = factory(RATES[form]())
    got, _ = optimizer.update(grads, optimizer.init(params), params)
    assert_close(got, expected, tolerance=1e-15)


def test_a_schedule_sees_the_number_of_steps_done() -> None:
    optimizer, params = optim.sgd(lambda count: torch.tensor([1.0, 10.0, 100.0])[count]), {"w": torch.ones(1)}
    state, seen = optimizer.init(params), []
    for _ in range(3):
        updates, state = optimizer.update({"w": torch.ones(1)}, state, params)
        seen.append(-updates["w"].item())
    assert seen == [1.0, 10.0, 100.0]


def test_adam_has_no_nan_where_a_unit_is_dead() -> None:
    optimizer = optim.adam(0.1)

    def after_three_steps(params: dict[str, Tensor]) -> Tensor:
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(torch.func.grad(_loss)(params), state, params)
            params = optim.apply_updates(params, updates)
        return _loss(params)

    grads = torch.func.grad(after_three_steps)(_start())
    assert all(value.isfinite().all() for value in grads.values())
    assert torch.equal(grads["dead"], torch.zeros(2, dtype=D))


def test_chain_applies_its_parts_in_order() -> None:
    double = optim.stateless(lambda updates, params: {name: 2 * value for name, value in updates.items()})
    optimizer, params = (
        optim.chain(optim.add_decayed_weights(1.0), double, optim.scale_by_learning_rate(0.5)),
        {"w": torch.ones(1)},
    )
    updates, state = optimizer.update({"w": torch.ones(1)}, optimizer.init(params), params)
    assert updates["w"].item() == -2.0
    assert len(state) == 3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optim.sgd(-0.1), ["lr", "-0.1"]),
        (lambda: optim.sgd(0.1, nesterov=True), ["nesterov", "momentum=0.9"]),
        (lambda: optim.adam(b2=1.0), ["b2", "[0, 1)"]),
        (lambda: optim.adam(eps=-1.0), ["eps"]),
        (lambda: optim.sgd({"ww": 0.1}).init({"w": torch.ones(1)}), ["'w'", "Did you mean 'ww'"]),
        (lambda: optim.apply_updates({"w": torch.ones(1)}, {"v": torch.ones(1)}), ["'v'", "no parameter"]),
    ],
)
def test_mistakes_are_named(call, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
