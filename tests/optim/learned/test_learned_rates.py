"""Learned rates equal their papers' equations."""

from functools import partial

import pytest
import torch
from torch import Tensor

from metalearn import UsageError, adapt, optim
from metalearn.optim.learned import LSLR, LearnedRates, MetaSGD
from metalearn.testing import assert_close

D = torch.float64
SHAPES = {"0.weight": (3, 2), "0.bias": (3,), "2.weight": (1, 3), "scale": ()}


def draws(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=D) for name, shape in SHAPES.items()}


def loss(params: dict[str, Tensor], buffers: dict[str, Tensor], target: Tensor) -> Tensor:
    hidden = torch.tanh(params["0.weight"] @ target + params["0.bias"])
    return (params["2.weight"] @ hidden * params["scale"] - 1).square().sum()


def test_meta_sgd_by_hand() -> None:
    learned, params, grads = MetaSGD(0.3), draws(0), draws(1)
    assert {name: value.shape for name, value in learned.init(params).items()} == {
        f"lr.{name}": value.shape for name, value in params.items()
    }
    rates = {f"lr.{name}": value for name, value in draws(2).items()}  # of both signs, as the paper has them
    optimizer = learned(rates)
    got, _, _ = optimizer.step(grads, optimizer.init(params), params)
    assert_close(got, {n: params[n] - rates[f"lr.{n}"] * grads[n] for n in params}, tolerance=1e-15)


@pytest.mark.parametrize("learned", [MetaSGD(0.1), MetaSGD(0.1, num_steps=4), LSLR(0.1, 4), LearnedRates(0.1, "all")])
def test_it_starts_as_the_optimizer_at_that_rate(learned: LearnedRates) -> None:
    params, target = draws(0), torch.ones(2, dtype=D)
    run = partial(adapt, loss, params, {}, target, num_inner_steps=7)
    assert_close(run(optimizer=learned(learned.init(params))).params, run(optimizer=optim.sgd(0.1)).params)


@pytest.mark.parametrize(
    ("per", "groups"),
    [
        ("parameter", {name: f"lr.{name}" for name in SHAPES}),
        ("module", {"0.weight": "lr.0", "0.bias": "lr.0", "2.weight": "lr.2", "scale": "lr"}),
        ("all", dict.fromkeys(SHAPES, "lr")),
    ],
)
def test_rates_a_layer_and_a_step_by_hand(per: str, groups: dict[str, str]) -> None:
    learned, now, target = LearnedRates(0.1, per, num_steps=3), draws(0), torch.ones(2, dtype=D)
    meta = learned.init(now)
    assert {name: list(value.shape) for name, value in meta.items()} == {key: [3] for key in groups.values()}
    meta = {name: torch.tensor([0.1, 0.2, 0.05], dtype=D) * (1 + i) for i, name in enumerate(meta)}
    got = adapt(loss, now, {}, target, optimizer=learned(meta), num_inner_steps=5)
    for step in (0, 1, 2, 2, 2):  # the last rate holds
        grads = torch.func.grad(loss)(now, {}, target)
        now = {name: value - meta[groups[name]][step] * grads[name] for name, value in now.items()}
    assert_close(got.params, now, tolerance=1e-14)


def test_lslr_is_a_rate_a_parameter_and_a_step() -> None:
    assert LSLR(0.1, 5) == LearnedRates(0.1, "parameter", num_steps=5)
    assert LSLR(0.1, 5, per="module") == LearnedRates(0.1, "module", num_steps=5)


def test_the_rates_may_be_another_optimizers() -> None:
    params, grads, rates = draws(0), draws(1), {f"lr.{name}": value.abs() for name, value in draws(2).items()}
    optimizer = MetaSGD(0.1, base=partial(optim.adam, b1=0.5, eps=1e-4))(rates)
    got, _, _ = optimizer.step(grads, optimizer.init(params), params)
    # The first step of Adam is the gradient over its size.
    expected = {n: params[n] - rates[f"lr.{n}"] * grads[n] / (grads[n].abs() + 1e-4) for n in params}
    assert_close(got, expected, tolerance=1e-12)


def test_a_rate_learns_alone() -> None:
    params, target = draws(0), torch.ones(2, dtype=D)
    learned = MetaSGD(0.01)
    meta = learned.init(params)

    def objective(meta: dict[str, Tensor]) -> Tensor:
        return loss(adapt(loss, params, {}, target, optimizer=learned(meta), num_inner_steps=2).params, {}, target)

    first = objective(meta)
    for _ in range(20):
        meta = {name: meta[name] - 0.01 * value for name, value in torch.func.grad(objective)(meta).items()}
    assert objective(meta) < 0.5 * first


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LearnedRates(0.1, "modul"), "Did you mean 'module'"),
        (lambda: LearnedRates(-0.1), "finite float of at least 0"),
        (lambda: LearnedRates(float("nan")), "finite float of at least 0"),
        (lambda: LSLR(0.1, 0), "num_steps=0"),
        (lambda: LSLR(0.1, 2.5), "num_steps=2.5"),
        (lambda: MetaSGD(0.1, base=optim.sgd(0.1)), "a function from a rate"),
        (lambda: MetaSGD(0.1, base=MetaSGD(0.1)), "a function from a rate"),
    ],
)
def test_a_mistake_is_told(make, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make()


def test_a_state_of_other_parameters_is_told() -> None:
    learned, params = MetaSGD(0.1), {"w": torch.ones(2), "b": torch.ones(1)}
    optimizer, fewer = learned(learned.init(params)), {"w": torch.ones(2), "bias": torch.ones(1)}
    with pytest.raises(UsageError, match=r"no meta-parameter 'lr\.bias'. Did you mean 'lr\.b'"):
        optimizer.update(fewer, optimizer.init(params), fewer)
