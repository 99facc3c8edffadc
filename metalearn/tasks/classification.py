"""N-way K-shot episodes out of labelled examples held in memory, sampled with tensor operations alone."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError, did_you_mean
from metalearn.tasks.all_classes import SPLIT, AllClasses
from metalearn.tasks.base import TaskSource, check_count, check_flag, episode_keys
from metalearn.tasks.classes import Classes
from metalearn.tasks.counts import Count, span
from metalearn.tasks.padding import NO_LABEL
from metalearn.types import Episodes, Examples, Present

if TYPE_CHECKING:
    from metalearn.tasks.images.format import ImageFormat


class ClassificationSource(TaskSource):
    """Few-shot classification: `ways` classes an episode, disjoint support and query examples.

    Classes are drawn without replacement within an episode, and examples without replacement within a class. Labels are
    dealt out anew in every episode. Examples lie class by class: labels are `0, 0, …, 1, 1, …`.

    With a range of ways or shots every episode draws its own (uniformly), with `imbalanced` every class of it its own
    shots. The batch is then padded to the largest, and its sets have a third entry, `metalearn.types.Present`.

    A data set of one's own is this class with one's own examples; the sources of this package add an `__init__` alone.

    Attributes:
        classes: what the episodes are drawn from, by split.
        ways: classes in an episode, the most there can be.
        shots: support examples a class, the most there can be.
        query_shots: query examples a class.
        rotations: whether every class turned by 90, 180 and 270 degrees is a class of its own.
        class_names: the names of the classes by split, for sources that have them.
        image_format: how a picture's file becomes an input, for sources of pictures.
        scaled_uint8: whether 255 became 1.0; `None` for pictures of float32, of which nobody knows.

    Example:
        >>> images = torch.randint(0, 256, (6, 4, 1, 8, 8), dtype=torch.uint8)
        >>> source = ClassificationSource(name="mine", classes={"train": images}, ways=3, shots=1, query_shots=2)
        >>> source.episodes("train", [0, 1]).query[0].shape
        torch.Size([2, 6, 1, 8, 8])
    """

    kind: Literal["classification", "regression"] = "classification"

    def __init__(
        self,
        *,
        name: str,
        classes: Mapping[str, Tensor | Classes],
        ways: Count = 5,
        shots: Count = 1,
        query_shots: int = 15,
        imbalanced: bool = False,
        rotations: bool = False,
        augment: Any = None,
        image_format: "ImageFormat | None" = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """A source over `classes`, which are kept without copying.

        Args:
            name: the data set's name, for the protocol card.
            classes: by split: `Classes`, or a tensor `[class, example, *shape]` of classes of equal size; uint8 images
                `[channel, height, width]`, of which 255 becomes 1.0, or float32 of any shape.
            ways: classes in an episode, or the lowest and highest number.
            shots: support examples a class, or the lowest and highest number.
            query_shots: query examples a class.
            imbalanced: whether each class of an episode draws its own shots from the range.
            rotations: whether every class turned by 90, 180 and 270 degrees is a class of its own.
            augment: transforms of torchvision v2 for the training images (`metalearn.tasks.images.augmentation`).
            image_format: how a picture's file becomes an input.
            details: what else the protocol card should say (split scheme, seeds, …), as plain data.

        Raises:
            UsageError: for examples of another kind, and for episodes that are larger than the data.
        """
        self.classes = {
            split: each if isinstance(each, Classes) else Classes.of(each) for split, each in classes.items()
        }
        self.name, self.splits = name, tuple(self.classes)
        self.input_shape = _common_shape(self.classes, check_flag("rotations", rotations))
        self._ways, self._shots = span("ways", ways, minimum=2), span("shots", shots, minimum=1)
        self.ways = self.num_outputs = self._ways.high
        self.shots = self._shots.high
        self.query_shots = check_count("query_shots", query_shots)
        self.imbalanced, self.rotations = check_flag("imbalanced", imbalanced), check_flag("rotations", rotations)
        if imbalanced and self._shots.is_fixed:
            raise UsageError(f"imbalanced=true needs a range of shots, such as [1, 5], got shots={shots}.")
        self.augment = None if augment is None else _augmentation(augment, self.input_shape)
        self.image_format = image_format
        self.scaled_uint8 = _scaled(self.classes, self.input_shape)
        self.class_names = {split: each.names for split, each in self.classes.items() if each.names}
        self._details = dict(details or {})
        self._starts = {split: each.starts for split, each in self.classes.items()}
        self._largest = {split: int(each.counts.max()) for split, each in self.classes.items() if len(each.counts)}
        for split in self.splits:
            self._check_room(split)

    @property
    def images(self) -> dict[str, Tensor]:
        """The examples by split as `[class, example, *shape]`, where all classes of a split have one size."""
        return {split: each.grid() for split, each in self.classes.items()}

    def num_classes(self, split: str) -> int:
        """How many classes the episodes of `split` draw from, rotations included."""
        return len(self.classes[split].counts) * (4 if self.rotations else 1)

    @property
    def num_training_classes(self) -> int | None:
        """How many classes `minibatches` labels; None without a training split."""
        return self.num_classes(SPLIT) if SPLIT in self.splits else None

    def minibatches(self, num_examples: int) -> AllClasses:
        """Plain classification of all training classes: minibatches in the form of episodes."""
        if SPLIT not in self.splits:
            raise UsageError(f"{self.name} has no split {SPLIT!r} to draw minibatches from.")

        def gather(rows: Tensor, turns: Tensor | None, keys: Tensor) -> Tensor:
            return self._gather(SPLIT, rows, turns, keys)

        return AllClasses(
            name=self.name,
            classes=self.classes[SPLIT],
            num_examples=num_examples,
            rotations=self.rotations,
            gather=gather,
        )

    def with_ways(self, ways: Count, *, splits: Sequence[str] | None = None) -> "ClassificationSource":
        """The same source with other ways, of some of its splits; by default of all.

        Raises:
            UsageError: a split is unknown, or has too few classes.
        """
        other = copy.copy(self)
        for split in splits or ():
            if split not in self.splits:
                raise UsageError(f"Unknown split {split!r}. {did_you_mean(split, self.splits)}")
        other.splits = tuple(splits or self.splits)
        other._ways = span("ways", ways, minimum=2)
        other.ways = other.num_outputs = other._ways.high
        for split in other.splits:
            other._check_room(split)
        return other

    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """See `TaskSource.episodes`: inputs float32, images in [0, 1], `[task, ways * shots, *input_shape]`."""
        device = self.classes[self.splits[0]].examples.device
        keys = episode_keys(split, indices, seed=seed, splits=self.splits, device=device)
        drawn = self._draw(split, keys)
        shots = self.shots
        return Episodes(
            support=self._set(split, keys, drawn, slice(0, shots), drawn.shots, stream=5),
            query=self._set(split, keys, drawn, slice(shots, None), None, stream=6),
            key=random.fold_in(keys, 2),
        )

    def to(self, device: torch.device | str) -> "ClassificationSource":
        """The same source with its examples on `device`."""
        moved = copy.copy(self)
        # Splits of one data set may share their examples: they are moved once.
        shared = {id(each.examples): each.examples for each in self.classes.values()}
        examples = {which: tensor.to(device) for which, tensor in shared.items()}
        moved.classes = {
            split: each.to(device, examples=examples[id(each.examples)]) for split, each in self.classes.items()
        }
        moved._starts = {split: each.to(device) for split, each in self._starts.items()}
        return moved

    def protocol(self) -> dict[str, Any]:
        """The data set, its classes by split and the episodes' shape, as plain data."""
        return {
            "dataset": self.name,
            "classes": {split: self.num_classes(split) for split in self.splits},
            "rotations_as_classes": self.rotations,
            "ways": self._ways.plain(),
            "shots": self._shots.plain(),
            **({"imbalanced_shots": True} if self.imbalanced else {}),
            "query_shots": self.query_shots,
            "input_shape": list(self.input_shape),
            **({} if self.augment is None else {"augmentation": self.augment.protocol()}),
            **copy.deepcopy(self._details),
        }

    @property
    def _pads(self) -> bool:
        return not (self._ways.is_fixed and self._shots.is_fixed)

    def _draw(self, split: str, keys: Tensor) -> "_Drawn":
        stored = self.classes[split]
        classes = random.choose(random.fold_in(keys, 0), self.num_classes(split), self.ways)
        number, turns = classes % len(stored.counts), classes // len(stored.counts)
        way_keys = random.fold_in(random.fold_in(keys, 1)[:, None], torch.arange(self.ways, device=keys.device))
        largest = self._largest[split]
        examples = random.choose(way_keys, stored.counts[number], self.shots + self.query_shots, largest=largest)
        return _Drawn(
            rows=self._starts[split][number][..., None] + examples,
            turns=turns if self.rotations else None,
            ways=self._ways.draw(random.fold_in(keys, 3)),
            shots=self._shots.draw(random.fold_in(way_keys if self.imbalanced else keys[:, None], 4)),
        )

    def _set(
        self, split: str, keys: Tensor, drawn: "_Drawn", part: slice, shots: Tensor | None, *, stream: int
    ) -> Examples:
        """The support or the query set out of the drawn rows `[task, way, example]`."""
        rows = drawn.rows[..., part]
        num_tasks, _, num_examples = rows.shape
        labels = torch.arange(self.ways, device=rows.device).repeat_interleave(num_examples).repeat(num_tasks, 1)
        turns = None if drawn.turns is None else drawn.turns.repeat_interleave(num_examples, dim=-1)
        rows = rows.flatten(1)
        if not self._pads:
            return self._gather(split, rows, turns, random.fold_in(keys, stream)), labels
        slot = torch.arange(num_examples, device=rows.device).repeat(self.ways)
        used = labels < drawn.ways[:, None]
        if shots is not None:
            used = used & (slot < shots.expand(-1, self.ways).repeat_interleave(num_examples, dim=-1))
        order = torch.argsort(~used, dim=-1, stable=True)  # real rows first
        used, labels, rows = (each.gather(-1, order) for each in (used, labels, rows))
        turns = None if turns is None else turns.gather(-1, order)
        inputs = self._gather(split, rows, turns, random.fold_in(keys, stream))
        shape = (*used.shape, *[1] * len(self.input_shape))
        inputs = torch.where(used.reshape(shape), inputs, inputs[:, :1])
        outputs = torch.arange(self.ways, device=rows.device) < drawn.ways[:, None]
        return inputs, torch.where(used, labels, NO_LABEL), Present(used, outputs)

    def _gather(self, split: str, rows: Tensor, turns: Tensor | None, keys: Tensor) -> Tensor:
        """The examples in these rows as float32, `[task, example, *input_shape]`."""
        examples = self.classes[split].examples
        # index_select copies whole images: twenty times faster than indexing with two tensors.
        chosen = examples.index_select(0, rows.flatten()).reshape(*rows.shape, *self.input_shape)
        if turns is not None:
            chosen = rotate(chosen, turns)
        # A product, because a division by a number is not rounded alike on every device.
        inputs = chosen if chosen.is_floating_point() else chosen.to(torch.float32).mul_(1 / 255)
        return inputs if self.augment is None or split != "train" else self.augment(inputs, keys)

    def _check_room(self, split: str) -> None:
        num_classes, counts = self.num_classes(split), self.classes[split].counts
        if self.ways > num_classes:
            raise UsageError(
                f"ways={self.ways} is more than the {num_classes} classes of split {split!r} of {self.name}."
                f" Choose ways <= {num_classes}."
            )
        smallest = int(counts.argmin())
        if self.shots + self.query_shots > counts[smallest]:
            raise UsageError(
                f"shots={self.shots} and query_shots={self.query_shots} need {self.shots + self.query_shots} examples a"
                f" class, and class {self.classes[split].name(smallest)} of {self.name} has {int(counts[smallest])} in"
                f" split {split!r}. Lower one of them."
            )


