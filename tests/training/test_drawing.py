"""Meta-batches drawn at once are those drawn one by one."""

from typing import Any

import pytest
import torch

from metalearn import tree
from metalearn.tasks import Regression, Sinusoid
from metalearn.training.drawing import MetaBatches, ahead_of
from metalearn.training.guard import guard


class Counted(Sinusoid):
    ahead = 3

    def __init__(self, **options: Any) -> None:
        self.asked: list[list[int]] = []
        super().__init__(**options)

    def episodes(self, split, indices, *, seed=0):
        self.asked.append(list(indices))
        return super().episodes(split, indices, seed=seed)


class Other(Sinusoid):
    def episodes(self, split, indices, *, seed=0):
        return super().episodes(split, indices, seed=seed)


@pytest.mark.parametrize("source", [Sinusoid(), Sinusoid(shots=(2, 6))], ids=["fixed", "padded"])
def test_the_bits_are_the_same(source) -> None:
    batches = MetaBatches(guard(source), 5, seed=3)
    for batch in (0, 0, 1, 2, 20, 3):
        found = batches(batch, last=40)
        wanted = source.episodes("train", range(5 * batch, 5 * batch + 5), seed=3)
        pairs = list(zip(tree.tensors(found), tree.tensors(wanted), strict=True))
        assert all(torch.equal(one, two) and one.dtype == two.dtype for one, two in pairs)
        assert all(one.is_contiguous() and one.storage_offset() == 0 for one, _ in pairs)


def test_as_many_are_drawn_as_the_source_says_and_the_run_needs() -> None:
    source = Counted()
    batches = MetaBatches(guard(source), 2, seed=0)
    source.asked.clear()
    for batch in range(5):
        batches(batch, last=4)
    assert [asked[0] for asked in source.asked] == [0, 6]
    assert [len(asked) for asked in source.asked] == [6, 4]
    batches(7)
    assert source.asked[-1] == [14, 15]


def test_episodes_of_a_subclass_are_drawn_one_by_one() -> None:
    assert ahead_of(Sinusoid()) == Sinusoid.ahead > 1
    assert ahead_of(Other()) == 1
    assert ahead_of(Counted()) == 3
    assert ahead_of(Regression()) == 1
