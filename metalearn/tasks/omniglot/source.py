"""Omniglot: 1,623 handwritten characters, each drawn by 20 people."""

from pathlib import Path
from typing import Any

import torch

from metalearn.errors import UsageError
from metalearn.tasks.base import check_count
from metalearn.tasks.classes import Classes
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.counts import Count
from metalearn.tasks.images.format import ImageFormat
from metalearn.tasks.omniglot.cache import load_omniglot
from metalearn.tasks.omniglot.splits import character_names, characters_by_split


class Omniglot(ClassificationSource):
    """Few-shot classification of Omniglot's characters, ink = 1 on a background of 0.

    The images are read from `root` when it is given. Otherwise they are looked for in `$METALEARN_DATA/omniglot` and
    in the cache, and then downloaded through torchvision. A place holds the authors' `images_background` and
    `images_evaluation` as zips or folders, or the compact file that the first start leaves in the cache.

    Attributes:
        images: the uint8 drawings by split, `[character, 20, 1, image_size, image_size]`.
        ways: characters in an episode.
        shots: support drawings a character.
        query_shots: query drawings a character.
        rotations: whether a character turned by 90, 180 and 270 degrees is a class of its own.

    Reference:
        Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction",
        Science 350, 2015. The rotations: Santoro et al., arXiv:1605.06065.
    """

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        ways: Count = 5,
        shots: Count = 1,
        query_shots: int = 15,
        imbalanced: bool = False,
        augment: Any = None,
        split: str = "vinyals",
        split_seed: int = 0,
        rotations: bool = True,
        image_size: int = 28,
        download: bool = True,
        cache_dir: str | Path | None = None,
    ) -> None:
        """Load the data set; the first start decodes it (seconds) and caches it.

        Args:
            root: the folder that holds the data; None searches the usual places.
            ways: characters in an episode, or the lowest and highest number.
            shots: support drawings a character, or the lowest and highest number.
            query_shots: query drawings a character; shots + query_shots is at most 20.
            imbalanced: whether each character of an episode draws its own shots from the range.
            augment: transforms of torchvision v2 for the training images.
            split: `"vinyals"`, `"lake"` or `"random"` (`metalearn.tasks.omniglot.splits.characters_by_split`).
            split_seed: what `"random"` shuffles the characters by.
            rotations: whether turned characters are classes of their own, which quadruples the classes of every split.
            image_size: pixels a side, 1 … 105.
            download: whether to download data that is in no place.
            cache_dir: where the decoded set is kept; None is `$METALEARN_CACHE` or the platform's folder for caches.

        Raises:
            UsageError: for data that is not found or damaged, an unknown split, episodes larger than the data.
        """
        characters = characters_by_split(split, seed=split_seed)  # a misspelt one is told before seconds of decoding
        if check_count("image_size", image_size) > 105:
            raise UsageError(f"`image_size` must be at most 105, the drawings' own size, got {image_size}.")
        drawings = torch.from_numpy(
            load_omniglot(root, image_size=image_size, download=download, cache_dir=cache_dir)
        ).unsqueeze(2)
        super().__init__(
            name="omniglot",
            classes={
                part: Classes.of(drawings[chosen], [character_names()[each] for each in chosen])
                for part, chosen in characters.items()
            },
            ways=ways,
            shots=shots,
            query_shots=query_shots,
            imbalanced=imbalanced,
            augment=augment,
            rotations=rotations,
            image_format=ImageFormat((image_size, image_size), color="grey", inverted=True),
            details=_details(split, split_seed, {part: len(chosen) for part, chosen in characters.items()}),
        )


def _details(split: str, split_seed: int, characters: dict[str, int]) -> dict[str, Any]:
    seed = {"split_seed": split_seed} if split == "random" else {}
    return {"split_scheme": split, **seed, "characters": characters, "resampling": "8-bit grey, Lanczos"}
