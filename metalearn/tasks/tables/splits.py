"""How the rows of a table are split by class or by group, and what the training rows are standardised by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from metalearn.errors import UsageError
from metalearn.tasks.class_splits import split_names
from metalearn.tasks.tables.frames import Array
from metalearn.tasks.tables.reading import Table, chunks


@dataclass(frozen=True)
class Moments:
    """The mean and the standard deviation of each column over some rows, float64 `[*shape]`."""

    mean: Array
    deviation: Array

    def applied(self, values: Array) -> Array:
        """The values with these taken out."""
        standard: Array = (values - self.mean) / self.deviation
        return standard


@dataclass(frozen=True)
class TableSplit:
    """What is split: the number of each row's class or group, their names, and the numbers of each split's."""

    numbers: npt.NDArray[np.int64]
    names: list[str]
    members: dict[str, list[int]]

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """The rows of a split, class by class, and in the table's order within a class."""
        members = self.members[split]
        place = np.full(len(self.names), -1)
        place[members] = np.arange(len(members))
        rows = np.flatnonzero(place[self.numbers] >= 0)
        return rows[np.argsort(place[self.numbers[rows]], kind="stable")]

    def moments(self, values: Array) -> Moments:
        """Those of the training rows."""
        if "train" not in self.members:
            raise UsageError(
                "standardise=true takes the mean of the split 'train', which is not there: give splits.train, or"
                " fractions with a share for it."
            )
        rows, width = np.sort(self.rows("train")), values[0].size
        # From the first row on: what is common to all rows (a date in seconds) leaves no digits for what differs, and
        # a constant column is then exactly 0 throughout.
        origin = values[rows[0]].astype(np.float64)

        def centred(by: Array) -> Iterator[Array]:
            for _, part in chunks(rows, width=width):
                yield values[part].astype(np.float64) - origin - by

        with np.errstate(over="ignore", invalid="ignore"):  # told below, with the column's name
            shift = sum(each.sum(0) / len(rows) for each in centred(np.zeros_like(origin)))
            largest = np.stack([np.abs(each).max(0) for each in centred(shift)]).max(0)
            # In units of the largest, whose square is a number for whatever numbers there are.
            unit = np.where(largest > 0, largest, 1.0)
            deviation = unit * np.sqrt(sum(np.square(each / unit).sum(0) for each in centred(shift)) / len(rows))
            # A constant column tells nothing and stays at 0.
            return Moments(np.asarray(origin + shift), np.where(largest > 0, deviation, 1.0))


def split_table(table: Table, marks: Array, what: str, plural: str, options: Mapping[str, Any]) -> TableSplit:
    """The split of a table by its labels or groups; `options` are those of `split_names`."""
    numbers, names = numbered(table, marks, what)
    number_of = {name: number for number, name in enumerate(names)}
    parts = split_names(names, **options, what=what, plural=plural)
    return TableSplit(numbers, names, {split: [number_of[name] for name in chosen] for split, chosen in parts.items()})


def numbered(table: Table, marks: Array, what: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The number of each row's class or group, and their names in order: numbers by size, texts by letters."""
    if marks.ndim == 2 and marks.shape[1] == 1:
        marks = marks[:, 0]
    where = f"The {'labels' if what == 'class' else 'groups'} of {table.name}"
    if marks.ndim != 1:
        raise UsageError(f"{where} must be one a row, got shape {list(marks.shape)}.")
    if marks.dtype.kind == "f":
        values = "; values are for kind=regression, with groups" if what == "class" else ""
        raise UsageError(f"{where} are real numbers ({marks[0]} in row 0): write whole numbers or texts{values}.")
    if marks.dtype.kind not in "iubUS":
        raise UsageError(f"{where} must be texts or whole numbers, got {marks.dtype}.")
    if marks.dtype.kind == "S":
        marks = np.char.decode(marks, "utf-8")
    found, numbers = np.unique(marks, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64), [str(name) for name in found.tolist()]
