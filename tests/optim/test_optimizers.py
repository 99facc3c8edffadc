"""Forms of hyper-parameters, chains and steps, on SGD and Adam; the table of all optimizers is in `family.py`."""

import pytest
import torch
from torch import Tensor

from metalearn import UsageError, optim
from metalearn.testing import assert_close

D = torch.float64


def _start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (3, 2), "b": (2,), "scalar": (), "dead": (2,)}
    return {name: torch.randn(shape, generator=generator, dtype=D) for name, shape in shapes.items()}


def _loss(params: dict[str, Tensor]) -> Tensor:
    # Rosenbrock-like and not separable; "dead" has a gradient of exactly zero.
    flat = torch.cat([params["w"].flatten(), params["b"], params["scalar"].reshape(1)])
    return ((1 - flat[:-1]) ** 2 + 2 * (flat[1:] - flat[:-1] ** 2) ** 2).mean() + 0.0 * params["dead"].sum()


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


@pytest.mark.parametrize("shape", [(), (3, 2)], ids=["one for all", "one an entry"])
@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_adam_takes_every_hyper_parameter_as_a_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    hypers = {"lr": 0.05, "b1": 0.7, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.1}
    params = {"w": torch.linspace(-1, 1, 6, dtype=dtype).reshape(3, 2)}
    results = []
    for given in (hypers, {name: torch.full(shape, value, dtype=dtype) for name, value in hypers.items()}):
        optimizer, now = optim.adam(**given), params
        state = optimizer.init(now)
        for _ in range(5):
            now, _, state = optimizer.step({"w": now["w"] * 0.5 + 1}, state, now)
        results.append(now["w"])
    assert results[1].dtype == dtype
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("name", ["lr", "b1", "b2", "eps"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_adam_keeps_the_values_of_two_parameters_apart(name: str, scheduled: bool) -> None:
    params = {"w": torch.ones(3, dtype=D), "v": torch.full((3,), 2.0, dtype=D)}
    values = {"w": 0.3, "v": 0.6}

    def after_three(value, params):
        optimizer, now = optim.adam(**{name: value}), params
        state = optimizer.init(now)
        for _ in range(3):
            now, _, state = optimizer.step({key: 1 + each for key, each in now.items()}, state, now)
        return now

    got = after_three((lambda count: values) if scheduled else values, params)
    for key, value in values.items():
        assert torch.equal(got[key], after_three(value, {key: params[key]})[key])
    assert not torch.equal(got["w"], after_three(values["v"], params)["w"])


@pytest.mark.parametrize("name", ["lr", "b1", "b2", "eps", "weight_decay"])
def test_a_hyper_parameter_may_be_vmapped(name: str) -> None:
    params, grads = {"w": torch.linspace(-1, 1, 5, dtype=D)}, {"w": torch.linspace(2, 3, 5, dtype=D)}
    given = {"weight_decay": 0.0, name: None}

    def two_steps(value: Tensor) -> Tensor:
        optimizer, now = optim.adam(**{**given, name: value}), params
        state = optimizer.init(now)
        for _ in range(2):
            now, _, state = optimizer.step(grads, state, now)
        return now["w"]

    values = torch.tensor([0.1, 0.3, 0.5], dtype=D)
    assert_close(torch.vmap(two_steps)(values), torch.stack([two_steps(value) for value in values]), tolerance=1e-14)


@pytest.mark.parametrize(
    "rate",
    [
        lambda dtype: torch.tensor(0.03, dtype=dtype),
        lambda dtype: torch.tensor(0.03, dtype=torch.float32),
        lambda dtype: torch.tensor(0.03, dtype=D),
    ],
    ids=["the same dtype", "float32", "float64"],
)
def test_a_rate_keeps_the_dtype_of_the_parameters(rate) -> None:
    for dtype in (torch.bfloat16, torch.float32, D):
        params = {"w": torch.ones(5, dtype=dtype), "scalar": torch.ones((), dtype=dtype)}
        for factory in (optim.sgd, optim.adam):
            results = []
            for value in (0.03, rate(dtype)):
                optimizer, now = factory(value), params
                state = optimizer.init(now)
                for _ in range(2):
                    now, _, state = optimizer.step({name: each / 3 for name, each in now.items()}, state, now)
                results.append(now)
            for name in params:
                assert results[0][name].dtype == results[1][name].dtype == dtype
                torch.testing.assert_close(results[1][name], results[0][name])


def test_a_learned_rate_of_full_shape_takes_the_same_step() -> None:
    params, grads = {"w": torch.randn(40, 3)}, {"w": torch.randn(40, 3)}
    for rate in (torch.tensor(0.03), torch.full((40, 3), 0.03), {"w": 0.03}, lambda count: 0.03):
        optimizer = optim.sgd(rate)
        assert torch.equal(
            optimizer.step(grads, optimizer.init(params), params)[0]["w"],
            torch.add(params["w"], grads["w"], alpha=-0.03),
        )


def test_a_chain_steps_as_its_last_part_does() -> None:
    params, grads = {"w": torch.randn(40)}, {"w": torch.randn(40)}
    halved = optim.stateless(lambda updates, params: {name: value / 2 for name, value in updates.items()})
    last_fused, last_not = optim.chain(halved, optim.sgd(0.03)), optim.chain(optim.sgd(0.03), halved)
    moved, updates, state = last_fused.step(grads, last_fused.init(params), params)
    assert torch.equal(moved["w"], torch.add(params["w"], grads["w"] / 2, alpha=-0.03))
    expected, expected_state = last_fused.update(grads, last_fused.init(params), params)
    assert torch.equal(updates["w"], expected["w"])
    assert str(state) == str(expected_state)
    moved, updates, _ = last_not.step(grads, last_not.init(params), params)
    assert torch.equal(moved["w"], params["w"] + updates["w"])
    assert torch.equal(updates["w"], (-0.03 * grads["w"]) / 2)
    nothing = optim.chain()
    assert torch.equal(nothing.step(grads, nothing.init(params), params)[0]["w"], params["w"] + grads["w"])


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
        (lambda: optim.sgd({"ww": 0.1}).init({"w": torch.ones(1)}), ["'ww'", "Did you mean 'w'"]),
        (lambda: optim.apply_updates({"w": torch.ones(1)}, {"v": torch.ones(1)}), ["'v'", "no parameter"]),
    ],
)
def test_mistakes_are_named(call, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
