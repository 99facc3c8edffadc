"""Tables whose rows belong to groups: each group (a patient, a shop, a sensor) is a task."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError, did_you_mean
from metalearn.tasks.base import TaskSource, check_count, episode_keys
from metalearn.tasks.counts import Count, span
from metalearn.tasks.padding import NO_LABEL
from metalearn.types import Episodes, Examples, Present

ON_SMALL_GROUP = ("error", "skip")


class GroupedSource(TaskSource):
    """An episode is a group of rows: support and query rows are drawn from it without replacement.

    In a classification the labels mean the same in every group: output number i is always class number i. `shots` and
    `query_shots` rows are drawn of each class, and a class that a group has no row of is masked out of its episodes by
    `metalearn.types.Present`. In a regression `shots` and `query_shots` rows are drawn of the group.

    Attributes:
        features: the rows, `[row, *shape]`; kept as they are (memory-mapped, of any type) and read by the row.
        targets: int64 class numbers `[row]`, or float32 values `[row, output]`.
        group_names: the names of the groups by split.
        label_names: the names of the classes, of a classification.
        shots: support rows (of each class), the most there can be.
        query_shots: query rows (of each class).

    Example:
        >>> groups = torch.arange(60) // 10
        >>> source = GroupedSource(
        ...     name="shops", kind="regression", features=torch.randn(60, 3), targets=torch.randn(60, 1),
        ...     groups=groups, splits={"train": [0, 1, 2, 3], "test": [4, 5]}, shots=4, query_shots=6,
        ... )  # fmt: skip
        >>> source.episodes("train", range(25)).support[0].shape
        torch.Size([25, 4, 3])
    """

    def __init__(
        self,
        *,
        name: str,
        kind: Literal["classification", "regression"],
        features: Tensor,
        targets: Tensor,
        groups: Tensor,
        splits: Mapping[str, Sequence[int]],
        shots: Count = 5,
        query_shots: int = 10,
        group_names: Sequence[str] | None = None,
        label_names: Sequence[str] | None = None,
        on_small_group: str = "error",
        shift: Tensor | None = None,
        factor: Tensor | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """A source over these rows, which are kept without copying.

        Args:
            name: the data set's name, for the protocol card.
            kind: what the targets are.
            features: `[row, *shape]`, of any type of numbers; inputs are `(features - shift) * factor` in float32.
            targets: int64 `[row]`, 0 … classes - 1, or float32 `[row, output]`.
            groups: the number of each row's group, int64 `[row]`, from 0.
            splits: the numbers of the groups of each split.
            shots: support rows (of each class), or the lowest and highest number, of which each episode draws one.
            query_shots: query rows (of each class).
            group_names: of the groups, by their numbers.
            label_names: of the classes, by their numbers.
            on_small_group: what to do with a group (or a class in it) of fewer rows than an episode needs: `"error"`,
                or `"skip"`, which leaves it out and counts it in the protocol card.
            shift: subtracted from the features, `[*shape]`.
            factor: what they are multiplied by then, `[*shape]`.
            details: what else the protocol card should say.

        Raises:
            UsageError: for a group that is too small, or a split without a group.
        """
        if on_small_group not in ON_SMALL_GROUP:
            hint = did_you_mean(str(on_small_group), ON_SMALL_GROUP)
            raise UsageError(f"Unknown `on_small_group` {on_small_group!r}. {hint}")
        self.name, self.kind = name, kind
        self.features, self.targets = features, targets
        self._shift, self._factor = shift, factor
        self._span = span("shots", shots, minimum=1)
        self.shots, self.query_shots = self._span.high, check_count("query_shots", query_shots)
        self.input_shape = tuple(features.shape[1:])
        self.splits = tuple(splits)
        self.label_names = tuple(label_names or ())
        is_labels = kind == "classification"
        num_cells = (int(targets.max()) + 1 if not label_names else len(label_names)) if is_labels else 1
        self.num_outputs = num_cells if is_labels else targets.shape[1]
        if is_labels and num_cells < 2:
            raise UsageError(f"{name} has {num_cells} class of rows, expected 2 or more for a classification.")
        num_groups = int(groups.max()) + 1
        names = tuple(group_names or map(str, range(num_groups)))
        cells = groups * num_cells + targets if is_labels else groups
        self._rows = torch.argsort(cells, stable=True)
        self._counts = torch.bincount(cells, minlength=num_groups * num_cells).reshape(num_groups, num_cells)
        self._starts = (self._counts.flatten().cumsum(0) - self._counts.flatten()).reshape(self._counts.shape)
        self._usable = self._counts >= self.shots + self.query_shots
        self._groups = {
            split: torch.tensor(self._fitting(split, members, names, on_small_group), dtype=torch.int64)
            for split, members in splits.items()
        }
        self.group_names = {split: tuple(names[index] for index in part) for split, part in self._groups.items()}
        used = self._usable[torch.cat(list(self._groups.values()))]
        self._most_cells, self._pads = int(used.sum(1).max()), not bool(used.all())
        self._largest = int(self._counts.max())
        left_out = {split: len(members) - len(self._groups[split]) for split, members in splits.items()}
        self._details = dict(details or {}) | ({"small_groups_left_out": left_out} if on_small_group == "skip" else {})

    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """See `TaskSource.episodes`: inputs `[task, example, *shape]` of one group a task."""
        device = self._counts.device
        keys = episode_keys(split, indices, seed=seed, splits=self.splits, device=device)
        members = self._groups[split]
        group = members[random.integers(random.fold_in(keys, 0), len(members), ())]
        cells = torch.arange(self._counts.shape[1], device=device)
        chosen = random.choose(
            random.fold_in(random.fold_in(keys, 1)[:, None], cells),
            self._counts[group],
            self.shots + self.query_shots,
            largest=self._largest,
        )
        places = self._starts[group][..., None] + chosen
        usable = self._usable[group]
        shots = self._span.draw(random.fold_in(keys, 3))
        return Episodes(
            support=self._set(usable, places[..., : self.shots], None if self._span.is_fixed else shots),
            query=self._set(usable, places[..., self.shots :], None),
            key=random.fold_in(keys, 2),
        )

    def to(self, device: torch.device | str) -> "GroupedSource":
        """The same source with its tensors on `device`."""
        moved = copy.copy(self)
        for name in ("features", "targets", "_rows", "_counts", "_starts", "_usable", "_shift", "_factor"):
            tensor = getattr(self, name)
            setattr(moved, name, None if tensor is None else tensor.to(device))
        moved._groups = {split: members.to(device) for split, members in self._groups.items()}
        return moved

    def protocol(self) -> dict[str, Any]:
        """The data set, its groups by split and the episodes' shape, as plain data."""
        per = "class of the group" if self.kind == "classification" else "group"
        return {
            "dataset": self.name,
            "kind": self.kind,
            "groups": {split: len(members) for split, members in self._groups.items()},
            **({"ways": self.num_outputs} if self.kind == "classification" else {"outputs": self.num_outputs}),
            "shots": self._span.plain(),
            "query_shots": self.query_shots,
            "shots_are_rows_of_a": per,
            "input_shape": list(self.input_shape),
            **copy.deepcopy(self._details),
        }

    def _set(self, usable: Tensor, places: Tensor, shots: Tensor | None) -> Examples:
        """The support or the query set out of the drawn places `[task, cell, example]`."""
        num_tasks, _, num_examples = places.shape
        used = usable[..., None].expand(places.shape)
        if shots is not None:
            used = used & (torch.arange(num_examples, device=places.device) < shots[:, None, None])
        places, used = places.flatten(1), used.flatten(1)
        pads = self._pads or shots is not None
        if pads:  # real rows first, and no more padding than the largest group needs
            order = torch.argsort(~used, dim=-1, stable=True)[:, : self._most_cells * num_examples]
            used, places = used.gather(-1, order), places.gather(-1, order)
        # A place in an empty cell is nowhere: any row that there is will do for padding.
        rows = self._rows[torch.where(used, places, 0).flatten()]
        inputs = self._inputs(rows).reshape(*places.shape, *self.input_shape)
        targets = self.targets[rows].reshape(*places.shape, *self.targets.shape[1:])
        if not pads:
            return inputs, targets
        inputs = torch.where(used.reshape(*used.shape, *[1] * len(self.input_shape)), inputs, 0.0)
        if self.kind == "classification":
            return inputs, torch.where(used, targets, NO_LABEL), Present(used, usable)
        every_output = usable.expand(num_tasks, self.num_outputs)
        return inputs, torch.where(used[..., None], targets, 0.0), Present(used, every_output)

    def _inputs(self, rows: Tensor) -> Tensor:
        chosen = self.features.index_select(0, rows)
        if self._shift is not None and self._factor is not None:
            # In the shift's own precision: a time stamp minus its mean has no digits left in float32.
            chosen = (chosen.to(self._shift.dtype) - self._shift) * self._factor
        return chosen.to(torch.float32)

    def _fitting(self, split: str, members: Sequence[int], names: Sequence[str], on_small_group: str) -> list[int]:
        """The groups of a split that episodes can be drawn from."""
        groups = torch.as_tensor(members, dtype=torch.int64)
        if on_small_group == "error":
            self._check_room(split, groups, names)
        least = 2 if self.kind == "classification" else 1
        fitting: list[int] = groups[self._usable[groups].sum(1) >= least].tolist()
        if not fitting:
            of_each = " of each of 2 classes" if least == 2 else ""
            raise UsageError(
                f"shots={self.shots} and query_shots={self.query_shots} need {self.shots + self.query_shots} rows"
                f"{of_each}, and no group of {self.name} in split {split!r} has them. Lower one of them, or give"
                " the split more groups."
            )
        return fitting

    def _check_room(self, split: str, groups: Tensor, names: Sequence[str]) -> None:
        need, counts, of = self.shots + self.query_shots, self._counts[groups], f"of {self.name} (split {split!r})"
        for place, cell in torch.nonzero((counts > 0) & (counts < need))[:1].tolist():
            name = names[int(groups[place])]
            what = f"class {self._label(cell)!r} of " if self.kind == "classification" else ""
            raise UsageError(
                f"shots={self.shots} and query_shots={self.query_shots} need {need} rows, and {what}group {name!r}"
                f" {of} has {int(counts[place, cell])}. Lower one of them, or leave small ones out with"
                " on_small_group=skip."
            )
        if self.kind == "regression":
            return
        for (place,) in torch.nonzero((counts > 0).sum(1) < 2)[:1].tolist():
            name, only = names[int(groups[place])], self._label(int(counts[place].argmax()))
            raise UsageError(
                f"Group {name!r} {of} has rows of the class {only!r} alone: there is nothing to tell apart. Leave such"
                " groups out with on_small_group=skip."
            )

    def _label(self, index: int) -> str:
        return self.label_names[index] if self.label_names else str(index)
