"""Coordinate-wise optimizers equal what they are said to be: torch's LSTM, Adam, and their features by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from metalearn import UsageError, optim, random
from metalearn.optim.learned import CoordinateLSTM, CoordinateMLP
from metalearn.optim.learned.coordinatewise import log_and_sign
from metalearn.testing import assert_close

D = torch.float64


def gradients(num_steps: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (3, 2), "b": (2,), "scalar": ()}
    sizes = 10.0 ** torch.arange(-6, num_steps - 6, dtype=D)
    return [{n: s * torch.randn(shape, generator=generator, dtype=D) for n, shape in shapes.items()} for s in sizes]


def run(optimizer: optim.GradientTransformation, steps: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    state, updates = optimizer.init(steps[0]), []
    for grads in steps:
        made, state = optimizer.update(grads, state, grads)
        updates.append(made)
    return updates


def test_the_preprocessing_by_hand() -> None:
    p, values = 10.0, [2.0, -0.3, 1e-4, -1e-5, 1e-30, 0.0]
    for value, (first, second) in zip(values, log_and_sign(torch.tensor(values, dtype=D), p).tolist(), strict=True):
        if abs(value) >= math.exp(-p):
            expected = math.log(abs(value)) / p, math.copysign(1.0, value)
        else:
            expected = -1.0, math.exp(p) * value
        assert (first, second) == pytest.approx(expected, rel=1e-12, abs=1e-300)
    edge = math.exp(-p)
    below, above = log_and_sign(torch.tensor([edge * (1 - 1e-9), edge * (1 + 1e-9)], dtype=D), p)
    assert_close(below, above, tolerance=1e-8)


def test_the_derivatives_of_the_preprocessing_at_zero() -> None:
    first = torch.func.jacrev(lambda g: log_and_sign(g, 10.0))
    zero = torch.zeros((), dtype=D)
    assert first(zero).tolist() == [0.0, math.exp(10.0)]
    assert torch.func.jacrev(first)(zero).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_lstm_is_torchs(num_layers: int) -> None:
    learned = CoordinateLSTM(5, num_layers, output_scale=0.3)
    steps = gradients(6)
    meta = learned.init(steps[0])
    lstm, linear = nn.LSTM(2, 5, num_layers).to(D), nn.Linear(5, 1).to(D)
    with torch.no_grad():
        for name, value in lstm.named_parameters():
            own = meta[name.replace("bias_ih", "bias")] if "bias_hh" not in name else torch.zeros(20, dtype=D)
            value.copy_(own)
        linear.weight.copy_(meta["output.weight"])
        linear.bias.copy_(meta["output.bias"])
        rows = torch.stack([torch.cat([grad.flatten() for grad in grads.values()]) for grads in steps])
        expected = 0.3 * linear(lstm(log_and_sign(rows, 10.0))[0]).squeeze(-1)
    got = torch.stack([torch.cat([u.flatten() for u in updates.values()]) for updates in run(learned(meta), steps)])
    assert_close(got, expected, tolerance=1e-13)
    assert got.std(0).min() > 1e-4  # the state matters


def test_the_first_weights_depend_on_the_seed_alone() -> None:
    small, large = ({"w": torch.zeros(size, dtype=D)} for size in (2, 7))
    assert_close(CoordinateLSTM(seed=1).init(small), CoordinateLSTM(seed=1).init(large), tolerance=1e-300)
    for kind in (CoordinateLSTM, CoordinateMLP):
        a, b = (torch.cat([v.flatten() for v in kind(seed=seed).init(small).values()]) for seed in (0, 1))
        assert (a - b).abs().max() > 0.1
        assert a.abs().max() <= 1
    assert CoordinateLSTM().init(small)["weight_hh_l0"].abs().max() < 1 / math.sqrt(20)


@pytest.mark.parametrize("decays", [(0.9,), (0.5, 0.9, 0.99)])
def test_the_untrained_mlp_is_adam(decays: tuple[float, ...]) -> None:
    learned = CoordinateMLP(0.03, decays=decays, square_decay=0.95, eps=1e-6)
    steps = gradients(12)
    got = run(learned(learned.init(steps[0])), steps)
    for ours, adams in zip(got, run(optim.adam(0.03, b1=0.9, b2=0.95, eps=1e-6), steps), strict=True):
        assert_close(ours, adams, tolerance=1e-12)


def test_the_untrained_mlp_is_adam_in_float32_too() -> None:
    learned = CoordinateMLP(0.03)
    steps = [{name: value.float() for name, value in grads.items()} for grads in gradients(4)]
    for ours, adams in zip(run(learned(learned.init(steps[0])), steps), run(optim.adam(0.03), steps), strict=True):
        assert_close(ours, adams, tolerance=1e-5)


def test_the_trained_mlp_by_hand() -> None:
    learned = CoordinateMLP(0.1, 3, decays=(0.5, 0.8), square_decay=0.9, eps=1e-3, timescales=(1, 7))
    steps = [{"w": torch.tensor([0.3, -2.0], dtype=D)}, {"w": torch.tensor([-0.1, 0.0], dtype=D)}]
    shapes = learned.init(steps[0])
    meta = {n: random.normal(random.key(i), v.shape, dtype=D) for i, (n, v) in enumerate(shapes.items())}
    got = torch.stack([updates["w"] for updates in run(learned(meta), steps)])
    for coordinate in range(2):
        means, square = [0.0, 0.0], 0.0
        for t, grads in enumerate(steps):
            g = float(grads["w"][coordinate])
            means = [d * m + (1 - d) * g for d, m in zip((0.5, 0.8), means, strict=True)]
            square = 0.9 * square + 0.1 * g * g
            unbiased = [m / (1 - d ** (t + 1)) for d, m in zip((0.5, 0.8), means, strict=True)]
            root = math.sqrt(square / (1 - 0.9 ** (t + 1))) + 1e-3
            x = torch.tensor([g, *unbiased], dtype=D) / root
            times = torch.tensor([math.tanh(t / 1 - 1), math.tanh(t / 7 - 1)], dtype=D)
            hidden = torch.tanh(meta["hidden.weight"] @ x + meta["hidden.time"] @ times + meta["hidden.bias"])
            out = meta["direct.weight"] @ x + meta["direct.time"] @ times + meta["output.weight"] @ hidden
            assert float(got[t, coordinate]) == pytest.approx(-0.1 * math.exp(out[1]) * float(out[0]), rel=1e-12)


def test_mixed_dtypes_keep_their_own() -> None:
    params = {"w": torch.ones(2, dtype=torch.float32), "b": torch.ones(2, dtype=D)}
    for learned in (CoordinateLSTM(3), CoordinateMLP()):
        meta = learned.init(params)
        assert {value.dtype for value in meta.values()} == {D}
        updates, _ = learned(meta).update(params, learned(meta).init(params), params)
        assert [value.dtype for value in updates.values()] == [torch.float32, D]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: CoordinateLSTM(0), "hidden_size=0"),
        (lambda: CoordinateLSTM(num_layers=1.0), "num_layers=1.0"),
        (lambda: CoordinateLSTM(preprocessing=0.0), "preprocessing=0.0"),
        (lambda: CoordinateLSTM(output_scale=-1.0), "output_scale=-1.0"),
        (lambda: CoordinateMLP(0.0), "lr=0.0"),
        (lambda: CoordinateMLP(decays=()), "a decay is between 0 and 1"),
        (lambda: CoordinateMLP(square_decay=1.0), "a decay is between 0 and 1"),
        (lambda: CoordinateMLP(timescales=(0,)), "timescales"),
    ],
)
def test_a_mistake_is_told(make, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make()


@pytest.mark.parametrize("kind", [CoordinateLSTM, CoordinateMLP])
def test_gradients_of_other_names_are_told(kind) -> None:
    params, learned = {"weight": torch.ones(2)}, kind()
    optimizer = learned(learned.init(params))
    with pytest.raises(UsageError, match="Did you mean 'weight'"):
        optimizer.update({"weigth": torch.ones(2)}, optimizer.init(params), params)
