"""Keyed draws: the same bits everywhere, and good ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from metalearn import random


def test_the_bits_are_pinned() -> None:
    # Episodes and dropout masks of published runs depend on these numbers: a change of them is a breaking change.
    assert random.bits(random.key(0), (4,)).tolist() == [1099029488, 571079854, 1605316367, -1772951087]
    assert random.fold_in(random.key(7), 3).item() == -795732181051668115


def test_loop_vmap_and_batched_keys_draw_the_same_bits() -> None:
    keys = random.key(torch.arange(5))
    looped = torch.stack([random.bits(key, (3, 4)) for key in keys])
    assert torch.equal(torch.vmap(lambda key: random.bits(key, (3, 4)))(keys), looped)
    assert torch.equal(random.bits(keys, (3, 4)), looped)


def test_a_recomputation_draws_the_same_bits() -> None:
    x = torch.ones(50, requires_grad=True)

    def drop(x: torch.Tensor) -> torch.Tensor:
        return (x * random.bernoulli(random.key(1), 0.5, x.shape)).square().sum()

    (recomputed,) = torch.autograd.grad(checkpoint(drop, x, use_reentrant=False), x)
    (plain,) = torch.autograd.grad(drop(x), x)
    assert torch.equal(recomputed, plain)


@pytest.mark.parametrize("derive", [lambda i: random.key(i), lambda i: random.fold_in(random.key(3), i), lambda i: i])
def test_streams_are_uniform_and_uncorrelated(derive) -> None:
    # `lambda i: i` takes consecutive integers as keys, as a counter that dropout advances does.
    draws = random.uniform(derive(torch.arange(600)), (600,), dtype=torch.float64)
    assert abs(draws.mean().item() - 0.5) < 4 / math.sqrt(12 * draws.numel())
    assert abs(draws.var().item() * 12 - 1) < 0.01
    upper = torch.ones(600, 600).triu(1) > 0
    for table in (draws, draws.T):  # between keys, and between positions
        correlation = torch.corrcoef(table)[upper] * math.sqrt(600)
        assert abs(correlation.std().item() - 1) < 0.02
        assert abs(correlation.mean().item()) < 0.02
    counts = torch.histc(draws, bins=100, min=0, max=1)
    chi_square = ((counts - draws.numel() / 100) ** 2 / (draws.numel() / 100)).sum().item()
    assert 50 < chi_square < 160


def test_every_bit_is_fair() -> None:
    bits = random.bits(random.key(11), (200_000,))
    for position in range(32):
        share = ((bits >> position) & 1).double().mean().item()
        assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(bits.numel())


def test_normal_draws_have_normal_moments() -> None:
    draws = random.normal(random.key(5), (400_000,), dtype=torch.float64)
    for power, expected in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs((draws**power).mean().item() - expected) < 0.05
    assert draws.isfinite().all()


@given(seed=st.integers(-(2**62), 2**62), population=st.integers(1, 60), share=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_choose_gives_different_numbers_in_range(seed: int, population: int, share: float) -> None:
    count = int(share * population)
    chosen = random.choose(random.key(seed), population, count).tolist()
    assert len(set(chosen)) == count
    assert all(0 <= number < population for number in chosen)


def test_choose_is_a_stable_sort_cut_short() -> None:
    keys = random.key(torch.arange(64))
    for population, count in ((1, 1), (5, 5), (20, 3), (4112, 5)):
        expected = random.bits(keys, (population,)).argsort(dim=-1, stable=True)[:, :count]
        assert torch.equal(random.choose(keys, population, count), expected)


def test_choose_is_fair() -> None:
    chosen = random.choose(random.key(torch.arange(20_000)), 10, 3)
    counts = torch.bincount(chosen.flatten(), minlength=10).double()
    assert (counts / 6000 - 1).abs().max() < 0.06
    with pytest.raises(ValueError, match="4 different numbers out of 3"):
        random.choose(random.key(0), 3, 4)


def test_integers_cover_their_range_evenly() -> None:
    counts = torch.bincount(random.integers(random.key(2), 7, (70_000,)), minlength=7)
    assert counts.numel() == 7
    assert (counts.double() / 10_000 - 1).abs().max() < 0.05


def test_different_folds_and_seeds_differ() -> None:
    keys = torch.cat([random.key(torch.arange(1000)), random.fold_in(random.key(0), torch.arange(1000))])
    assert keys.unique().numel() == 2000


@pytest.mark.parametrize("population", [7, 6000])  # ranked, and by Floyd's algorithm
def test_choices_are_different_and_uniform_in_every_place(population: int) -> None:
    keys = random.key(torch.arange(20_000))
    chosen = random.choose(keys, population, 5)
    assert int(chosen.min()) >= 0
    assert int(chosen.max()) < population
    assert bool((chosen.sort(-1).values.diff(dim=-1) > 0).all())
    for place in chosen.unbind(-1):
        # The mean of a uniform draw, within five of its standard deviations.
        assert abs(place.double().mean() - (population - 1) / 2) < 5 * population / 12**0.5 / 20_000**0.5


@pytest.mark.parametrize("largest", [50, 6000])
def test_populations_of_several_sizes(largest: int) -> None:
    populations = torch.tensor([3, 10, 50])
    chosen = random.choose(random.key(torch.arange(3)), populations, 3, largest=largest)
    assert bool((chosen < populations[:, None]).all())
    many = random.choose(random.key(torch.arange(2000)), torch.full((2000,), 4), 3, largest=largest)
    assert set(many.flatten().tolist()) == {0, 1, 2, 3}
    assert sorted(chosen[0].tolist()) == [0, 1, 2]


def test_one_size_in_a_tensor_is_one_size() -> None:
    keys = random.key(torch.arange(40))
    assert torch.equal(random.choose(keys, torch.full((40,), 30), 4, largest=64), random.choose(keys, 30, 4))
    with pytest.raises(ValueError, match="need `largest`"):
        random.choose(keys, torch.full((40,), 30), 4)


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 5), (300, 40)])
def test_small_draws_by_numpy_have_the_bits_of_torchs(shape: tuple[int, ...]) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watched(TorchDispatchMode):  # where torch's calls are watched they have to be torch's
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    def draws() -> list[torch.Tensor]:
        found = []
        for seed in (0, -1, 2**63 - 1, -(2**63), torch.arange(-3, 3).reshape(2, 3)):
            keys = random.key(seed)
            folded = [random.fold_in(keys, data) for data in (0, -5, 2**40, torch.tensor(7))]
            found += [keys, *folded, random.bits(keys, shape), random.normal(keys, shape)]
            found += [
                random.uniform(keys.t(), shape, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)
            ]
        return found

    by_numpy = draws()
    with Watched():
        by_torch = draws()
    for one, two in zip(by_numpy, by_torch, strict=True):
        assert one.shape == two.shape
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    keys = torch.arange(4)
    in_vmap = torch.vmap(lambda key: random.bits(random.fold_in(key, 2), shape))(keys)
    assert torch.equal(in_vmap, random.bits(random.fold_in(keys, 2), shape))


def test_a_key_of_several_numbers_is_folded_in_order() -> None:
    index = torch.arange(5)
    assert torch.equal(
        random.key(3, 8, index, 2), random.fold_in(random.fold_in(random.fold_in(random.key(3), 8), index), 2)
    )
    assert torch.equal(random.key(index, 8), random.fold_in(random.key(index), 8))
