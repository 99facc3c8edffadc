"""Splits of names by lists and by a seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalearn.errors import UsageError
from metalearn.tasks.class_splits import split_names

NAMES = [f"c{index}" for index in range(25)]


@given(st.integers(3, 200), st.integers(0, 5), st.sampled_from([(0.64, 0.16, 0.2), (0.98, 0.01, 0.01), (0.5, 0, 0.5)]))
def test_a_shuffled_split_is_a_partition_in_the_shares(count: int, seed: int, fractions: tuple[float, ...]) -> None:
    names = [str(index) for index in range(count)]
    found = split_names(names, split_seed=seed, fractions=fractions)
    assert sorted(name for part in found.values() for name in part) == sorted(names)
    for split, share in zip(("train", "val", "test"), fractions, strict=True):
        assert (split in found) == (share > 0)
        if share:
            assert len(found[split]) >= 1
            assert abs(len(found[split]) - share * count) <= 2
            assert found[split] == sorted(found[split], key=int), "in the order of the names"


def test_the_seed_alone_decides() -> None:
    assert split_names(NAMES, split_seed=1) == split_names(NAMES, split_seed=1)
    assert split_names(NAMES, split_seed=1) != split_names(NAMES, split_seed=2)
    assert {split: len(part) for split, part in split_names(NAMES).items()} == {"train": 16, "val": 4, "test": 5}


def test_lists_are_taken_as_they_are_and_numbers_as_names() -> None:
    found = split_names(["1", "2", "10", "20"], splits={"test": [20], "train": [10, "1"]})
    assert found == {"train": ["1", "10"], "test": ["20"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": {"trian": ["c1"]}}, "Unknown split 'trian' in `splits`. Did you mean 'train'"),
        ({"splits": {"train": ["c1", "c2"], "test": ["c2"]}}, "'c2' is in the splits 'train' and 'test'"),
        ({"splits": {"train": ["c1", "c1"]}}, "splits.train has the class 'c1' twice"),
        ({"splits": {"train": ["c1", "d1"]}}, r"splits\.train has class 'd1', which is not there\. Known: 'c0'"),
        ({"splits": {"train": []}}, "must be a list of classes"),
        ({"splits": {"train": "c1"}}, "must be a list of classes"),
        ({"splits": ["c1"]}, "must give a list of classes for each split"),
        ({"fractions": [0.5, 0.5]}, "shares of train, val and test"),
        ({"fractions": [0.5, 0.2, 0.2]}, "add up to 1"),
        ({"fractions": [1.2, -0.4, 0.2]}, "add up to 1"),
        ({"fractions": [0, 0, 0]}, "add up to 1"),
        ({"fractions": "abc"}, "add up to 1"),
        ({"split_seed": "x"}, "`split_seed` must be a whole number"),
    ],
)
def test_bad_splits_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split_names(NAMES, **options)  # type: ignore[arg-type]


def test_too_few_to_split() -> None:
    with pytest.raises(UsageError, match="There are 2 groups, too few for the splits train, val, test"):
        split_names(["a", "b"], what="group", plural="groups")
    assert split_names(["a", "b"], fractions=(0.5, 0, 0.5)).keys() == {"train", "test"}


def test_all_can_be_for_testing() -> None:
    """For what another source was trained on."""
    assert split_names(["a", "b"], fractions=(0, 0, 1)) == {"test": ["a", "b"]}
