"""Any labelled `torch.utils.data.Dataset` as few-shot classification."""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from metalearn.errors import PluginError, UsageError
from metalearn.tasks.class_splits import FRACTIONS, SPLITS, split_names
from metalearn.tasks.classes import Classes
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.counts import Count
from metalearn.tasks.interop.dataset_labels import class_name, declared_classes, declared_labels, label_of
from metalearn.tasks.progress import progress

_MODES = {"1": "L", "L": "L", "LA": "L"} | dict.fromkeys(
    ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV"), "RGB"
)
_MANY = 5000  # items from which on progress is shown


def from_dataset(
    dataset: Any,
    *,
    ways: Count = 5,
    shots: Count = 1,
    query_shots: int = 15,
    splits: Mapping[str, Sequence[Any]] | None = None,
    split_seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    imbalanced: bool = False,
    rotations: bool = False,
    augment: Any = None,
    name: str | None = None,
) -> ClassificationSource:
    """Few-shot classification over a map-style dataset of pairs `(x, y)`, all of which is read into memory.

    An `x` is a PIL image, a tensor or an array. 8-bit values are images: they stay uint8 in memory, `[channel, height,
    width]`, and are scaled to 0 … 1 as they are sampled (of an array of 1, 3 or 4 channels these may come last). Other
    numbers become float32 as they are. A transform of the dataset is applied once, so a random one is frozen: augment
    by `augment`.

    A `y` is a whole number or a text. Where a dataset tells its labels (`targets` or `labels`, also through `Subset`
    and `ConcatDataset`), nothing is read before the splits are known to be possible; where it names its classes
    (`classes`), these are the names.

    Args:
        dataset: one dataset, whose classes are split; or `{"train": dataset, "val": dataset, "test": dataset}`.
        ways: classes in an episode, or the lowest and highest number.
        shots: support examples a class, or the lowest and highest number.
        query_shots: query examples a class.
        splits: of one dataset, the classes of train, val and test; `None` shuffles them.
        split_seed: what they are shuffled by.
        fractions: the shares of train, val and test when shuffled.
        imbalanced: whether each class of an episode draws its own shots from the range.
        rotations: whether a class turned by 90, 180 and 270 degrees is a class of its own.
        augment: transforms of torchvision v2 for the training images.
        name: the data set's name, by default that of its class.

    Returns:
        The source.

    Raises:
        UsageError: items that are no pairs, of several shapes or of odd kinds; a class in two splits; episodes that are
            larger than the data.

    Example:
        >>> images = torch.randint(0, 256, (600, 1, 28, 28), dtype=torch.uint8)
        >>> dataset = torch.utils.data.TensorDataset(images, torch.arange(600) % 30)
        >>> source = from_dataset(dataset, ways=3, shots=1, query_shots=5)
        >>> source.episodes("train", range(16)).query[0].shape
        torch.Size([16, 15, 1, 28, 28])
    """
    if isinstance(dataset, Mapping):
        if splits is not None:
            raise UsageError("`splits` is for one dataset; here there is one for each split. Leave it out.")
        if not dataset or not set(dataset) <= set(SPLITS):
            raise UsageError(f"A mapping of datasets must be by train, val and test, got {sorted(map(str, dataset))}.")
        parts = {
            split: _Labelled(dataset[split], what=f"the dataset of {split!r}") for split in SPLITS if split in dataset
        }
        _refuse_leakage(parts)
        classes = {split: part.classes(part.names) for split, part in parts.items()}
        details: dict[str, Any] = {"split_scheme": "a dataset each"}
        first = dataset[next(iter(parts))]
    else:
        whole = _Labelled(dataset, what="the dataset")
        chosen = split_names(whole.names, splits=splits, split_seed=split_seed, fractions=fractions)
        classes = {split: whole.classes(names) for split, names in chosen.items()}
        details = {"split_scheme": "class lists"}
        if splits is None:
            details = {"split_scheme": "random", "split_seed": split_seed, "split_fractions": list(fractions)}
        first = dataset
    return ClassificationSource(
        name=name or _name_of(first),
        classes=classes,
        ways=ways,
        shots=shots,
        query_shots=query_shots,
        imbalanced=imbalanced,
        rotations=rotations,
        augment=augment,
        details=details | {"examples": {split: len(each.examples) for split, each in classes.items()}},
    )


