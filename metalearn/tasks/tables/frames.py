"""Reading the columns of a CSV or parquet file, by polars, with what is wrong named."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metalearn.errors import UsageError, did_you_mean

Array = npt.NDArray[Any]


def read_frame(
    path: Path, *, features: str | Sequence[str] | None, label: str | Sequence[str] | None, group: str | None
) -> tuple[Array, Array, Array | None, tuple[str, ...]]:
    """Features `[row, feature]`, labels, groups and the names of the features: see `read_table` of `reading.py`.

    Raises:
        UsageError: the file is empty or damaged, lacks a column or a value, or a feature is no number.
    """
    frame = _frame(path)
    labels = [label or "label"] if label is None or isinstance(label, str) else list(label)
    named = [*labels, *([] if group is None else [group])]
    columns = [features] if isinstance(features, str) else features
    columns = [name for name in frame.columns if name not in named] if columns is None else list(columns)
    for option, names in (("label", labels), ("group", named[len(labels) :]), ("features", columns)):
        for name in names:
            if name not in frame.columns:
                hint = did_you_mean(str(name), frame.columns)
                raise UsageError(f"{path} has no column {name!r} for task.{option}. {hint}")
    if not columns:
        raise UsageError(f"{path} has no feature column beside {', '.join(map(repr, named))}.")
    if overlap := sorted(set(columns) & set(named)):
        raise UsageError(f"task.features has {overlap[0]!r}, which is the label or the group. Leave it out.")
    if frame.height == 0:
        raise UsageError(f"{path} is empty: it has columns, but no row.")
    numbers = np.empty((frame.height, len(columns)), dtype=np.float64)
    for index, name in enumerate(columns):
        numbers[:, index] = _numbers(path, frame[name])
    marks = [_marks(path, frame[name]) for name in labels]
    values = marks[0] if len(marks) == 1 else np.stack(marks, axis=1)
    groups = None if group is None else _marks(path, frame[group])
    return numbers, values, groups, tuple(columns)


def _frame(path: Path) -> Any:
    try:
        import polars
    except ImportError as error:
        raise UsageError(
            f'Reading {path.suffix} files needs polars: pip install "metalearn-torch[tables]". Or save the table'
            " as .npz."
        ) from error
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return polars.read_parquet(path)
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        # The whole file decides a column's type: a text in its last row must not be a parser's error.
        return polars.read_csv(path, separator=separator, infer_schema_length=None)
    except (polars.exceptions.PolarsError, OSError) as error:
        if isinstance(error, polars.exceptions.NoDataError):
            raise UsageError(f"{path} is empty.") from error
        raise UsageError(f"{path} can not be read: {' '.join(str(error).split())[:200]}") from error


def _numbers(path: Path, column: Any) -> Array:
    import polars

    _refuse_nulls(path, column)
    if column.dtype.is_numeric() or column.dtype == polars.Boolean:
        return np.asarray(column.cast(polars.Float64).to_numpy())
    example = ""
    if column.dtype == polars.String:
        row = int(column.cast(polars.Float64, strict=False).is_null().arg_max() or 0)
        example = f": {column[row]!r} in row {row}"
    raise UsageError(
        f"The column {column.name!r} of {path} is no number ({column.dtype}{example}). Turn it into numbers, or name"
        " the columns to use: task.features=[…]."
    )


def _marks(path: Path, column: Any) -> Array:
    """Labels or groups: texts, whole numbers, or values."""
    _refuse_nulls(path, column)
    if column.dtype.is_numeric():
        return np.asarray(column.to_numpy())
    return np.array([str(value) for value in column.to_list()], dtype=str)


def _refuse_nulls(path: Path, column: Any) -> None:
    if column.null_count():
        row = int(column.is_null().arg_max() or 0)
        raise UsageError(
            f"{path} has no value in row {row} of column {column.name!r} (rows count from 0, after the header). Fill or"
            " drop missing values first."
        )
