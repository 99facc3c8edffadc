"""Any labelled dataset as a source."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from metalearn.errors import PluginError, UsageError
from metalearn.tasks import from_dataset
from metalearn.tasks.checks import batch_findings
from metalearn.tasks.interop import datasets
from metalearn.torchvision_import import torchvision_module

SMALL: dict[str, Any] = {"ways": 2, "shots": 1, "query_shots": 2}


class Items(Dataset):
    """A dataset of the items it is given, which says nothing of their labels."""

    def __init__(self, items: list[Any], **attributes: object) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def numbered(labels: list[Any]) -> list[tuple[torch.Tensor, Any]]:
    """Items whose input is their label's place among the labels, and their own number."""
    kinds = sorted(set(labels), key=str)
    return [(torch.tensor([float(kinds.index(label)), float(i)]), label) for i, label in enumerate(labels)]


LABELS = [index % 10 for index in range(60)]


@pytest.mark.parametrize(
    "dataset",
    [
        Items(numbered(LABELS)),
        Items(numbered(LABELS), targets=LABELS),
        Items(numbered([f"class {label}" for label in LABELS])),
        Subset(Items(numbered(LABELS), labels=np.array(LABELS)), list(range(59, -1, -1))),
        ConcatDataset([Items(numbered(LABELS)[:25]), Items(numbered(LABELS)[25:])]),
        TensorDataset(torch.stack([x for x, _ in numbered(LABELS)]), torch.tensor(LABELS)),
        numbered(LABELS),
    ],
    ids=["items", "targets", "texts", "subset", "concat", "tensors", "list"],
)
def test_every_way_to_hold_labels_gives_the_same_classes(dataset: Any) -> None:
    source = from_dataset(dataset, fractions=(0.5, 0.2, 0.3), **SMALL)
    assert {split: len(names) for split, names in source.class_names.items()} == {"train": 5, "val": 2, "test": 3}
    seen: set[float] = set()
    for split in source.splits:
        episodes = source.episodes(split, range(80))
        assert batch_findings(source, episodes, num_tasks=80) == []
        support, labels = episodes.support
        assert torch.equal(support[..., 0].gather(1, episodes.query[1]), episodes.query[0][..., 0])
        names = [name[-1] for name in source.class_names[split]]
        assert {f"{value:.0f}" for value in support[..., 0].unique().tolist()} == set(names)
        for _ in (labels,):
            seen |= set(support[..., 1].unique().tolist()) | set(episodes.query[0][..., 1].unique().tolist())
    assert seen == set(range(60)), "every item belongs to a split and is drawn"


def test_splits_by_lists_of_names_and_of_numbers() -> None:
    lists = {"train": [0, 1, 2], "test": ["7", 8]}
    source = from_dataset(Items(numbered(LABELS)), splits=lists, **SMALL)
    assert source.class_names == {"train": ("0", "1", "2"), "test": ("7", "8")}
    assert source.protocol()["split_scheme"] == "class lists"
    named = from_dataset(
        Items(numbered(LABELS), classes=[f"n{index}" for index in range(10)]),
        splits={"train": ["n3", "n1"], "test": ["n9", "n0"]},
        **SMALL,
    )
    assert named.class_names["train"] == ("n1", "n3")
    assert set(named.episodes("train", range(20)).support[0][..., 0].unique().tolist()) == {1.0, 3.0}


def test_a_dataset_for_each_split() -> None:
    parts = {"test": Items(numbered([8, 9] * 3)), "train": Items(numbered([0, 1, 2] * 4))}
    source = from_dataset(parts, name="mine", **SMALL)
    assert source.splits == ("train", "test")
    assert (source.name, source.protocol()["split_scheme"]) == ("mine", "a dataset each")
    # The same numbers, but they name other classes.
    named = {
        "train": Items(numbered([0, 1] * 3), classes=["cat", "dog"]),
        "test": Items(numbered([0, 1] * 3), classes=["cow", "fox"]),
    }
    assert from_dataset(named, **SMALL).class_names == {"train": ("cat", "dog"), "test": ("cow", "fox")}


@pytest.mark.parametrize(
    ("x", "shape", "first"),
    [
        (torch.full((3, 4, 5), 51, dtype=torch.uint8), (3, 4, 5), 0.2),
        (torch.full((4, 5), 51, dtype=torch.uint8), (1, 4, 5), 0.2),
        (np.full((6, 5, 3), 51, dtype=np.uint8), (3, 6, 5), 0.2),
        (np.full((3, 4, 5), 51, dtype=np.uint8), (3, 4, 5), 0.2),
        (Image.new("RGB", (5, 4), (51, 0, 0)), (3, 4, 5), 0.2),
        (Image.new("L", (5, 4), 51), (1, 4, 5), 0.2),
        (Image.new("1", (5, 4), 1), (1, 4, 5), 1.0),
        (Image.new("RGBA", (5, 4), (51, 0, 0, 255)), (3, 4, 5), 0.2),
        (Image.new("LA", (5, 4), (51, 255)), (1, 4, 5), 0.2),
        (torch.full((7,), 51.0, dtype=torch.float64), (7,), 51.0),
        (np.full((4, 5, 3), 0.5, dtype=np.float32), (4, 5, 3), 0.5),
    ],
)
def test_images_stay_eight_bit_and_numbers_become_float(x: Any, shape: tuple[int, ...], first: float) -> None:
    source = from_dataset(Items([(x, index % 6) for index in range(18)]), **SMALL, fractions=(0.4, 0.3, 0.3))
    assert source.input_shape == shape
    image = isinstance(x, Image.Image) or "uint8" in str(x.dtype)
    assert source.classes["train"].examples.dtype == (torch.uint8 if image else torch.float32)
    inputs = source.episodes("train", [0]).support[0]
    assert inputs.dtype == torch.float32
    assert float(inputs.flatten()[0]) == pytest.approx(first)


