"""Few-shot learning on a table: NumPy arrays, CSV or parquet, with labels, and groups where each one is a task."""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.tasks.base import TaskSource
from metalearn.tasks.class_splits import FRACTIONS
from metalearn.tasks.classes import Classes
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.counts import Count
from metalearn.tasks.tables.frames import Array, column_names
from metalearn.tasks.tables.grouped import GroupedSource
from metalearn.tasks.tables.reading import Table, chunks, read_table
from metalearn.tasks.tables.splits import Moments, numbered, split_table
from metalearn.types import Episodes

_STANDARD = "mean 0 and standard deviation 1 on the training split"
_OF_TORCH = {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"}


class Arrays(TaskSource):
    """Episodes out of the rows of a table.

    Without groups the labels are classes, and the classes are split: an episode draws `ways` classes of its split, and
    rows of each (`ClassificationSource`). With groups each group is a task, and the groups are split: an episode draws
    a group, and rows of it (`GroupedSource`), of each class that it has, or of the group in a regression.

    Attributes:
        source: what draws the episodes, a `ClassificationSource` or a `GroupedSource`.
        class_names: the names of the classes by split, without groups.
        group_names: the names of the groups by split, with groups.
        label_names: the names of the classes, in the order of the outputs, with groups in a classification.
        standardisation: by what inputs and a regression's targets were standardised, for whoever uses a trained model:
            `{"inputs": {"mean", "std"}, "targets": …}`; `None` where they were not.

    Example:
        >>> table = Table(np.random.randn(200, 3), np.arange(200) % 20)
        >>> source = Arrays(table, ways=3, shots=2, query_shots=4)
        >>> source.episodes("train", range(25)).support[0].shape, source.class_names["test"]
        (torch.Size([25, 6, 3]), ('2', '7', '8', '18'))
    """

    name = "arrays"

    def __init__(
        self,
        root: str | Path | Table | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
        features: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        group: str | None = None,
        ways: Count | None = None,
        shots: Count = 5,
        query_shots: int = 10,
        imbalanced: bool = False,
        splits: Mapping[str, Any] | None = None,
        split_seed: int = 0,
        fractions: Sequence[float] = FRACTIONS,
        standardise: bool = True,
        on_small_group: str = "error",
    ) -> None:
        """Read the table and split it.

        Args:
            root: the file (`metalearn.tasks.tables.reading.read_table`), or a `Table` of arrays.
            kind: whether labels are classes or values; values need groups.
            features: the feature columns; `None` for all but the label's and the group's.
            label: the label's column, `"label"` by default; several for a regression of several outputs.
            group: the group's column; `None` for none. NumPy files have groups if they have an array `groups`.
            ways: classes in an episode without groups, 5 by default.
            shots: support rows a class (a group, in a regression), or the lowest and highest number.
            query_shots: query rows a class (a group, in a regression).
            imbalanced: without groups, whether each class of an episode draws its own shots from the range.
            splits: the classes (or groups) of each of train, val and test; `None` shuffles them.
            split_seed: what they are shuffled by.
            fractions: the shares of train, val and test when shuffled.
            standardise: whether features, and a regression's targets, are shifted and scaled to mean 0 and standard
                deviation 1 on the training split. Without it, a memory-mapped file whose rows lie class by class in the
                order of the splits stays mapped also without groups; with groups it always does.
            on_small_group: with groups, `"error"` or `"skip"` for those that have too few rows.

        Raises:
            UsageError: for a table that can not be read or has gaps, labels that are no classes, a class or group in
                two splits, and episodes larger than the data.
        """
        if root is None:
            raise UsageError("`root` is missing: set task.root=my_table.csv (or .parquet, .npz, a folder of .npy).")
        _check_options(features, label, group)
        table = root if isinstance(root, Table) else read_table(root, features=features, label=label, group=group)
        options = {"splits": splits, "split_seed": split_seed, "fractions": fractions}
        shuffled = {"split_scheme": "random", "split_seed": split_seed, "split_fractions": list(fractions)}
        common: dict[str, Any] = {"name": self.name, "shots": shots, "query_shots": query_shots}
        common["details"] = {
            "table": Path(table.name).name,
            "rows": len(table.features),
            **_columns(table, label, group),
            **(shuffled if splits is None else {"split_scheme": "lists"}),
            "standardised": _STANDARD if standardise else False,
        }
        self.source: ClassificationSource | GroupedSource
        if table.groups is None:
            if kind != "classification":
                raise UsageError(
                    "A regression needs groups, each of which is a task: give task.group=COLUMN (an array `groups`)."
                )
            classes, self.standardisation = _classes(table, options, standardise=standardise)
            ways = 5 if ways is None else ways
            self.source = ClassificationSource(classes=classes, ways=ways, imbalanced=imbalanced, **common)
            self.class_names = self.source.class_names
        else:
            if ways is not None or imbalanced:
                given = "imbalanced=true" if imbalanced else f"ways={ways}"
                raise UsageError(f"{given}: with groups, an episode has the classes that its group has. Leave it out.")
            common["on_small_group"] = on_small_group
            self.source, self.standardisation = _grouped(table, kind, options, standardise=standardise, **common)
            self.group_names, self.label_names = self.source.group_names, self.source.label_names
        self.scaled_uint8 = False  # features are numbers, whatever their dtype and shape
        self.kind, self.splits = self.source.kind, self.source.splits
        self.input_shape, self.num_outputs = self.source.input_shape, self.source.num_outputs

    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """See `TaskSource.episodes`: inputs float32 `[task, example, feature]`."""
        return self.source.episodes(split, indices, seed=seed)

    def to(self, device: torch.device | str) -> "Arrays":
        """The same source with its rows on `device`."""
        moved = copy.copy(self)
        moved.source = self.source.to(device)
        return moved

    def protocol(self) -> dict[str, Any]:
        """The table, its split and the episodes' shape, as plain data."""
        return self.source.protocol()


def _classes(
    table: Table, options: Mapping[str, Any], *, standardise: bool
) -> tuple[dict[str, Classes], dict[str, Any] | None]:
    parts = split_table(table, table.labels, "class", "classes", options)
    moments = parts.moments(table.features) if standardise else None
    sizes = np.bincount(parts.numbers, minlength=len(parts.names))
    classes = {
        split: Classes(
            _gathered(table, parts.rows(split), moments),
            torch.from_numpy(sizes[members].astype(np.int64)),
            tuple(parts.names[number] for number in members),
        )
        for split, members in parts.members.items()
    }
    return classes, _standardisation(moments, None)


def _grouped(
    table: Table,
    kind: Literal["classification", "regression"],
    options: Mapping[str, Any],
    *,
    standardise: bool,
    details: Mapping[str, Any],
    **given: Any,
) -> tuple[GroupedSource, dict[str, Any] | None]:
    assert table.groups is not None
    parts = split_table(table, table.groups, "group", "groups", options)
    moments = parts.moments(table.features) if standardise else None
    label_names: list[str] | None = None
    scale: Moments | None = None
    if kind == "classification":
        labels, label_names = numbered(table, table.labels, "class")
        targets = torch.from_numpy(labels)
    else:
        values = _values(table)
        scale = parts.moments(values) if standardise else None
        targets = torch.from_numpy(_float32(table, values, scale, what="label"))
        if scale is not None:
            units = {"target_mean": scale.mean.tolist(), "target_standard_deviation": scale.deviation.tolist()}
            details = {**details, **units}
    if moments is not None or table.features.dtype.name == "float64":  # its rows are read when they are drawn
        for _, part in chunks(table.features):
            _float32(table, part, moments, what="feature")
    source = GroupedSource(
        kind=kind,
        features=_tensor(table.features),
        targets=targets,
        groups=torch.from_numpy(parts.numbers),
        splits=parts.members,
        group_names=parts.names,
        label_names=label_names,
        shift=None if moments is None else torch.from_numpy(moments.mean),
        factor=None if moments is None else torch.from_numpy(1 / moments.deviation),
        details=details,
        **given,
    )
    return source, _standardisation(moments, scale)


def _standardisation(inputs: Moments | None, targets: Moments | None) -> dict[str, Any] | None:
    if inputs is None:
        return None
    given = {"inputs": inputs, "targets": targets}
    return {
        name: None if each is None else {"mean": each.mean.tolist(), "std": each.deviation.tolist()}
        for name, each in given.items()
    }


def _values(table: Table) -> npt.NDArray[np.float64]:
    labels = table.labels
    if labels.dtype.kind == "U":  # such as 003, which is another name than 3, but no other value
        with contextlib.suppress(ValueError):
            labels = labels.astype(np.float64)
    if labels.dtype.kind not in "fiub":
        example = labels.flat[0]
        raise UsageError(f"The labels of {table.name} are texts ({example!r} in row 0): kind=regression needs numbers.")
    return labels.astype(np.float64).reshape(len(labels), -1)


def _gathered(table: Table, rows: npt.NDArray[np.int64], moments: Moments | None) -> Tensor:
    """These rows in float32; a view where they lie one after another and nothing is changed in them."""
    features = table.features
    if moments is None and features.dtype == np.float32 and (np.diff(rows) == 1).all():
        return torch.from_numpy(features[rows[0] : rows[-1] + 1])
    gathered = np.empty((len(rows), *features.shape[1:]), dtype=np.float32)
    for start, part in chunks(rows, width=features[0].size):
        gathered[start : start + len(part)] = _float32(table, features[part], moments, what="feature")
    return torch.from_numpy(gathered)


def _float32(table: Table, values: Array, moments: Moments | None, *, what: str) -> npt.NDArray[np.float32]:
    """Rows of the table, standardised, in the numbers that a model computes with.

    Raises:
        UsageError: one is too large for them.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        numbers: npt.NDArray[np.float32] = (values if moments is None else moments.applied(values)).astype(np.float32)
    bad = ~np.isfinite(numbers)
    if bad.any():
        index = [int(each[0]) for each in np.nonzero(bad)[1:]]
        where = f"column {table.column(tuple(index))}" if what == "feature" else "the labels"
        standardised = "" if moments is None else ", standardised by the training split"
        raise UsageError(
            f"{table.name} has {values[bad][0]} in {where}, which{standardised} is too large for float32 (up to"
            " 3.4e38). Scale the column, take its logarithm, or leave it out (task.features=[…])."
        )
    return numbers


def _tensor(features: Array) -> Tensor:
    """The features without copying, unless torch has no such numbers."""
    known = features.dtype.isnative and features.dtype.name in _OF_TORCH
    return torch.from_numpy(features if known else features.astype(np.float64))


def _check_options(features: Any, label: Any, group: Any) -> None:
    for option, value in (("features", features), ("label", label)):
        if value is not None:
            column_names(option, value)
    if group is not None and not isinstance(group, str):
        raise UsageError(f"task.group must be the name of a column, got {group!r}.")


def _columns(table: Table, label: str | Sequence[str] | None, group: str | None) -> dict[str, Any]:
    named = {"label": label if label is None or isinstance(label, str) else list(label), "group": group}
    columns = {"features": list(table.columns)} if table.columns else {}
    return columns | {option: name for option, name in named.items() if name is not None}
