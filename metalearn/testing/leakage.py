"""Examples that are in the support and in the query set, and classes or examples of one split in another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch

from metalearn.tasks.checks import Finding
from metalearn.testing.determinism import contents
from metalearn.types import Episodes

_WITHIN = 0.01
_ACROSS = 0.005
"""Above these parts of the examples it is no longer a duplicate of the data, but leakage."""


@dataclass
class Leaks:
    """What the looks at identical examples have in common.

    Attributes:
        allowed: the data themselves hold duplicates.
        warnings: of the few identical examples that may be duplicates.
    """

    allowed: bool
    warnings: list[str] = field(default_factory=list)


def within_episodes(source: Any, batches: Mapping[str, Episodes], leaks: Leaks) -> Finding | None:
    """Query examples that the support set of their own episode holds too."""
    for split, batch in batches.items():
        leaked = total = 0
        for task in range(len(batch.support[1])):
            parts = contents(batch, task)
            support = set(_examples(source, *parts[:2]))
            query = _examples(source, *parts[2:])
            leaked, total = leaked + sum(each in support for each in query), total + len(query)
        if leaked and not leaks.allowed:
            text = f"{leaked} of {total} query examples of {split!r} are in the support set of their episode too."
            if leaked / total > _WITHIN:
                fix = "Draw support and query together without replacement, and split them then."
                return Finding("leakage", text, f"{fix}{_DUPLICATES}")
            leaks.warnings.append(f"{text[0].upper()}{text[1:]} Are these duplicates in the data?")
    return None


_DUPLICATES = " If the data hold duplicates: check_task(…, allow_duplicates=True)."


def class_leakage(source: Any, splits: Sequence[str]) -> Finding | None:
    """Classes that two splits have, by the names that the source tells."""
    names = getattr(source, "class_names", None)
    if names is None:
        return None
    for one, two in combinations([split for split in splits if split in names], 2):
        shared = [name for name in names[one] if name in set(names[two])]
        if shared:
            shown = ", ".join(repr(name) for name in shared[:3]) + (" …" if len(shared) > 3 else "")
            text = f"{len(shared)} classes are in {one!r} and in {two!r} ({shown})."
            return Finding("class leakage", text, "Give every class to one split: few-shot tests are on new classes.")
    return None


def example_leakage(source: Any, batches: Mapping[str, Episodes], leaks: Leaks) -> Finding | None:
    """Examples, or for a regression whole tasks, that two splits have."""
    whole = source.kind == "regression"
    seen = {split: _of_split(source, batch, whole) for split, batch in batches.items()}
    for one, two in combinations(batches, 2):
        shared = len(seen[one] & seen[two])
        if not shared or leaks.allowed:
            continue
        what = "tasks" if whole else "examples"
        text = f"{shared} of {len(seen[two])} different {what} of {two!r} are in {one!r} too."
        if shared / len(seen[two]) > _ACROSS:
            fix = f"Give every {'task' if whole else 'class'} to one split."
            return Finding("class leakage", text, f"{fix}{_DUPLICATES}")
        leaks.warnings.append(f"{text} Are these duplicates in the data?")
    return None


def class_warnings(source: Any, splits: Sequence[str]) -> list[str]:
    """What is thin about the classes."""
    if source.kind != "classification":
        return []
    names = getattr(source, "class_names", None)
    if names is None:
        return [
            "There are no `class_names`: whether two splits share a class could be looked for in the drawn examples "
            "alone. Add class_names = {split: [names]}."
        ]
    return [
        f"Split {split!r} has {len(names[split])} classes for episodes of {source.num_outputs}: they are nearly all "
        "the same task. Take fewer ways, or more classes."
        for split in splits
        if split in names and len(names[split]) < 2 * source.num_outputs
    ]


def _examples(source: Any, inputs: torch.Tensor, targets: torch.Tensor) -> list[bytes]:
    # In a regression the input alone may well be the same, as on a grid.
    rows = [each.contiguous().numpy().tobytes() for each in inputs]
    if source.kind == "classification":
        return rows
    return [row + target.contiguous().numpy().tobytes() for row, target in zip(rows, targets, strict=True)]


def _of_split(source: Any, batch: Episodes, whole: bool) -> set[bytes]:
    found: set[bytes] = set()
    for task in range(len(batch.support[1])):
        parts = contents(batch, task)
        examples = _examples(source, *parts[:2])
        found |= {b"".join(examples)} if whole else {*examples, *_examples(source, *parts[2:])}
    return found
