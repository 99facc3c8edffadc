"""The embedded default task: characters of invented scripts, drawn by the package itself, with Omniglot's protocol."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks.base import check_count
from metalearn.tasks.classes import Classes
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.counts import Count
from metalearn.tasks.glyphs.alphabets import draw_alphabets
from metalearn.tasks.glyphs.drawing import draw
from metalearn.tasks.images.format import ImageFormat

_TRAIN, _VAL = 0.64, 0.10  # of the alphabets; about the shares of Omniglot's usual split
_ALPHABETS_AT_A_TIME = 5  # bounds the memory that drawing needs


class Glyphs(ClassificationSource):
    """N-way K-shot classification of hand-drawn characters that no one has written before.

    A stand-in for Omniglot that needs no data and no network: alphabets with a style of their own, characters as
    programs of pen strokes, and a number of drawers for each alphabet who place, bend, slant and scale them, as 28 x 28
    images of thin anti-aliased lines (ink is 1). The splits have no alphabet in common.

    The images are a function of `glyph_seed`, `characters` and `drawings` alone, and alphabet number i is the same in a
    world of any size.

    Attributes:
        alphabets: the number of the alphabet that each stored class belongs to, by split, `[class]`.
    """

    def __init__(
        self,
        *,
        ways: Count = 5,
        shots: Count = 1,
        query_shots: int = 15,
        imbalanced: bool = False,
        augment: Any = None,
        num_alphabets: int = 50,
        characters: int = 30,
        drawings: int = 20,
        rotations: bool = True,
        glyph_seed: int = 0,
    ) -> None:
        """Draws the world: a few seconds for the default 1,500 characters by 20 drawers.

        Args:
            ways: classes in an episode, or the lowest and highest number.
            shots: support examples a class, or the lowest and highest number.
            query_shots: query examples a class.
            imbalanced: whether each class of an episode draws its own shots from the range.
            augment: transforms of torchvision v2 for the training images.
            num_alphabets: how many alphabets to invent; the first 64% are for training, the next 10% for validation.
            characters: how many an alphabet has.
            drawings: how many people draw each character.
            rotations: whether every character turned by 90, 180 and 270 degrees is a class of its own.
            glyph_seed: which world.

        Raises:
            UsageError: for counts that are too small, or episodes that are larger than the world.
        """
        check_count("num_alphabets", num_alphabets, minimum=3)
        check_count("characters", characters)
        check_count("drawings", drawings)
        if isinstance(glyph_seed, bool) or not isinstance(glyph_seed, int):
            raise UsageError(f"`glyph_seed` must be a whole number, got {glyph_seed!r}.")
        images = _world(glyph_seed, num_alphabets, characters, drawings)
        members = _split(num_alphabets)
        self.alphabets = {split: part.repeat_interleave(characters) for split, part in members.items()}
        super().__init__(
            name="glyphs",
            classes={
                split: Classes.of(images[part].flatten(0, 1)[:, :, None], _names(part, characters, glyph_seed))
                for split, part in members.items()
            },
            ways=ways,
            shots=shots,
            query_shots=query_shots,
            imbalanced=imbalanced,
            augment=augment,
            rotations=rotations,
            # What makes a person's own ink on paper one of these.
            image_format=ImageFormat((28, 28), color="grey", inverted=True),
            details=_details(members, characters, drawings, glyph_seed),
        )


def draw_world(glyph_seed: int, num_alphabets: int, characters: int, drawings: int) -> Tensor:
    """All the images of a world, uint8 `[alphabet, character, drawing, 28, 28]`, ink 255."""
    # Always on the CPU, whatever the default device: another one rounds differently, and the world would change.
    with torch.device("cpu"):
        keys = random.fold_in(random.key(glyph_seed), torch.arange(num_alphabets))
        return torch.cat(
            [
                _draw(keys[start : start + _ALPHABETS_AT_A_TIME], characters, drawings)
                for start in range(0, num_alphabets, _ALPHABETS_AT_A_TIME)
            ]
        )


_world = lru_cache(maxsize=1)(draw_world)  # it takes seconds, and a process often has several sources of one world


def _draw(keys: Tensor, characters: int, drawings: int) -> Tensor:
    return draw(random.fold_in(keys, 1), draw_alphabets(random.fold_in(keys, 0), characters), drawings)


def _split(num_alphabets: int) -> dict[str, Tensor]:
    """The numbers of each split's alphabets; every split has one at least."""
    num_val = max(1, round(_VAL * num_alphabets))
    num_train = min(max(1, round(_TRAIN * num_alphabets)), num_alphabets - num_val - 1)
    numbers, held_out = torch.arange(num_alphabets), num_train + num_val
    return {"train": numbers[:num_train], "val": numbers[num_train:held_out], "test": numbers[held_out:]}


def _names(alphabets: Tensor, characters: int, glyph_seed: int) -> list[str]:
    """One name a character of all worlds: two sources of other sizes split the same alphabets in another way."""
    return [
        f"world {glyph_seed}, alphabet {alphabet}, character {character}"
        for alphabet in alphabets.tolist()
        for character in range(characters)
    ]


def _details(members: dict[str, Tensor], characters: int, drawings: int, glyph_seed: int) -> dict[str, Any]:
    return {
        "split_scheme": "by alphabet",
        "alphabets": {split: len(part) for split, part in members.items()},
        "characters_per_alphabet": characters,
        "drawings_per_class": drawings,
        "glyph_seed": glyph_seed,
    }
