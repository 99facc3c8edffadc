"""N-way K-shot episodes out of images held in memory, sampled and rotated with tensor operations alone."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks.base import TaskSource, check_count, episode_keys
from metalearn.types import Episodes


class ClassificationSource(TaskSource):
    """Few-shot classification over classes of images: `ways` classes an episode, disjoint support and query drawings.

    Classes are drawn without replacement within an episode, and drawings without replacement within a class. Labels are
    dealt out anew in every episode. Examples lie class by class: labels are `0, 0, …, 1, 1, …`.

    A data set of one's own is this class with one's own images; the sources of this package add an `__init__` alone.

    Attributes:
        images: the uint8 images by split, `[class, drawing, channel, height, width]`.
        ways: classes in an episode.
        shots: support examples a class.
        query_shots: query examples a class.
        rotations: whether every class turned by 90, 180 and 270 degrees is a class of its own.

    Example:
        >>> images = torch.randint(0, 256, (6, 4, 1, 8, 8), dtype=torch.uint8)
        >>> source = ClassificationSource(name="mine", images={"train": images}, ways=3, shots=1, query_shots=2)
        >>> source.episodes("train", [0, 1]).query[0].shape
        torch.Size([2, 6, 1, 8, 8])
    """

    kind: Literal["classification", "regression"] = "classification"

    def __init__(
        self,
        *,
        name: str,
        images: Mapping[str, Tensor],
        ways: int = 5,
        shots: int = 1,
        query_shots: int = 15,
        rotations: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """A source over `images`, which are kept without copying.

        Args:
            name: the data set's name, for the protocol card.
            images: uint8 tensors `[class, drawing, channel, height, width]` by split; 255 becomes 1.0.
            ways: classes in an episode.
            shots: support examples a class.
            query_shots: query examples a class.
            rotations: whether every class turned by 90, 180 and 270 degrees is a class of its own.
            details: what else the protocol card should say (split scheme, seeds, …), as plain data.

        Raises:
            UsageError: for images of another kind, and for episodes that are larger than the data.
        """
        self.images = {split: _checked(split, tensor, rotations) for split, tensor in images.items()}
        shapes = {tuple(tensor.shape[2:]) for tensor in self.images.values()}
        if len(shapes) != 1:
            raise UsageError(f"`images` must hold splits of one image shape, got {sorted(shapes)}.")
        self.name = name
        self.splits = tuple(self.images)
        self.input_shape = shapes.pop()
        self.ways = self.num_outputs = check_count("ways", ways, minimum=2)
        self.shots = check_count("shots", shots)
        self.query_shots = check_count("query_shots", query_shots)
        self.rotations = rotations
        self._details = dict(details or {})
        for split in self.splits:
            self._check_room(split)

    def num_classes(self, split: str) -> int:
        """How many classes the episodes of `split` draw from, rotations included."""
        return len(self.images[split]) * (4 if self.rotations else 1)

    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """See `TaskSource.episodes`: inputs float32 in [0, 1], `[task, ways * shots, channel, height, width]`."""
        device = self.images[self.splits[0]].device
        keys = episode_keys(split, indices, seed=seed, splits=self.splits, device=device)
        characters, turns, drawings = self._choose(split, keys)
        labels = torch.arange(self.ways, device=device)

        def examples(start: int, stop: int) -> tuple[Tensor, Tensor]:
            inputs = self._gather(split, characters, turns, drawings[..., start:stop])
            return inputs, labels.repeat_interleave(stop - start).repeat(len(keys), 1)

        return Episodes(
            support=examples(0, self.shots),
            query=examples(self.shots, self.shots + self.query_shots),
            key=random.fold_in(keys, 2),
        )

    def to(self, device: torch.device | str) -> "ClassificationSource":
        """The same source with its images on `device`."""
        moved = copy.copy(self)
        moved.images = {split: tensor.to(device) for split, tensor in self.images.items()}
        return moved

    def protocol(self) -> dict[str, Any]:
        """The data set, its classes by split and the episodes' shape, as plain data."""
        return {
            "dataset": self.name,
            "classes": {split: self.num_classes(split) for split in self.splits},
            "rotations_as_classes": self.rotations,
            "ways": self.ways,
            "shots": self.shots,
            "query_shots": self.query_shots,
            "input_shape": list(self.input_shape),
            **copy.deepcopy(self._details),
        }

    def _choose(self, split: str, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stored classes and quarter turns `[task, way]`, and drawings `[task, way, shots + query_shots]`."""
        num_stored, num_drawings = self.images[split].shape[:2]
        classes = random.choose(random.fold_in(keys, 0), self.num_classes(split), self.ways)
        way_keys = random.fold_in(random.fold_in(keys, 1)[:, None], torch.arange(self.ways, device=keys.device))
        drawings = random.choose(way_keys, num_drawings, self.shots + self.query_shots)
        return classes % num_stored, classes // num_stored, drawings

    def _gather(self, split: str, characters: Tensor, turns: Tensor, drawings: Tensor) -> Tensor:
        """The chosen drawings as float32 in [0, 1], `[task, ways * drawings, channel, height, width]`."""
        images = self.images[split]
        rows = characters[..., None] * images.shape[1] + drawings
        # index_select copies whole images: twenty times faster than indexing with two tensors.
        chosen = images.flatten(0, 1).index_select(0, rows.flatten())
        chosen = chosen.reshape(len(rows), self.ways * drawings.shape[-1], *self.input_shape)
        if self.rotations:
            chosen = rotate(chosen, turns.repeat_interleave(drawings.shape[-1], dim=-1))
        # A product, because a division by a number is not rounded alike on every device.
        return chosen.to(torch.float32).mul_(1 / 255)

    def _check_room(self, split: str) -> None:
        num_classes, num_drawings = self.num_classes(split), self.images[split].shape[1]
        if self.ways > num_classes:
            raise UsageError(
                f"ways={self.ways} is more than the {num_classes} classes of split {split!r} of {self.name}."
                f" Choose ways <= {num_classes}."
            )
        if self.shots + self.query_shots > num_drawings:
            raise UsageError(
                f"shots={self.shots} and query_shots={self.query_shots} need {self.shots + self.query_shots} drawings a"
                f" class, and {self.name} has {num_drawings} in split {split!r}. Lower one of them."
            )


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


def _checked(split: str, images: Tensor, rotations: bool) -> Tensor:
    if images.dtype != torch.uint8 or images.dim() != 5:
        raise UsageError(
            f"The images of split {split!r} must be uint8 [class, drawing, channel, height, width],"
            f" got {images.dtype} of shape {tuple(images.shape)}."
        )
    if rotations and images.shape[-1] != images.shape[-2]:
        raise UsageError(f"rotations=true needs square images, got {tuple(images.shape[-2:])} in split {split!r}.")
    return images
