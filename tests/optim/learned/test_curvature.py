"""Learned preconditioners equal their papers' equations."""

import pytest
import torch

from metalearn import UsageError, optim
from metalearn.optim.learned import Kronecker, MetaCurvature, MetaSGD
from metalearn.testing import assert_close

D = torch.float64
PARAMS = {
    "conv.weight": torch.zeros(4, 3, 2, 5, dtype=D),
    "conv.bias": torch.zeros(4, dtype=D),
    "head.weight": torch.zeros(2, 6, dtype=D),
    "scale": torch.zeros((), dtype=D),
}


def randomly(like: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator, dtype=D) for name, value in like.items()}


@pytest.mark.parametrize("kind", [MetaCurvature, Kronecker])
def test_it_starts_as_the_base_alone(kind) -> None:
    grads = randomly(PARAMS, 1)
    optimizer = kind(lr=0.1)(kind(lr=0.1).init(PARAMS))
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    assert_close(updates, {name: -0.1 * value for name, value in grads.items()}, tolerance=1e-15)


def test_meta_curvature_is_three_mode_products() -> None:
    learned, grads = MetaCurvature(lr=0.5), randomly(PARAMS, 1)
    meta = randomly(learned.init(PARAMS), 2)
    updates, _ = learned(meta).update(grads, learned(meta).init(PARAMS), PARAMS)
    # The sum over all entries, written out; the filter's positions are one axis.
    g, expected = grads["conv.weight"].reshape(4, 3, 10), torch.zeros(4, 3, 10, dtype=D)
    out, of_in, of_filter = (meta[f"{axis}.conv.weight"] for axis in ("out", "in", "filter"))
    for a, b, c in [(a, b, c) for a in range(4) for b in range(3) for c in range(10)]:
        expected[a, b, c] = (out[a][:, None, None] * of_in[b][None, :, None] * of_filter[c][None, None, :] * g).sum()
    assert_close(updates["conv.weight"], -0.5 * expected.reshape(4, 3, 2, 5), tolerance=1e-13)
    linear = meta["out.head.weight"] @ grads["head.weight"] @ meta["in.head.weight"].T
    assert_close(updates["head.weight"], -0.5 * linear, tolerance=1e-13)
    assert_close(updates["conv.bias"], -0.5 * meta["out.conv.bias"] @ grads["conv.bias"], tolerance=1e-13)
    assert_close(updates["scale"], -0.5 * meta["out.scale"][0, 0] * grads["scale"], tolerance=1e-13)


def test_kronecker_is_a_kronecker_product_of_the_entries() -> None:
    learned, grads = Kronecker(lr=0.5), randomly(PARAMS, 1)
    meta = randomly(learned.init(PARAMS), 2)
    updates, _ = learned(meta).update(grads, learned(meta).init(PARAMS), PARAMS)
    for name, gradient in grads.items():
        whole = torch.kron(meta[f"left.{name}"], meta[f"right.{name}"].T.contiguous())
        assert_close(updates[name].flatten(), -0.5 * whole @ gradient.flatten(), tolerance=1e-13)
    by_hand = meta["left.head.weight"] @ grads["head.weight"] @ meta["right.head.weight"]
    assert_close(updates["head.weight"], -0.5 * by_hand, tolerance=1e-13)


def test_the_base_may_be_any_optimizer_learned_or_not() -> None:
    grads, params = randomly(PARAMS, 1), randomly(PARAMS, 0)
    learned = MetaCurvature(MetaSGD(0.1))
    meta = learned.init(params)
    assert {name for name in meta if name.startswith("base.")} == {f"base.lr.{name}" for name in params}
    meta = randomly(meta, 2)
    fixed = MetaCurvature(lr=1.0)({name: value for name, value in meta.items() if not name.startswith("base.")})
    direction, _ = fixed.update(grads, fixed.init(params), params)
    updates, _ = learned(meta).update(grads, learned(meta).init(params), params)
    assert_close(updates, {n: meta[f"base.lr.{n}"] * direction[n] for n in params}, tolerance=1e-13)
    adam = Kronecker(optim.adam, lr=0.1)
    optimizer = adam(adam.init(params))
    expected = optim.adam(0.1)
    state, ours = expected.init(params), optimizer.init(params)
    for _ in range(3):
        got, ours = optimizer.update(grads, ours, params)
        wanted, state = expected.update(grads, state, params)
    assert_close(got, wanted, tolerance=1e-15)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (MetaCurvature, "MetaCurvature has no rate: give lr=…"),
        (lambda: Kronecker(MetaSGD(0.1), lr=0.1), "brings rates of its own"),
        (lambda: Kronecker(optim.sgd(0.1)), "a function from a rate to an optimizer"),
        (lambda: Kronecker(0.1), "base=float"),
    ],
)
def test_a_mistake_is_told(make, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make()
