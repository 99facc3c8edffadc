"""Reading a table: features, labels and groups out of NumPy files, CSV or parquet, with what is wrong named."""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.errors import UsageError, did_you_mean
from metalearn.tasks.base import check_path
from metalearn.tasks.tables.frames import Array, read_frame

_DAMAGED = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile)
_CHUNK = 1 << 22  # elements that are looked at together: a mapped file need not fit into memory


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers with their labels.

    Attributes:
        features: `[row, feature]`, or `[row, *shape]`, of any type of numbers. It may be memory-mapped.
        labels: classes `[row]`, texts or whole numbers; or values `[row]` or `[row, output]`. Lists and whatever else
            NumPy takes for an array will do for all three.
        groups: what each row belongs to, `[row]`, or `None`.
        name: what to call the table in a sentence: its file.
        columns: the names of the features, or empty.

    Raises:
        UsageError: there is no row, the numbers of rows differ, or a number is missing or infinite.
    """

    features: Array
    labels: Array
    groups: Array | None = None
    name: str = "the table"
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("features", "labels", "groups"):
            object.__setattr__(self, name, _as_array(getattr(self, name)))
        if self.features.ndim < 2 or self.features.dtype.kind not in "fiub":
            raise UsageError(
                f"The features of {self.name} must be numbers [row, feature], got {self.features.dtype} of shape"
                f" {list(self.features.shape)}."
            )
        rows = {"features": len(self.features), "labels": len(self.labels)}
        rows |= {} if self.groups is None else {"groups": len(self.groups)}
        if len(set(rows.values())) > 1:
            raise UsageError(
                f"{self.name} has {', '.join(f'{n} {what}' for what, n in rows.items())}: rows must match."
            )
        if not rows["features"] or not self.features[0].size:
            raise UsageError(f"{self.name} is empty: it has {list(self.features.shape)} features [row, feature].")
        self._refuse_gaps()

    def column(self, index: tuple[int, ...]) -> str:
        """What to call a feature in a sentence."""
        return repr(self.columns[index[0]]) if self.columns else ", ".join(map(str, index))

    def _refuse_gaps(self) -> None:
        parts = [("column", self.features), ("labels", self.labels), ("groups", self.groups)]
        for what, values in parts:
            if values is None or values.dtype.kind != "f":
                continue
            for start, block in chunks(values):
                bad = ~np.isfinite(block)
                if not bad.any():
                    continue
                row, *index = (int(each[0]) for each in np.nonzero(bad))
                where = f"column {self.column(tuple(index))}" if what == "column" else f"the {what}"
                raise UsageError(
                    f"{self.name} has {block[bad][0]} in row {start + row} of {where} (rows count from 0)."
                    " Fill or drop missing values first."
                )


def read_table(
    root: str | Path, *, features: str | Sequence[str] | None, label: str | Sequence[str] | None, group: str | None
) -> Table:
    """The table in a file.

    Args:
        root: a `.csv`, `.tsv` or `.parquet` file; an `.npz` file with the arrays `features`, `labels` and maybe
            `groups`; or a folder with `features.npy` (which is memory-mapped), `labels.npy` and maybe `groups.npy`, or
            its `features.npy`.
        features: the feature columns; `None` for all but the label's and the group's. Of an `.npz`, the array's name.
        label: the label's column (`"label"` by default), or several for values of several outputs; an array's name.
        group: the group's column, if there is one; an array's name.

    Raises:
        UsageError: the file is not there, is empty or damaged, lacks a column, or holds what is no number.
    """
    path = check_path("root", root)
    if path.name == "features.npy" and path.is_file():
        path = path.parent
    if path.is_dir():
        return _read_npy_folder(path, features=features, label=label, group=group)
    if path.suffix.lower() not in _READERS:
        known = ", ".join(_READERS)
        raise UsageError(f"{path} is not a table that can be read: expected {known}, or a folder with features.npy.")
    if not path.is_file():
        raise UsageError(f"There is no file {path}. Give the table as task.root=FILE.")
    return _READERS[path.suffix.lower()](path, features=features, label=label, group=group)


def _as_array(values: Any) -> Array | None:
    if values is None:
        return None
    array: Array = np.asanyarray(values)  # a mapped one stays mapped
    is_text = array.dtype.kind == "O" and all(isinstance(each, str) for each in array.flat)
    return array.astype(str) if is_text else array


def chunks(values: Array, *, width: int | None = None) -> Iterator[tuple[int, Array]]:
    """The first row's number and some rows of an array, one piece after another.

    Args:
        values: `[row, ...]`.
        width: how many elements a row stands for, by default those that it has.
    """
    step = max(1, _CHUNK // max(1, values[:1].size if width is None else width))
    for start in range(0, len(values), step):
        yield start, values[start : start + step]


def _read_npz(path: Path, *, features: Any, label: Any, group: Any) -> Table:
    try:
        # np.load leaves a file open that it opened and could not read.
        with path.open("rb") as file, zipfile.ZipFile(file) as members:
            found = {name: np.load(members.open(name), allow_pickle=False) for name in members.namelist()}
    except _DAMAGED as error:
        raise UsageError(_unreadable(path, error)) from error
    arrays = {name.removesuffix(".npy"): values for name, values in found.items()}
    wanted = {"features": features or "features", "labels": label or "labels", "groups": group}
    if wanted["groups"] is None and "groups" in arrays:
        wanted["groups"] = "groups"
    for what, name in wanted.items():
        if name is not None and name not in arrays:
            fix = f"np.savez({path.name!r}, features=…, labels=…)"
            raise UsageError(f"{path} has no array {name!r} of {what}. {did_you_mean(str(name), arrays)} Write {fix}.")
    groups = None if wanted["groups"] is None else arrays[wanted["groups"]]
    return Table(arrays[wanted["features"]], arrays[wanted["labels"]], groups, str(path))


def _read_npy_folder(path: Path, *, features: Any, label: Any, group: Any) -> Table:
    for option, value in (("features", features), ("label", label), ("group", group)):
        if value is not None:
            raise UsageError(f"task.{option}={value}: the files of {path} are features.npy, labels.npy and groups.npy.")
    found: dict[str, Array] = {}
    for name in ("features", "labels", "groups"):
        file = path / f"{name}.npy"
        if not file.is_file():
            if name == "groups":
                continue
            raise UsageError(f"{path} has no {file.name}. Expected features.npy, labels.npy and maybe groups.npy.")
        try:
            # "c": nothing is ever written to the file, and torch takes the array without a warning.
            found[name] = np.load(file, mmap_mode="c" if name == "features" else None, allow_pickle=False)
        except _DAMAGED as error:
            raise UsageError(_unreadable(file, error)) from error
    return Table(found["features"], found["labels"], found.get("groups"), str(path))


def _unreadable(path: Path, error: Exception) -> str:
    if "allow_pickle" in str(error) or "Object arrays" in str(error):
        return f"{path} holds Python objects. Save texts as np.array(texts, dtype=str), and numbers as numbers."
    return f"{path} is not an intact NumPy file ({' '.join(str(error).split()) or type(error).__name__})."


def _read_frame(path: Path, *, features: Any, label: Any, group: Any) -> Table:
    numbers, labels, groups, columns = read_frame(path, features=features, label=label, group=group)
    return Table(numbers, labels, groups, str(path), columns)


_READERS: Mapping[str, Callable[..., Table]] = {
    ".npz": _read_npz,
    ".csv": _read_frame,
    ".tsv": _read_frame,
    ".parquet": _read_frame,
    ".pq": _read_frame,
}
