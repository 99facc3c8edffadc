"""What a task source is: episodes as a pure function of (split, index) under a seed."""

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError, did_you_mean
from metalearn.types import Episodes


class TaskSource(ABC):
    """A distribution of few-shot tasks. It has no position: what it returns depends on its arguments alone.

    A user's own source needs these attributes and methods and nothing else; to inherit is a convenience.

    Attributes:
        name: the data set's name, `"omniglot"`.
        kind: what the targets are: class labels or real values.
        input_shape: the shape of one example, `(1, 28, 28)` or `(1,)`.
        num_outputs: the ways of a classification, or the width of a regression's target.
        splits: the names that `episodes` knows, `("train", "val", "test")`.

    Optional attributes; the first four are what `metalearn.load` needs to take a person's own examples as they are:

    - `image_format`: the `metalearn.tasks.images.format.ImageFormat` by which files became inputs.
    - `standardisation`: `{"inputs": {"mean": [...], "std": [...]}, "targets": the same or None}`, one number a feature.
    - `label_names`: what each output stands for, where that is the same in all tasks.
    - `scaled_uint8`: whether uint8 values were multiplied by 1/255 (True) or taken as they are (False).
    - `ahead`: how many meta-batches a run may draw at once, 1 where there is none. For a source that draws many
      episodes in the time of few, and whose episodes are the same to the last bit whichever others are drawn with them.
    - `with_ways(ways, *, splits=None)`: the same classification with other ways, of some splits; for algorithms that
      are trained with more of them than they are tested with (`algorithm.train_ways`).
    - `num_training_classes` and `minibatches(num_examples)`: how many classes the training split has in all, and a
      source of its examples labelled by their number among these, `num_examples` an episode, support and query set
      alike; for plain training on all classes at once (`algorithm=pretraining`).
    """

    name: str
    kind: Literal["classification", "regression"]
    input_shape: tuple[int, ...]
    num_outputs: int
    splits: tuple[str, ...]

    @abstractmethod
    def episodes(self, split: str, indices: Sequence[int] | Tensor, *, seed: int = 0) -> Episodes:
        """The episodes with these indices, as one batch.

        Args:
            split: one of `splits`.
            indices: which episodes, `[task]`. Any integers; the same index is the same episode for ever.
            seed: which stream of episodes.

        Returns:
            Support and query sets with tensors `[task, example, ...]` on the source's device: inputs in float32,
            targets as int64 labels 0 … ways - 1 or as float32 values, and a random key a task.

        Raises:
            UsageError: for an unknown split, or indices that are not a list of integers.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> "TaskSource":
        """The same source with its tensors on `device`."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """What one needs to compare numbers: data set, split, class counts, ways, shots … as plain data."""


def episode_keys(
    split: str,
    indices: Sequence[int] | Tensor,
    *,
    seed: int,
    splits: Sequence[str],
    device: torch.device | str | None = None,
) -> Tensor:
    """One random key an episode, `[task]`, from (seed, split, index) alone.

    Example:
        >>> keys = episode_keys("val", [0, 7], seed=3, splits=("train", "val"))
        >>> bool(keys[1] == episode_keys("val", [7], seed=3, splits=("train", "val"))[0])
        True

    Raises:
        UsageError: for a split that is not among `splits`, or indices that are not a list of integers.
    """
    if split not in splits:
        raise UsageError(f"Unknown split {split!r} of episodes. {did_you_mean(str(split), splits)}")
    if isinstance(indices, range):  # counted on the device: numbers that are sent there make the host wait
        index = torch.arange(indices.start, indices.stop, indices.step, device=device)
    else:
        index = torch.as_tensor(indices, device=device)
    if index.numel() == 0:
        index = index.to(torch.int64)
    if index.dim() != 1 or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise UsageError(
            f"`indices` must be a list of integers or an integer tensor [task], got {index.dtype} of shape"
            f" {tuple(index.shape)}. One episode is `indices=[i]`."
        )
    # The name's checksum and not its position, so that a source with one split more draws the same episodes.
    return random.key(seed, zlib.crc32(split.encode()), index.to(torch.int64), device=device)


def check_flag(name: str, value: object) -> bool:
    """`value` if it is a truth value; a `UsageError` that names it otherwise: the text `"no"` would be true."""
    if not isinstance(value, bool):
        raise UsageError(f"`{name}` must be true or false, got {value!r}.")
    return value


def check_path(name: str, value: object) -> Path:
    """The path that `value` is, with `~` resolved; a `UsageError` that names it for what is none."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise UsageError(f"`{name}` must be the path of a file or folder, got {value!r}.")
    return Path(value).expanduser()


def check_count(name: str, value: object, *, minimum: int = 1) -> int:
    """`value` if it is a whole number of at least `minimum`; a `UsageError` that names it otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UsageError(f"`{name}` must be a whole number of at least {minimum}, got {value!r}.")
    return value
