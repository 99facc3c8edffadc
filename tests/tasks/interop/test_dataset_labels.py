"""Labels that datasets declare, and labels of items."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from metalearn.errors import UsageError
from metalearn.tasks.interop.dataset_labels import class_name, declared_classes, declared_labels, label_of


class Declaring(Dataset):
    """A dataset of five items with whatever attributes it is given."""

    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        raise AssertionError("labels that are declared are not read from the items")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"targets": [3, 1, 4, 1, 5]}, [3, 1, 4, 1, 5]),
        ({"labels": np.array([3, 1, 4, 1, 5])}, [3, 1, 4, 1, 5]),
        ({"targets": torch.tensor([3, 1, 4, 1, 5])}, [3, 1, 4, 1, 5]),
        ({"targets": list("abcab")}, list("abcab")),
        ({"targets": [3, 1]}, None),  # of something else
        ({"targets": "abcde"}, None),
        ({"targets": [3, 1, 4, 1, 5], "target_transform": abs}, None),
        ({}, None),
    ],
)
def test_declared_labels_through_subset_and_concat(
    attributes: dict[str, object], expected: list[object] | None
) -> None:
    dataset = Declaring(**attributes)
    assert declared_labels(dataset) == expected
    part = Subset(dataset, [4, 0])
    both = ConcatDataset([dataset, part])
    if expected is None:
        assert declared_labels(part) is declared_labels(both) is None
    else:
        assert declared_labels(part) == [expected[4], expected[0]]
        assert declared_labels(both) == [*expected, expected[4], expected[0]]


def test_a_tensor_dataset_of_a_pair_declares_its_second() -> None:
    assert declared_labels(TensorDataset(torch.zeros(2, 1), torch.tensor([7, 8]))) == [7, 8]
    assert declared_labels(TensorDataset(torch.zeros(2, 1))) is None


def test_names_of_classes() -> None:
    named, other = Declaring(classes=["cat", "dog"]), Declaring(classes=["cow", "dog"])
    assert declared_classes(Subset(named, [0])) == ["cat", "dog"]
    assert declared_classes(ConcatDataset([named, Subset(named, [1])])) == ["cat", "dog"]
    assert declared_classes(Declaring(classes=["cat", "cat"])) is None
    assert declared_classes(Declaring()) is None
    with pytest.raises(UsageError, match="other `classes`, so that a label means another class in each"):
        declared_classes(ConcatDataset([named, other]))
    assert [class_name(label, ["cat", "dog"]) for label in (1, 2, -1, "cow")] == ["dog", "2", "-1", "cow"]
    assert class_name(1, None) == "1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[(3, 3), (-1, -1), (True, 1), ("a", "a"), (np.int32(3), 3), (np.str_("a"), "a")],
        *[(torch.tensor(3), 3), (torch.tensor([3]), 3), (np.array([3]), 3), (np.array(3), 3)],
    ],
)
def test_labels_are_whole_numbers_or_texts(value: object, expected: object) -> None:
    found = label_of(value, 0, "it")
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, r"label of item 7 of it is a float \(0\.5\), expected a whole number or a text\.$"),
        (torch.tensor(1.0), "is a Tensor of shape"),
        (None, "is a NoneType"),
        (torch.eye(3)[0], r"is a Tensor of shape \[3\].*argmax"),
        (np.eye(3)[0], r"is a ndarray of shape \[3\].*argmax"),
        ([1], "is a list"),
        (SimpleNamespace(), "is a SimpleNamespace"),
    ],
)
def test_other_labels_are_told(value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        label_of(value, 7, "it")
