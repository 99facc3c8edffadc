"""Which classes (or groups) belong to which split: by lists, or shuffled by a seed. No name is ever in two."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from metalearn import random
from metalearn.errors import UsageError, did_you_mean

SPLITS = ("train", "val", "test")
FRACTIONS = (0.64, 0.16, 0.20)
"""The shares of train, val and test in mini-ImageNet and CIFAR-FS."""


def split_names(
    names: Sequence[str],
    *,
    splits: Mapping[str, Sequence[Any]] | None = None,
    split_seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    what: str = "class",
    plural: str = "classes",
) -> dict[str, list[str]]:
    """The names of each split, in the order of `names`.

    Args:
        names: all there are, each once.
        splits: the names of each split; those that no list has are left out. `None` shuffles.
        split_seed: what the names are shuffled by.
        fractions: the shares of train, val and test when shuffled; a share of 0 is no split.
        what: what a name is of, for errors.
        plural: of `what`.

    Example:
        >>> {split: len(chosen) for split, chosen in split_names([f"c{i}" for i in range(100)]).items()}
        {'train': 64, 'val': 16, 'test': 20}

    Raises:
        UsageError: an unknown split or name, a name in two splits, an empty split, or shares that are none.
    """
    if splits is None:
        return _shuffled(names, split_seed, fractions, plural)
    if not isinstance(splits, Mapping) or not splits:
        raise UsageError(f"`splits` must give a list of {plural} for each split, {{train: [a, b], …}}, got {splits!r}.")
    found: dict[str, str] = {}
    known = set(names)
    for split, listed in splits.items():
        if split not in SPLITS:
            raise UsageError(f"Unknown split {split!r} in `splits`. {did_you_mean(str(split), SPLITS)}")
        if isinstance(listed, str) or not isinstance(listed, Iterable) or not list(listed):
            raise UsageError(f"splits.{split} must be a list of {plural}, such as [a, b], got {listed!r}.")
        for name in map(str, listed):
            if name not in known:
                raise UsageError(
                    f"splits.{split} has {what} {name!r}, which is not there. {_nearest(name, names, plural)}"
                )
            if name in found:
                raise UsageError(
                    f"The {what} {name!r} is in the splits {found[name]!r} and {split!r}: what is tested must not have"
                    " been trained on. Keep it in one of them."
                    if found[name] != split
                    else f"splits.{split} has the {what} {name!r} twice. Leave one out."
                )
            found[name] = split
    return {split: [name for name in names if found.get(name) == split] for split in SPLITS if split in splits}


def _nearest(name: str, names: Sequence[str], plural: str) -> str:
    told = did_you_mean(name, names)
    # All of hundreds of names would be no sentence.
    return told if len(told) < 200 else f"There are {len(names)} {plural}, {names[0]!r} first."


def _shuffled(names: Sequence[str], seed: int, fractions: Sequence[float], plural: str) -> dict[str, list[str]]:
    shares = _checked(fractions)
    used = [split for split in SPLITS if shares[split] > 0]
    if len(names) < len(used):
        raise UsageError(
            f"There are {len(names)} {plural}, too few for the splits {', '.join(used)}. Give more, or other"
            " `fractions`."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise UsageError(f"`split_seed` must be a whole number below 2**63, got {seed!r}.")
    sizes = _sizes(len(names), [shares[split] for split in used])
    order: list[int] = random.choose(random.key(torch.tensor(seed)), len(names), len(names)).tolist()
    found, start = {}, 0
    for split, size in zip(used, sizes, strict=True):
        found[split] = [names[index] for index in sorted(order[start : start + size])]
        start += size
    return found


def _checked(fractions: Any) -> dict[str, float]:
    try:
        shares = [float(each) for each in fractions]
    except (TypeError, ValueError):
        shares = []
    # Rounded, because 0.64 + 0.16 + 0.2 is not 1 to the last bit.
    if len(shares) != len(SPLITS) or not min(shares) >= 0 or not math.isclose(sum(shares), 1):
        raise UsageError(
            "`fractions` must be the shares of train, val and test, which add up to 1, such as [0.64, 0.16, 0.2], got"
            f" {fractions!r}."
        )
    return dict(zip(SPLITS, shares, strict=True))


def _sizes(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the shares that add up to `total`, each at least 1."""
    sizes = [max(1, math.floor(share * total + 1e-9)) for share in shares]
    while sum(sizes) != total:
        step = 1 if sum(sizes) < total else -1
        # The one that is furthest from its share gives or takes.
        missing = [step * (share * total - size) for share, size in zip(shares, sizes, strict=True)]
        gaps = [gap if size + step >= 1 else -math.inf for gap, size in zip(missing, sizes, strict=True)]
        sizes[gaps.index(max(gaps))] += step
    return sizes
