"""Reading the columns of a CSV or parquet file, by polars, with what is wrong named."""

import re
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
    labels = ["label"] if label is None else column_names("label", label)
    named = [*labels, *([] if group is None else [group])]
    frame = _frame(path, as_text=named)
    if features is None:
        columns = [name for name in frame.columns if name not in named]
        _refuse_index(path, columns)
    else:
        columns = column_names("features", features)
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


def column_names(option: str, names: str | Sequence[str]) -> list[str]:
    """The names of columns that an option gives, one or several.

    Raises:
        UsageError: they are no texts, or one is there twice.
    """
    listed = [names] if isinstance(names, str) else list(names) if isinstance(names, Sequence) else [names]
    if not listed or not all(isinstance(name, str) for name in listed):
        raise UsageError(f"task.{option} must be the name of a column, or a list of such, got {names!r}.")
    if twice := [name for name in listed if listed.count(name) > 1]:
        raise UsageError(f"task.{option} has the column {twice[0]!r} twice. Leave one out.")
    return listed


def _refuse_index(path: Path, columns: Sequence[str]) -> None:
    """Refuses the row numbers that pandas writes, which tell where in the file a row stood, and so often its label."""
    for name in columns:
        if not name.strip() or name == "Unnamed: 0" or name.startswith("__index_level_"):
            raise UsageError(
                f"{path} has the column {name!r}, which is how pandas writes its index: no feature, but often the order"
                " of the labels. Save the table with index=False, or name the columns to use: task.features=[…]."
            )


def _separator(path: Path) -> str:
    """What stands between the columns: a tab in a .tsv, else a comma, or what the header has instead of commas."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8", errors="replace") as lines:
        header = lines.readline()
    return next((mark for mark in ",;\t|" if mark in header), ",")


def _frame(path: Path, *, as_text: Sequence[str]) -> Any:
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
        # The whole file decides a column's type: a text in its last row must not be a parser's error. Labels and
        # groups are read as they stand, because 003 and 3 are two names.
        texts = dict.fromkeys(as_text, polars.String)
        return polars.read_csv(path, separator=_separator(path), infer_schema_length=None, schema_overrides=texts)
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
        numbers = column.cast(polars.Float64, strict=False)
        if not numbers.null_count():  # numbers and "nan", which whoever looks for gaps tells with its row
            return np.asarray(numbers.to_numpy())
        row = int(numbers.is_null().arg_max() or 0)
        example = f": {column[row]!r} in row {row}"
        if re.fullmatch(r"\s*-?\d+,\d+\s*", column[row]):
            example += ", with a decimal comma: write points"
    raise UsageError(
        f"The column {column.name!r} of {path} is no number ({column.dtype}{example}). Turn it into numbers, or name"
        " the columns to use: task.features=[…]."
    )


def _marks(path: Path, column: Any) -> Array:
    """Labels or groups: whole numbers, values, or texts; digits that a number would not give back stay texts."""
    import polars

    _refuse_nulls(path, column)
    if column.dtype == polars.String:
        if column.str.contains(r"^[+-]?[0-9]+$").all():
            numbers = column.cast(polars.Int64, strict=False)
            if not numbers.null_count() and (numbers.cast(polars.String) == column).all():
                return np.asarray(numbers.to_numpy())
        elif not (values := column.cast(polars.Float64, strict=False)).null_count():
            return np.asarray(values.to_numpy())
    elif column.dtype.is_integer() and column.dtype not in (polars.Int128, getattr(polars, "UInt128", None)):
        return np.asarray(column.to_numpy())
    elif column.dtype.is_numeric() and not column.dtype.is_integer():
        return np.asarray(column.cast(polars.Float64).to_numpy())  # decimals are objects to NumPy
    return np.array([str(value) for value in column.to_list()], dtype=str)


def _refuse_nulls(path: Path, column: Any) -> None:
    if column.null_count():
        row = int(column.is_null().arg_max() or 0)
        raise UsageError(
            f"{path} has no value in row {row} of column {column.name!r} (rows count from 0, after the header). Fill or"
            " drop missing values first."
        )
