"""Labels of any kind and a model's outputs, to and fro; and the targets of a regression."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.errors import UsageError, did_you_mean
from metalearn.training import TaskCard
from metalearn.use.inputs import check_dense

_MOST_NAMED = 8


@dataclass(frozen=True)
class Classes:
    """The classes of a support set, and the model's outputs that stand for them.

    Attributes:
        labels: as the caller wrote them.
        outputs: the number of the output of each.
    """

    labels: tuple[Hashable, ...]
    outputs: tuple[int, ...]


def index_labels(y: Any, *, num_examples: int, card: TaskCard) -> tuple[Classes, Tensor]:
    """The different labels in order, and the number of each example's output, int64 `[example]`.

    They take the outputs in their order; where the run's outputs have names, each takes the one of its name.

    Args:
        y: one hashable label an example: a list, an array or a tensor.
        num_examples: how many there must be.
        card: of the task, whose outputs bound the number of classes.

    Raises:
        UsageError: another number of labels, a missing label, a single class, more classes than outputs, or one that
            the run does not know where its classes are fixed.
    """
    card.check_agreed("label_names", "name their classes")
    labels = _as_list(y)
    if len(labels) != num_examples:
        raise UsageError(f"y has {len(labels)} labels for {num_examples} examples in x: give one for each.")
    for number, label in enumerate(labels):
        if _holds_tensor(label):
            raise UsageError(f"label {number} is a tensor with an axis, or one in a tuple: give its value, .item().")
        if not isinstance(label, Hashable):
            raise UsageError(f"label {number} is a {type(label).__name__}, which can be no label: use text or numbers.")
        if label is None or label != label:  # NaN alone differs from itself
            raise UsageError(f"label {number} is missing ({label}): give every support example its class.")
    classes = _in_order(dict.fromkeys(labels))
    _check_number(classes, card)
    outputs = _outputs(classes, card)
    output_of = dict(zip(classes, outputs, strict=True))
    return Classes(classes, outputs), torch.tensor([output_of[label] for label in labels], dtype=torch.int64)


def _check_number(classes: Sequence[Hashable], card: TaskCard) -> None:
    if len(classes) > card.num_outputs:
        shown = ", ".join(map(str, classes[:_MOST_NAMED])) + (", …" if len(classes) > _MOST_NAMED else "")
        raise UsageError(
            f"y has {len(classes)} classes ({shown}), the model of this run tells at most {card.num_outputs} apart. "
            f"Take {card.num_outputs} of them, or train with task.ways={len(classes)}."
        )
    if len(classes) < 2:
        raise UsageError(f"y has one class only, {classes[0]!r}: to tell classes apart takes two at least.")


def _outputs(classes: Sequence[Hashable], card: TaskCard) -> tuple[int, ...]:
    if not card.label_names:
        return tuple(range(len(classes)))
    for label in classes:
        if str(label) not in card.label_names:
            hint = did_you_mean(str(label), card.label_names)
            raise UsageError(f"y has the class {label!r}, which is none of the classes of this run's tasks. {hint}")
    return tuple(card.label_names.index(str(label)) for label in classes)


def label_array(labels: Sequence[Hashable]) -> Any:
    """Labels as a NumPy array `[label]`: of text, numbers or booleans where all are of one kind, else of objects."""
    kinds = {type(label) for label in labels}
    # NumPy's texts lose a NUL at their end.
    if any(isinstance(label, str) and label.endswith("\0") for label in labels):
        kinds = {object}
    if len(kinds) == 1 and kinds <= {str, int, float, bool}:
        return np.asarray(labels)
    array = np.empty(len(labels), dtype=object)
    array[:] = labels
    return array


def as_targets(y: Any, *, num_examples: int, card: TaskCard) -> Tensor:
    """A regression's targets in the model's units, float32 `[example, num_outputs]`.

    Raises:
        UsageError: they are no finite numbers, or of another shape.
    """
    if isinstance(y, Tensor):
        check_dense(y, "y")
    try:
        values = y.detach().cpu() if isinstance(y, Tensor) else torch.from_numpy(_array(y).astype(np.float64))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"y must hold numbers, because the task {card.name!r} is a regression: {error}") from None
    got = list(values.shape)
    if values.dim() == 1 and card.num_outputs == 1:
        values = values[:, None]
    if values.shape != (num_examples, card.num_outputs):
        flat = f" or [{num_examples}]" if card.num_outputs == 1 else ""
        raise UsageError(
            f"y has shape {got}, expected [{num_examples}, {card.num_outputs}]{flat}: one target of "
            f"width {card.num_outputs} for each of the {num_examples} examples in x."
        )
    if not values.isfinite().all():
        raise UsageError("y holds NaN or an infinite number: leave those examples out.")
    return (values if card.targets is None else card.targets.apply(values.double())).to(torch.float32)


def _array(y: Any) -> Any:
    """A regression's targets as an array."""
    if isinstance(y, (list, tuple)) and y and all(isinstance(each, Tensor) for each in y):
        y = torch.stack([each.detach().cpu() for each in y]).numpy()
    array = np.asarray(y)
    if np.iscomplexobj(array):  # NumPy would drop the imaginary parts
        raise TypeError(f"they are {array.dtype}")
    return array


def _as_list(y: Any) -> list[Any]:
    if isinstance(y, (str, bytes)):
        raise UsageError("y is a single text: give a list with a label for each example.")
    if isinstance(y, (list, tuple)):
        return [_value(each) for each in y]
    if isinstance(y, Tensor):
        check_dense(y, "y")
    array = y.detach().cpu() if isinstance(y, Tensor) else np.asarray(y)
    if array.ndim != 1:
        raise UsageError(f"y has shape {list(array.shape)}: expected [example], one label for each example.")
    return [_value(each) for each in array.tolist()]


def _value(label: Any) -> Any:
    """A number of NumPy's or torch's as Python's own, which is equal to others by its value."""
    if isinstance(label, Tensor):
        check_dense(label, "a label")
    return label.item() if isinstance(label, (np.generic, Tensor)) and label.ndim == 0 else label


def _holds_tensor(label: Any) -> bool:
    # A tensor's hash is its identity: two of the same value would be two classes.
    return isinstance(label, Tensor) or (isinstance(label, (tuple, frozenset)) and any(map(_holds_tensor, label)))


def _in_order(labels: Sequence[Any] | dict[Any, None]) -> tuple[Any, ...]:
    try:
        return tuple(sorted(labels))
    except TypeError:  # text and numbers together, say: as they came
        return tuple(labels)
