"""Families of functions: mixtures of them, and their ranges."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks import FamilyMixture, FunctionFamily, GaussianProcess, SineWaves, UserFunction
from metalearn.tasks.functions.families import checked_range, family_card, uniform

KEYS = random.key(torch.arange(2000))
FAMILIES = [
    SineWaves(),
    GaussianProcess("matern52", length_scale=(0.5, 2.0), scale=(1.0, 3.0)),
    UserFunction(lambda x, slope: slope * x, {"slope": (-1, 1)}),
    FamilyMixture((SineWaves(amplitude=1.0), GaussianProcess()), (1, 2)),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_a_family_is_a_function_of_the_key_and_of_x_alone(family: FunctionFamily) -> None:
    assert isinstance(family, FunctionFamily)
    keys = KEYS[:6]
    x = torch.linspace(-5, 5, 7)[:, None].expand(6, 7, 1)
    values = family.values(family.draw(keys), x)
    assert values.shape == (6, 7, 1)
    assert values.dtype == torch.float32
    some = family.values(family.draw(keys[[4, 1]]), x[:2])
    torch.testing.assert_close(some, values[[4, 1]])
    point = family.values(family.draw(keys), x[:, 3:4])
    torch.testing.assert_close(point, values[:, 3:4])
    assert len(values[:, 0].unique()) == 6, "every task has its own function"


def test_a_mixture_draws_its_families_by_weight_and_each_as_it_is_alone() -> None:
    low, high = SineWaves(amplitude=1.0, phase=math.pi / 2), SineWaves(amplitude=9.0, phase=math.pi / 2)
    mixture = FamilyMixture((low, high, low), weights=(3, 1, 0))
    values = mixture.values(mixture.draw(KEYS), torch.zeros(len(KEYS), 1, 1)).flatten().abs()
    assert set(values.round().tolist()) == {1.0, 9.0}
    assert float((values > 5).double().mean()) == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / len(KEYS)))
    assert int(mixture.draw(KEYS)[0].max()) == 1, "a weight of 0 is never drawn"


def test_the_members_of_a_mixture_do_not_share_their_draws() -> None:
    wave = SineWaves(amplitude=(0.0, 1.0), phase=math.pi / 2)
    _, (one, two) = FamilyMixture((wave, wave)).draw(KEYS)
    pair = torch.stack([one["amplitude"].flatten(), two["amplitude"].flatten()])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(len(KEYS))


@dataclass(frozen=True)
class Two:
    def draw(self, keys: Tensor) -> Tensor:
        return keys

    def values(self, drawn: Tensor, x: Tensor) -> Tensor:
        return x.expand(*x.shape[:2], 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "as many weights as families, got 0 for 0"),
        (((SineWaves(),), (1, 2)), "got 2 for 1"),
        (((SineWaves(), SineWaves()), (0, 0)), "not all 0"),
        (((SineWaves(), SineWaves()), (1, -1)), r"at least 0, not all 0, got \[1, -1\]"),
        (((SineWaves(), SineWaves()), (1, math.nan)), "must be numbers"),
    ],
)
def test_bad_mixtures_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FamilyMixture(*arguments)  # type: ignore[arg-type]


def test_families_of_several_widths_do_not_mix() -> None:
    mixture = FamilyMixture((SineWaves(), Two()))
    with pytest.raises(UsageError, match=r"one number of outputs, got \[1, 2\]"):
        mixture.values(mixture.draw(KEYS[:3]), torch.zeros(3, 2, 1))


def test_a_sinusoid_has_one_input() -> None:
    with pytest.raises(UsageError, match=r"function of one input, got 2\. Leave input_dim at 1"):
        SineWaves().values(SineWaves().draw(KEYS[:3]), torch.zeros(3, 4, 2))


def test_ranges() -> None:
    assert checked_range("a", 2) == (2.0, 2.0)
    assert checked_range("a", [1, 3]) == (1.0, 3.0)
    drawn = uniform(KEYS, (2.0, 3.0), (4,))
    assert drawn.shape == (2000, 4)
    assert 2 <= float(drawn.min()) < 2.01
    assert 2.99 < float(drawn.max()) <= 3
    for bad in ("ab", None, True, [1], [2, 1], [math.nan, 1], [0, math.inf]):
        with pytest.raises(UsageError, match="`a` must be two numbers in order"):
            checked_range("a", bad)
    with pytest.raises(UsageError, match="`a` must be above 0"):
        checked_range("a", [0, 1], above=0)


def test_cards_are_plain_data() -> None:
    card = family_card(FamilyMixture((SineWaves(phase=1.0), Two()), (1, 2)))
    assert card == {
        "family": "mixture",
        "families": [{"family": "sinusoid", "amplitude": [0.1, 5.0], "phase": [1.0, 1.0]}, {"family": "Two"}],
        "weights": [1.0, 2.0],
    }