@dataclass(frozen=True)
class _Drawn:
    """What episodes consist of: rows of examples `[task, way, example]`, quarter turns `[task, way]`, sizes.

    `ways` is `[task]` and `shots` `[task, way or 1]`, how many of the largest episode's ways and shots are real.
    """

    rows: Tensor
    turns: Tensor | None
    ways: Tensor
    shots: Tensor


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Square images turned anticlockwise by `turns` quarter turns each, in one gather.

    Args:
        images: `[..., channel, side, side]`.
        turns: 0 … 3, of the shape of the leading axes of `images`.

    Returns:
        What `torch.rot90(image, turn, (-2, -1))` gives for each.
    """
    side = images.shape[-1]
    pixels = torch.arange(side * side, device=images.device).reshape(side, side)
    sources = torch.stack([torch.rot90(pixels, turn).flatten() for turn in range(4)])
    flat = images.flatten(-2)
    return flat.gather(-1, sources[turns][..., None, :].expand(flat.shape)).reshape(images.shape)


def _augmentation(augment: Any, image_shape: tuple[int, ...]) -> Any:
    from metalearn.tasks.images.augmentation import Augmentation  # torchvision takes a second to import

    return Augmentation.of(augment, image_shape=image_shape)


def _scaled(classes: Mapping[str, Classes], shape: tuple[int, ...]) -> bool | None:
    if all(each.examples.dtype == torch.uint8 for each in classes.values()):
        return True
    # What made float32 of a picture (a transform that divides by 255, or none) happened before.
    return None if len(shape) == 3 else False


def _common_shape(classes: Mapping[str, Classes], rotations: bool) -> tuple[int, ...]:
    for split, each in classes.items():
        if each.examples.dtype == torch.uint8 and len(each.shape) != 3:
            raise UsageError(
                f"The images of split {split!r} must be uint8 [class, drawing, channel, height, width], got examples of"
                f" shape {list(each.shape)}."
            )
        if rotations and (len(each.shape) != 3 or each.shape[-1] != each.shape[-2]):
            raise UsageError(f"rotations=true needs square images, got examples {list(each.shape)} in split {split!r}.")
    shapes = {each.shape for each in classes.values()}
    if len(shapes) != 1:
        raise UsageError(f"All splits must have examples of one shape, got {sorted(shapes)}.")
    return shapes.pop()
