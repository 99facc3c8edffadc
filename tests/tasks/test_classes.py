"""Classes in one tensor: rows of their own, or rows of a tensor that several splits share."""

import pytest
import torch

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.tasks import ClassificationSource
from metalearn.tasks.classes import Classes

ROWS = torch.arange(12 * 2, dtype=torch.float32).reshape(12, 2)


def some(first: list[int], counts: list[int]) -> Classes:
    return Classes(ROWS, torch.tensor(counts), tuple(f"from {row}" for row in first), torch.tensor(first))


def test_classes_fill_their_examples_in_order() -> None:
    classes = Classes(ROWS, torch.tensor([5, 3, 4]), ("a", "b", "c"))
    assert classes.starts.tolist() == [0, 5, 8]
    assert (classes.shape, classes.name(1), Classes.of(ROWS[None]).name(0)) == ((2,), "'b'", "number 0")


def test_classes_that_share_examples_start_where_they_are_told() -> None:
    classes = some([8, 1], [4, 3])
    assert classes.starts.tolist() == [8, 1]
    assert classes.to("cpu").starts.tolist() == [8, 1]
    assert classes.examples is ROWS


def test_a_grid_is_of_the_classes_rows() -> None:
    assert torch.equal(Classes.of(ROWS.reshape(4, 3, 2)).grid(), ROWS.reshape(4, 3, 2))
    assert torch.equal(some([9, 0, 4], [3, 3, 3]).grid(), torch.stack([ROWS[9:12], ROWS[0:3], ROWS[4:7]]))


@pytest.mark.parametrize("first", [None, torch.tensor([0, 5])])
def test_classes_of_unequal_size_are_no_grid(first: torch.Tensor | None) -> None:
    with pytest.raises(UsageError, match="The classes have 5 … 7 examples, so they are no grid"):
        Classes(ROWS, torch.tensor([5, 7]), first=first).grid()


def test_episodes_of_shared_examples_are_those_of_copies() -> None:
    first, counts = [7, 0, 3], [5, 3, 4]
    copies = torch.cat([ROWS[start : start + count] for start, count in zip(first, counts, strict=True)])
    episodes = [
        ClassificationSource(name="rows", classes={"test": classes}, ways=2, shots=1, query_shots=2).episodes(
            "test", range(30)
        )
        for classes in (some(first, counts), Classes(copies, torch.tensor(counts)))
    ]
    for one, other in zip(tree.tensors(episodes[0]), tree.tensors(episodes[1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("examples", "counts", "names", "message"),
    [
        (ROWS.double(), [12], (), r"must be uint8 \(images\) or float32, got torch.float64"),
        (ROWS, [5, 6], (), "The classes count 11 examples, but there are 12"),
        (ROWS, [5, 7], ("a",), "There are 1 names for 2 classes"),
    ],
)
def test_what_does_not_fit_is_refused(
    examples: torch.Tensor, counts: list[int], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Classes(examples, torch.tensor(counts), names)
