"""The labels of a dataset: those that it declares, through `Subset` and `ConcatDataset`, and those of its items."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from metalearn.errors import UsageError

Label = int | str


def declared_labels(dataset: Any) -> list[Any] | None:
    """The label of every item, if the dataset tells them without reading its items.

    They are its `targets` or its `labels`; of a dataset that changes them afterwards (`target_transform`), none.

    Example:
        >>> import torch
        >>> whole = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]))
        >>> declared_labels(Subset(whole, [3, 0]))
        [1, 0]
    """
    if isinstance(dataset, Subset):
        labels = declared_labels(dataset.dataset)
        return None if labels is None else [labels[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [declared_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in part or ()]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1].tolist() if len(dataset.tensors) == 2 else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        found = found.tolist() if isinstance(found, (Tensor, np.ndarray)) else found
        if isinstance(found, Sequence) and not isinstance(found, str) and len(found) == len(dataset):
            return list(found)
    return None


def declared_classes(dataset: Any) -> list[str] | None:
    """The names of the classes 0, 1, 2 …, if the dataset has them (`classes`)."""
    if isinstance(dataset, Subset):
        return declared_classes(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        first, *others = (declared_classes(part) for part in dataset.datasets)
        # Number 3 of one part may be another class than number 3 of the next: then the numbers say nothing.
        if any(other != first for other in others):
            raise UsageError(
                "The parts of a ConcatDataset have other `classes`, so that a label means another class in each. Give"
                " each part labels of its own by a target_transform."
            )
        return first
    found = getattr(dataset, "classes", None)
    if isinstance(found, Sequence) and not isinstance(found, str) and len(found) == len(set(map(str, found))):
        return [str(name) for name in found]
    return None


def label_of(value: Any, index: int, what: str) -> Label:
    """A label as a whole number or a text.

    Raises:
        UsageError: it is something else.
    """
    single = value.item() if isinstance(value, (Tensor, np.ndarray)) and value.shape in ((), (1,)) else value
    if isinstance(single, np.generic):
        single = single.item()
    if isinstance(single, str):
        return single
    if isinstance(single, int):  # also a truth value, of two classes 0 and 1
        return int(single)
    is_array = isinstance(value, (Tensor, np.ndarray))
    kind = f"a {type(value).__name__} of shape {list(value.shape)}" if is_array else f"a {type(value).__name__}"
    hint = " Turn one-hot labels into numbers with argmax." if is_array else ""
    shown = " ".join(str(value).split())[:40]
    raise UsageError(
        f"The label of item {index} of {what} is {kind} ({shown}), expected a whole number or a text.{hint}"
    )


def class_name(label: Label, classes: Sequence[str] | None) -> str:
    """What a class is called."""
    if isinstance(label, str) or classes is None or not 0 <= label < len(classes):
        return str(label)
    return classes[label]
