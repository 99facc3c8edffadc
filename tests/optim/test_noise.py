"""Gradient noise: its size, its derivatives, and that a draw is a function of the key, the step and the name alone."""

import pytest
import torch
from torch import Tensor

from metalearn import UsageError, optim, random
from metalearn.testing import assert_close, check_transformation

D = torch.float64


def draws(part: optim.GradientTransformation, params: dict[str, Tensor], num_steps: int) -> list[dict[str, Tensor]]:
    """What is added to gradients of zero, step by step."""
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    state, seen = part.init(params), []
    for _ in range(num_steps):
        updates, state = part.update(zeros, state, params)
        seen.append(updates)
    return seen


@pytest.mark.parametrize("decay", [0.0, 0.55, 2.0])
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_the_variance_falls_as_in_the_paper(scale: float, decay: float) -> None:
    params = {"w": torch.zeros(200, 100, dtype=D)}
    for step, noise in enumerate(draws(optim.add_noise(scale, 0, decay=decay), params, 4)):
        variance = scale / (1 + step) ** decay
        # The standard error of a variance of 20 000 draws is 1 %, and that of their mean 0.7 % of the deviation.
        assert noise["w"].var().item() == pytest.approx(variance, rel=0.04)
        assert abs(noise["w"].mean().item()) < 0.03 * variance**0.5


def test_draws_are_of_their_own_for_every_step_name_and_key() -> None:
    params = {"b": torch.zeros(500, dtype=D), "a": torch.zeros(500, dtype=D)}
    seen = [each[name] for key in (0, 1) for each in draws(optim.add_noise(1.0, key), params, 3) for name in params]
    correlations = torch.corrcoef(torch.stack(seen)) - torch.eye(len(seen), dtype=D)
    assert correlations.abs().max() < 0.2


def test_a_draw_depends_on_the_name_and_not_on_what_else_there_is() -> None:
    params = {"b": torch.zeros(3), "a": torch.zeros(2)}
    part = optim.add_noise(1.0, 7)
    expected = draws(part, params, 2)
    for again in (
        draws(part, {"a": torch.zeros(2), "c": torch.zeros(4), "b": torch.zeros(3)}, 2),
        draws(optim.partition({"b": part, "*": optim.add_noise(1.0, 7)}), params, 2),
    ):
        for step in range(2):
            assert torch.equal(again[step]["b"], expected[step]["b"])
            assert torch.equal(again[step]["a"], expected[step]["a"])


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_tensors_that_are_drawn_together_have_the_bits_of_each_alone(dtype: torch.dtype) -> None:
    shapes = [(), (1,), (2,), (3,), (4,), (2, 2), (5, 3), (7, 9), (64,), (0, 3), (20_000,), (20_000,), (150, 150)]
    params = {f"layer{index}": torch.zeros(shape, dtype=dtype) for index, shape in enumerate(shapes)}
    part = optim.add_noise(1.0, 2)
    together = draws(part, params, 1)[0]
    for name, value in params.items():
        assert torch.equal(together[name], draws(part, {name: value}, 1)[0][name])
        assert together[name].shape == value.shape


def test_draws_are_the_same_in_every_version() -> None:
    noise = draws(optim.add_noise(1.0, 7, decay=0.0), {"head.weight": torch.zeros(3, dtype=D)}, 2)
    got = torch.stack([each["head.weight"] for each in noise])
    expected = [[1.0490876, 1.6153674, 0.34465176], [1.0181339, -0.67345494, 0.79224011]]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=D), rtol=1e-6, atol=0)


def test_a_seed_is_its_key() -> None:
    params = {"w": torch.zeros(5, dtype=D)}
    seed, key = (draws(optim.add_noise(0.3, given), params, 2) for given in (5, random.key(5)))
    assert all(torch.equal(one["w"], other["w"]) for one, other in zip(seed, key, strict=True))


def test_a_batch_of_keys_and_states_has_the_bits_of_the_loop() -> None:
    params = {"w": torch.zeros(3), "scalar": torch.zeros(())}
    keys, counts = random.key(torch.arange(4)), torch.tensor([0, 1, 5, 9])

    def one(key: Tensor, count: Tensor) -> dict[str, Tensor]:
        return optim.add_noise(0.3, key).update(params, optim.CountState(count), params)[0]

    batched = torch.vmap(one)(keys, counts)
    for index, (key, count) in enumerate(zip(keys, counts, strict=True)):
        for name, value in one(key, count).items():
            assert torch.equal(batched[name][index], value)


def test_it_is_certified_in_scale_and_decay() -> None:
    report = check_transformation(
        lambda h: optim.add_noise(h["scale"], 3, decay=h["decay"]),
        hypers={"scale": 0.3, "decay": 0.55},
        is_whole=False,
    )
    assert min(report.row(name, steps).gradient_norm for name in ("scale", "decay") for steps in (5, 20)) > 1e-4


def test_it_is_certified_by_name_and_by_step() -> None:
    check_transformation(
        lambda h: optim.chain(
            optim.add_noise({"weight": h["weight"], "*": h["others"]}, 3, decay=optim.per_step(h["decays"])),
            optim.adam(0.05, eps=1e-2),
        ),
        hypers={
            "weight": torch.linspace(0.1, 0.3, 6, dtype=D).reshape(2, 3),
            "others": 0.2,
            "decays": torch.tensor([0.3, 0.5, 0.7], dtype=D),
        },
    )


def test_without_scale_nothing_is_added_and_the_derivative_is_zero() -> None:
    params = {"w": torch.ones(3, dtype=D)}

    def total(scale: Tensor) -> Tensor:
        part = optim.add_noise(scale, 0)
        return part.update(params, part.init(params), params)[0]["w"].sum()

    zero = torch.zeros((), dtype=D)
    assert total(zero) == 3.0
    assert torch.func.grad(total)(zero) == 0.0
    assert torch.func.grad(torch.func.grad(total))(zero) == 0.0


def test_parameters_keep_their_dtype_and_complex_ones_get_noise_in_both_parts() -> None:
    params = {
        "half": torch.zeros(4000, dtype=torch.bfloat16),
        "scalar": torch.zeros(()),
        "complex": torch.zeros(4000, dtype=torch.complex64),
    }
    for scale in (1.0, torch.tensor(1.0, dtype=D)):
        noise = draws(optim.add_noise(scale, 1), params, 1)[0]
        assert {name: value.dtype for name, value in noise.items()} == {n: value.dtype for n, value in params.items()}
        assert noise["half"].isfinite().all()
        both = torch.view_as_real(noise["complex"])
        assert_close(both.var(dim=0), torch.ones(2), tolerance=0.1)
        assert both[:, 0].ne(both[:, 1]).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optim.add_noise(-0.1, 0), ["scale", "-0.1"]),
        (lambda: optim.add_noise(0.1, 0.5), ["key", "0.5", "seed"]),
        (lambda: optim.add_noise(0.1, True), ["key", "True"]),
        (lambda: optim.add_noise(0.1, torch.tensor(0.5)), ["key", "float32[]", "int64 scalar"]),
        (lambda: optim.add_noise(0.1, random.key(torch.arange(3))), ["int64[3]", "vmap"]),
        (lambda: optim.add_noise(0.1, key=0, gamma=0.5), ["gamma", "decay"]),
        (lambda: optim.add_noise({"v": 0.1}, 0).init({"w": torch.ones(1)}), ["scale", "'v'"]),
    ],
)
def test_mistakes_are_named(call, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
