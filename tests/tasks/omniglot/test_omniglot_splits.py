"""The carried splits against the published lists, and the schemes against each other."""

from pathlib import Path

import pytest

from metalearn.errors import UsageError
from metalearn.tasks.omniglot.splits import SCHEMES, character_names, characters_by_split, facts


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_vinyals_is_the_published_list_and_a_character_goes_with_its_four_rotations(
    omniglot_root: Path, split: str
) -> None:
    lines = (omniglot_root.parent / "splits" / "omniglot_vinyals" / f"{split}.txt").read_text().split()
    names = [character_names()[index] for index in characters_by_split("vinyals")[split]]
    expected = {f"{name}/rot{turn:03d}" for name in names for turn in (0, 90, 180, 270)}
    assert set(lines) == expected
    assert len(lines) == len(expected)


@pytest.mark.parametrize(
    ("scheme", "counts"), [("vinyals", (1028, 172, 423)), ("lake", (813, 151, 659)), ("random", (1100, 100, 423))]
)
def test_every_character_is_in_exactly_one_split(scheme: str, counts: tuple[int, ...]) -> None:
    splits = characters_by_split(scheme, seed=5)
    assert tuple(len(chosen) for chosen in splits.values()) == counts
    assert tuple(splits) == ("train", "val", "test")
    assert sorted(index for chosen in splits.values() for index in chosen) == list(range(1623))


def test_lake_shares_no_alphabet_between_splits_and_tests_on_the_evaluation_set() -> None:
    alphabets = {
        split: {character_names()[index].split("/")[0] for index in chosen}
        for split, chosen in characters_by_split("lake").items()
    }
    assert {split: len(found) for split, found in alphabets.items()} == {"train": 25, "val": 5, "test": 20}
    assert alphabets["train"] | alphabets["val"] == set(facts()["background"])
    assert not alphabets["test"] & set(facts()["background"])


def test_random_is_fixed_by_its_seed() -> None:
    assert characters_by_split("random", seed=1) == characters_by_split("random", seed=1)
    assert characters_by_split("random", seed=1) != characters_by_split("random", seed=2)


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Unknown Omniglot split 'vinylas'. Did you mean 'vinyals'\?"):
        characters_by_split("vinylas")
    assert set(SCHEMES) == {"vinyals", "lake", "random"}
