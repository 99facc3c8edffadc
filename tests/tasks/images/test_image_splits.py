"""Which classes of a tree of pictures belong to which split."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalearn.errors import UsageError
from metalearn.tasks.images.files import ImageFile, ImageTree
from metalearn.tasks.images.splits import split_classes

NAMES = tuple(f"class{number:03d}" for number in range(100))
LISTS = {"train": ["class005", "class001"], "val": ["class002"], "test": ["class007"]}


def tree(*names: str) -> ImageTree:
    return ImageTree(Path("my.zip"), {name: (ImageFile(f"{name}/0.png", ""),) for name in sorted(names)})


def test_by_seed_every_class_is_in_one_split() -> None:
    chosen = split_classes(tree(*NAMES), seed=3)
    assert {split: len(names) for split, names in chosen.folders.items()} == {"train": 64, "val": 16, "test": 20}
    assert sorted(name for names in chosen.folders.values() for name in names) == list(NAMES)
    assert chosen.names == chosen.folders
    assert chosen.scheme == "random"
    assert chosen.details == {"split_seed": 3, "split_fractions": [0.64, 0.16, 0.2]}
    assert split_classes(tree(*NAMES), seed=3) == chosen
    assert split_classes(tree(*NAMES), seed=4).folders != chosen.folders


def test_the_split_of_a_seed_stays_what_it_is() -> None:
    """Numbers that were published with a seed can be compared for ever."""
    assert split_classes(tree(*NAMES[:8]), seed=0).folders == {
        "train": ("class000", "class001", "class003", "class005", "class006"),
        "val": ("class004",),
        "test": ("class002", "class007"),
    }


@pytest.mark.parametrize(
    ("count", "fractions", "expected"),
    [
        (3, (0.64, 0.16, 0.2), {"train": 1, "val": 1, "test": 1}),
        (10, (0.64, 0.16, 0.2), {"train": 6, "val": 2, "test": 2}),
        (10, (0.5, 0.0, 0.5), {"train": 5, "test": 5}),
        (10, (0, 0, 1), {"test": 10}),
    ],
)
def test_fractions(count: int, fractions: tuple[float, ...], expected: dict[str, int]) -> None:
    chosen = split_classes(tree(*NAMES[:count]), fractions=fractions)
    assert {split: len(names) for split, names in chosen.folders.items()} == expected


def test_by_sub_folders() -> None:
    chosen = split_classes(tree("test/x/cat", "train/dog", "train/cow", "valid/bird"))
    assert chosen.scheme == "sub-folders"
    assert chosen.folders == {"train": ("train/cow", "train/dog"), "val": ("valid/bird",), "test": ("test/x/cat",)}
    assert chosen.names == {"train": ("cow", "dog"), "val": ("bird",), "test": ("x/cat",)}
    assert chosen.details == {}


def test_classes_called_like_a_split_are_classes() -> None:
    assert split_classes(tree("train", "car", "bus")).scheme == "random"


def as_mapping(folder: Path) -> object:
    return LISTS


def as_json(folder: Path) -> object:
    (folder / "lists.json").write_text(json.dumps(LISTS))
    return folder / "lists.json"


def as_yaml(folder: Path) -> object:
    (folder / "lists.yaml").write_text("train: [class005, class001]\nvalidation:\n  - class002\ntest: [class007]\n")
    return str(folder / "lists.yaml")


def as_text(folder: Path) -> object:
    for split, names in LISTS.items():
        (folder / f"{split}.txt").write_text("# classes\n" + "\n\n".join(f"{name} " for name in names))
    return str(folder)


@pytest.mark.parametrize("form", [as_mapping, as_json, as_yaml, as_text])
def test_by_lists(tmp_path: Path, form: Callable[[Path], object]) -> None:
    chosen = split_classes(tree(*NAMES), form(tmp_path))  # type: ignore[arg-type]
    assert chosen.folders == {"train": ("class001", "class005"), "val": ("class002",), "test": ("class007",)}
    assert (chosen.scheme, chosen.details) == ("class lists", {"classes_left_out": 96})


def test_lists_win_over_sub_folders_and_order_is_that_of_the_splits() -> None:
    chosen = split_classes(tree("train/a", "test/b"), {"test": ["train/a"], "train": ["test/b"]})
    assert chosen.folders == {"train": ("test/b",), "test": ("train/a",)}
    assert list(chosen.folders) == ["train", "test"]
    assert chosen.details == {}


def test_numbers_as_names() -> None:
    assert split_classes(tree("0", "1"), {"train": [1], "test": [0]}).folders == {"train": ("1",), "test": ("0",)}  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (NAMES, {"splits": {"train": ["class01"]}}, r"splits.train has class 'class01', .* not there. Did you mean"),
        (("a", "b"), {"splits": {"train": ["zebra"]}}, r"splits.train has class 'zebra', .* Known: 'a', 'b'"),
        (NAMES, {"splits": {"train": ["zebra"]}}, r"There are 100 classes of my.zip, 'class000' first"),
        (
            NAMES,
            {"splits": {"train": ["class001"], "test": ["class001"]}},
            r"The class 'class001' is in the splits 'train' and 'test': .* Keep it in one",
        ),
        (NAMES, {"splits": {"train": ["class001", "class001"]}}, r"splits.train has the class 'class001' twice"),
        (NAMES, {"splits": {"val": ["class001"], "valid": ["class002"]}}, r"`splits` lists 'val' under two names"),
        (NAMES, {"splits": {"trane": ["class001"]}}, r"Unknown split 'trane' in `splits`. Did you mean 'train'"),
        (NAMES, {"splits": {"train": []}}, r"splits.train must be a list of classes of my.zip, .* got \[\]"),
        (NAMES, {"splits": {"train": "class001"}}, r"splits.train must be a list of classes .* got 'class001'"),
        (NAMES, {"splits": {}}, r"`splits` must give a list of classes of my.zip for each split"),
        (NAMES, {"splits": "nowhere.json"}, r"splits=nowhere.json can not be read \(No such file"),
        (("train/cat", "test/cat", "test/dog"), {}, r"The class 'cat' of my.zip is in two splits, 'train' and 'test'"),
        (("val/cat", "valid/cat"), {}, r"The class 'cat' of my.zip is twice in split 'val'"),
        (("train/cat", "test/dog", "bird"), {}, r"folders of splits \(test, train\) and beside them the class 'bird'"),
        (("a", "b"), {}, r"There are 2 classes of my.zip, too few for the splits train, val, test"),
        (NAMES, {"fractions": (0.5, 0.5)}, r"shares of train, val and test, which add up to 1"),
        (NAMES, {"fractions": (0.5, 0.5, 0.5)}, r"shares of train, val and test, which add up to 1"),
        (NAMES, {"fractions": (1.5, -0.5, 0.0)}, r"shares of train, val and test, which add up to 1"),
        (NAMES, {"fractions": 0.5}, r"shares of train, val and test, which add up to 1"),
        (NAMES, {"fractions": ("a", "b", "c")}, r"shares of train, val and test, which add up to 1"),
        (NAMES, {"seed": 1.5}, r"`split_seed` must be a whole number"),
    ],
)
def test_what_can_not_be_split_is_refused(names: tuple[str, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        split_classes(tree(*names), **options)  # type: ignore[arg-type]
    assert str(refused.value).count("\n") <= 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "is not intact"),
        ("a.yaml", "train: [a", "is not intact"),
        ("a.yaml", "- a\n- b", "must hold a list of classes for each of train, val and test"),
        ("a.yaml", "!!python/object/apply:os.getcwd []", "is not intact"),
        ("empty/notes.md", "", "holds no train.txt, val.txt or test.txt"),
    ],
)
def test_a_broken_file_of_lists_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    path = tmp_path / name.partition("/")[0]
    with pytest.raises(UsageError, match=f"splits={path} {message}"):
        split_classes(tree(*NAMES), path)


@pytest.mark.parametrize("tops", [("Train", "Val", "Test"), ("training", "dev", "testing"), ("TRAIN", "valid", "test")])
def test_sub_folders_under_other_names(tops: tuple[str, str, str]) -> None:
    chosen = split_classes(tree(*(f"{top}/c{number}" for number, top in enumerate(tops))))
    assert chosen.names == {"train": ("c0",), "val": ("c1",), "test": ("c2",)}


@pytest.mark.parametrize(
    "tops", [("train_images", "test_images"), ("01-training", "02-eval"), ("all train", "holdout")]
)
def test_a_class_in_two_folders_that_look_like_splits_is_refused(tops: tuple[str, str]) -> None:
    names = [f"{top}/c{number}" for top in tops for number in range(5)]
    with pytest.raises(UsageError, match=r"has the class 'c0' in .* which look like splits"):
        split_classes(tree(*names))
    lists = {"train": names[:2], "test": names[6:8]}
    assert split_classes(tree(*names), lists).scheme == "class lists"


def test_equal_names_in_other_folders_are_classes() -> None:
    """Omniglot's characters are called alike in every alphabet."""
    names = [f"{top}/character{number}" for top in ("Greek", "Latin") for number in range(5)]
    assert sum(map(len, split_classes(tree(*names)).folders.values())) == 10


@pytest.mark.parametrize("splits", [[], ["c00"], 5, ("train", "test")])
def test_splits_of_another_kind_are_refused(splits: Any) -> None:
    with pytest.raises(UsageError, match="`splits` must give the classes of each split"):
        split_classes(tree(*NAMES), splits)
