"""Which of Omniglot's 1,623 characters belong to which split: three schemes that the literature uses."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from metalearn import random
from metalearn.errors import UsageError, did_you_mean

SCHEMES = ("vinyals", "lake", "random")
NUM_LAKE_VAL_ALPHABETS = 5
NUM_RANDOM_TRAIN, NUM_RANDOM_VAL = 1100, 100


@cache
def facts() -> dict[str, Any]:
    """The package's data file: Vinyals' splits as ranges of character numbers, and Lake's background alphabets."""
    text = files("metalearn.tasks").joinpath("data").joinpath("omniglot_splits.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


@cache
def character_names() -> tuple[str, ...]:
    """All 1,623 characters as `Alphabet/characterNN`, in the order in which this package stores them."""
    return tuple(sorted(name for split in ("train", "val", "test") for name in _vinyals(split)))


def characters_by_split(scheme: str, *, seed: int = 0) -> dict[str, list[int]]:
    """The positions in `character_names()` that each of train, val and test draws from; no character is in two.

    Args:
        scheme: `"vinyals"`: 1,028 / 172 / 423 characters (Vinyals et al. 2016, arXiv:1606.04080, as most papers use
            it). `"lake"`: the evaluation alphabets are the test set and the background alphabets the training set, but
            for the last five of these by name, which are held out for validation. `"random"`: characters shuffled by
            `seed`, 1,100 / 100 / 423, the protocol of MAML's code (Finn et al. 2017, arXiv:1703.03400).
        seed: what `"random"` shuffles by.

    Raises:
        UsageError: for an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"Unknown Omniglot split {scheme!r}. {did_you_mean(str(scheme), SCHEMES)}")
    if scheme == "random":
        return _shuffled(seed)
    names = _lake() if scheme == "lake" else {split: _vinyals(split) for split in ("train", "val", "test")}
    position = {name: index for index, name in enumerate(character_names())}
    return {split: sorted(position[name] for name in chosen) for split, chosen in names.items()}


def _vinyals(split: str) -> list[str]:
    ranges: dict[str, list[int]] = facts()[split]
    return [
        f"{alphabet}/character{n:02d}" for alphabet, (first, last) in ranges.items() for n in range(first, last + 1)
    ]


def _lake() -> dict[str, list[str]]:
    background = sorted(facts()["background"])
    held_out = set(background[-NUM_LAKE_VAL_ALPHABETS:])
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name in character_names():
        alphabet = name.split("/")[0]
        split = "val" if alphabet in held_out else "train" if alphabet in background else "test"
        splits[split].append(name)
    return splits


def _shuffled(seed: int) -> dict[str, list[int]]:
    count = len(character_names())
    order: list[int] = random.choose(random.key(torch.tensor(seed)), count, count).tolist()
    stop = NUM_RANDOM_TRAIN + NUM_RANDOM_VAL
    parts = {"train": order[:NUM_RANDOM_TRAIN], "val": order[NUM_RANDOM_TRAIN:stop], "test": order[stop:]}
    return {split: sorted(chosen) for split, chosen in parts.items()}