class _Labelled:
    """A dataset with the label of every item, and its items read class by class."""

    def __init__(self, dataset: Any, *, what: str) -> None:
        self._dataset, self._what = dataset, what
        self._num_items = _length(dataset, what)
        self._names = declared_classes(dataset)
        self._items: list[Tensor] | None = None
        labels = declared_labels(dataset)
        self._declared = labels is not None and len(labels) == self._num_items
        if labels is None or not self._declared:
            pairs = [self._item(index) for index in self._indices(range(self._num_items))]
            self._items, labels = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self._labels = [label_of(label, index, what) for index, label in enumerate(labels)]
        found = sorted(set(self._labels), key=lambda label: (isinstance(label, str), label))
        names = [class_name(label, self._names) for label in found]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"{what} has two labels that are both called {twice!r} (a number and a text?).")
        self.names = names
        number = {label: index for index, label in enumerate(found)}
        self._numbers = np.array([number[label] for label in self._labels])

    def classes(self, names: Sequence[str]) -> Classes:
        """The examples of these classes, each as it was read, in one tensor."""
        number_of = {name: number for number, name in enumerate(self.names)}
        numbers = [number_of[name] for name in names]
        rows = np.concatenate([np.flatnonzero(self._numbers == number) for number in numbers])
        counts = [int((self._numbers == number).sum()) for number in numbers]
        examples: Tensor | None = None
        for place, index in enumerate(self._indices(rows.tolist())):
            example = self._example(index)
            if examples is None:
                examples = torch.empty((len(rows), *example.shape), dtype=example.dtype)
                first = index
            if (example.shape, example.dtype) != (examples.shape[1:], examples.dtype):
                raise UsageError(
                    f"The items of {self._what} differ: item {index} is {example.dtype} {list(example.shape)} and item"
                    f" {first} {examples.dtype} {list(examples.shape[1:])}. Resize them by the dataset's transform."
                )
            examples[place] = example
        assert examples is not None
        return Classes(examples, torch.tensor(counts, dtype=torch.int64), tuple(names))

    def _example(self, index: int) -> Tensor:
        if self._items is not None:
            return self._items[index]
        example, label = self._item(index)
        if label_of(label, index, self._what) != self._labels[index]:
            raise UsageError(
                f"Item {index} of {self._what} has the label {label!r}, but its list of labels says"
                f" {self._labels[index]!r}. Which one is meant? Give a dataset whose `targets` are what it returns."
            )
        return example

    def _item(self, index: int) -> tuple[Tensor, Any]:
        try:
            item = self._dataset[index]
        except Exception as error:
            # From the dataset's own frame on: ours tells nothing.
            trace = error.__traceback__ and error.__traceback__.tb_next
            own = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
            text = " ".join(str(error).split())
            raise PluginError(
                f"Item {index} of {self._what} can not be read: its __getitem__ raised {type(error).__name__}: {text}",
                own,
            ) from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            got = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, (tuple, list, dict)) else "")
            raise UsageError(f"Item {index} of {self._what} is {got}, expected a pair (x, y). Wrap it to return pairs.")
        return _as_example(item[0], index, self._what), item[1]

    def _indices(self, indices: Sequence[int]) -> Any:
        if len(indices) < _MANY:
            return indices
        return progress(indices, f"Reading {self._what}", total=len(indices), unit="items")


def _as_example(value: Any, index: int, what: str) -> Tensor:
    """An `x` as a uint8 image `[channel, height, width]` or a float32 tensor."""
    if isinstance(value, Image.Image) and value.mode in _MODES:
        pixels = np.array(value.convert(_MODES[value.mode]))
        value = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    elif isinstance(value, np.ndarray):
        channels_last = value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] in (1, 3, 4)
        if channels_last and value.shape[0] not in (1, 3, 4):
            value = value.transpose(2, 0, 1)
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value)) if value.dtype.kind in "fu" else value
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.dtype == torch.uint8):
        got = f"{value.dtype} numbers" if isinstance(value, (Tensor, np.ndarray)) else f"a {type(value).__name__}"
        raise UsageError(
            f"The x of item {index} of {what} is {got}, expected a PIL image, or a tensor of uint8 or real numbers."
            " Convert it by the dataset's transform."
        )
    tensor: Tensor = value.detach()
    if tensor.dtype != torch.uint8:
        if not bool(torch.isfinite(tensor).all()):
            raise UsageError(f"The x of item {index} of {what} has values that are not finite. Fill or drop them.")
        return tensor.to(torch.float32)
    if tensor.dim() not in (2, 3):
        raise UsageError(
            f"The x of item {index} of {what} is uint8 {list(tensor.shape)}; 8-bit values are images [channel, height,"
            " width] or [height, width]. Convert other numbers to float."
        )
    return tensor[None] if tensor.dim() == 2 else tensor


def _length(dataset: Any, what: str) -> int:
    is_stream = isinstance(dataset, IterableDataset)
    if is_stream or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UsageError(
            f"{what} is a {type(dataset).__name__}, expected a map-style torch.utils.data.Dataset (with __len__ and"
            " __getitem__). A stream has to be read into a list first."
        )
    if not len(dataset):
        raise UsageError(f"{what} is empty: it has no item.")
    return len(dataset)


def _refuse_leakage(parts: Mapping[str, _Labelled]) -> None:
    seen: dict[str, str] = {}
    for split, part in parts.items():
        for name in part.names:
            if name in seen:
                raise UsageError(
                    f"The class {name!r} is in the datasets of {seen[name]!r} and {split!r}: what is tested must not"
                    " have been trained on. Give every split its own classes, under names or labels of their own."
                )
            seen[name] = split


def _name_of(dataset: Any) -> str:
    while hasattr(dataset, "dataset"):  # a Subset tells less than what it is of
        dataset = dataset.dataset
    return type(dataset).__name__