def test_with_declared_labels_only_what_is_used_is_read() -> None:
    read: list[int] = []

    class Counted(Items):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return super().__getitem__(index)

    dataset = Counted(numbered(LABELS), targets=LABELS)
    with pytest.raises(UsageError, match="'77', which is not there"):
        from_dataset(dataset, splits={"train": [0, 77]}, **SMALL)
    assert read == [], "a mistake in the splits is told before anything is read"
    from_dataset(dataset, splits={"train": [0, 1], "test": [2, 3]}, **SMALL)
    assert sorted(read) == [index for index in range(60) if LABELS[index] < 4]


def test_torchvision_datasets() -> None:
    transforms = torchvision_module("transforms.v2")
    fake = torchvision_module("datasets").FakeData(size=60, image_size=(3, 8, 8), num_classes=6)
    source = from_dataset(fake, fractions=(0.4, 0.3, 0.3), **SMALL)
    assert (source.name, source.input_shape) == ("FakeData", (3, 8, 8))
    assert source.classes["train"].examples.dtype == torch.uint8
    tensors = torchvision_module("datasets").FakeData(size=60, image_size=(3, 8, 8), num_classes=6)
    tensors.transform = transforms.Compose([transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True)])
    floats = from_dataset(tensors, fractions=(0.4, 0.3, 0.3), **SMALL)
    assert type(floats.classes["train"].examples) is torch.Tensor
    torch.testing.assert_close(floats.episodes("train", [0]).query[0], source.episodes("train", [0]).query[0])


def test_long_reading_shows_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(datasets, "_MANY", 50)
    from_dataset(Items(numbered(LABELS)), **SMALL, fractions=(0.5, 0.2, 0.3))
    assert "Reading the dataset: 30 of 60 items" in capsys.readouterr().err


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def differing(index: int) -> Items:
    items = numbered(LABELS)
    items[index] = (torch.zeros(3), items[index][1])
    return Items(items)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Stream(), "the dataset is a Stream, expected a map-style"),
        (3, "the dataset is a int, expected a map-style"),
        (Items([]), "the dataset is empty"),
        (Items([torch.zeros(2)] * 9), "Item 0 of the dataset is a Tensor, expected a pair"),
        (Items([(torch.zeros(2),)] * 9), "is a tuple of 1, expected a pair"),
        (Items([{"x": 1, "y": 2}] * 9), "is a dict of 2, expected a pair"),
        (Items([(torch.zeros(2), 0.5)] * 9), r"label of item 0 of the dataset is a float \(0\.5\)"),
        (Items([(torch.zeros(2, dtype=torch.int64), 1)] * 9), r"x of item 0 of the dataset is torch\.int64 numbers"),
        (Items([("text", 1)] * 9), "is a str, expected a PIL image"),
        (Items([(Image.new("F", (2, 2)), 1)] * 9), "is a Image, expected"),
        (Items([(torch.zeros(2, dtype=torch.uint8), 1)] * 9), r"is uint8 \[2\]; 8-bit values are images"),
        (Items([(torch.tensor([1.0, torch.nan]), 1)] * 9), "x of item 0 of the dataset has values that are not finite"),
        (differing(17), r"items of the dataset differ: item \d+ is torch\.float32 \[\d\] and item \d+ torch\.float32"),
        (
            Items(numbered(LABELS), targets=[9 - label for label in LABELS]),
            r"Item \d+ of the dataset has the label \d, but its list of labels says \d",
        ),
        (Items(numbered([3, "3"] * 6)), "two labels that are both called '3'"),
        (Items(numbered([0, 1] * 6)), "There are 2 classes, too few for the splits"),
        ({}, "mapping of datasets must be by train, val and test"),
        ({"trian": Items(numbered(LABELS))}, r"by train, val and test, got \['trian'\]"),
        (
            {"train": Items(numbered([0, 1, 2] * 4)), "test": Items(numbered([2, 3] * 4))},
            "class '2' is in the datasets of 'train' and 'test'",
        ),
    ],
)
def test_datasets_that_are_not_in_order_are_told(dataset: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_dataset(dataset, **SMALL)


def test_the_index_of_an_item_of_another_shape_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"item 17 is .*\[3\] and item \d+ .*\[2\]|item \d+ is .*\[2\] and item 17 .*\[3\]"
    ):
        from_dataset(differing(17), **SMALL)


def test_splits_are_not_for_a_mapping() -> None:
    with pytest.raises(UsageError, match="`splits` is for one dataset"):
        from_dataset({"train": Items(numbered(LABELS))}, splits={"train": [0]}, **SMALL)


def test_more_shots_than_a_class_has_are_told() -> None:
    with pytest.raises(UsageError, match=r"need 8 examples a class, and class '\d' of Items has 6"):
        from_dataset(Items(numbered(LABELS)), ways=2, shots=6, query_shots=2)


class Broken(Items):
    """Its item 7 can not be read."""

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            raise OSError("no such picture")
        return super().__getitem__(index)


@pytest.mark.parametrize("declared", [False, True])
def test_an_item_that_raises_is_named_and_its_own_traceback_kept(declared: bool) -> None:
    labels = [index % 5 for index in range(30)]
    items = Broken(numbered(labels), **({"targets": labels} if declared else {}))
    with pytest.raises(PluginError, match=r"Item 7 of the dataset .* raised OSError: no such picture") as raised:
        from_dataset(items, **SMALL)
    assert isinstance(raised.value.__cause__, OSError)
    assert 'raise OSError("no such picture")' in raised.value.own_traceback
    assert 'datasets.py", line' not in raised.value.own_traceback.replace("test_datasets.py", "")
