"""Which classes of a tree of pictures belong to which split: by sub-folders, by lists of their names, or by a seed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metalearn.errors import UsageError
from metalearn.tasks.class_splits import FRACTIONS, SPLITS, split_names
from metalearn.tasks.images.files import ImageTree, looks_like_split, split_of


@dataclass(frozen=True)
class ClassSplits:
    """The classes of each split.

    Attributes:
        scheme: `"sub-folders"`, `"class lists"` or `"random"`.
        folders: the names of the classes in the tree, by split.
        details: what else the protocol card should say of them.
    """

    scheme: str
    folders: dict[str, tuple[str, ...]]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """What to call the classes, by split: their folders, without that of the split."""
        if self.scheme != "sub-folders":
            return self.folders
        return {split: tuple(map(_below, folders)) for split, folders in self.folders.items()}


def split_classes(
    tree: ImageTree,
    splits: Mapping[str, Sequence[str]] | str | Path | None = None,
    *,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
) -> ClassSplits:
    """The classes of each split.

    Args:
        tree: the pictures.
        splits: the names of the classes by split (`"train"`, `"val"`, `"test"`); or a JSON or YAML file of that; or a
            folder with a `train.txt` … with a name a line. None takes the tree's own folders `train`, `val`
            and `test` (or `Training`, `dev` …: `files.split_of`) where it has them, and shuffles the classes otherwise.
        seed: what the classes are shuffled by.
        fractions: of the classes for train, val and test when they are shuffled.

    Raises:
        UsageError: a class in two splits, an unknown class or split, too few classes to split.
    """
    names, plural = list(tree.classes), f"classes of {tree.path}"
    if splits is not None:
        chosen = ClassSplits("class lists", _folders(split_names(names, splits=_listed(splits), plural=plural)))
        left_out = len(tree.classes) - sum(map(len, chosen.folders.values()))
        chosen = ClassSplits(chosen.scheme, chosen.folders, {"classes_left_out": left_out} if left_out else {})
    elif folders := _sub_folders(tree):
        chosen = ClassSplits("sub-folders", folders)
    else:
        _refuse_unknown_splits(tree)
        folders = _folders(split_names(names, split_seed=seed, fractions=fractions, plural=plural))
        chosen = ClassSplits("random", folders, {"split_seed": seed, "split_fractions": list(fractions)})
    _check_apart(tree, chosen)
    return chosen


def _folders(names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {split: tuple(chosen) for split, chosen in names.items()}


def _below(folder: str) -> str:
    return folder.partition("/")[2]


def _top(folder: str) -> str:
    return folder.partition("/")[0]


def _sub_folders(tree: ImageTree) -> dict[str, tuple[str, ...]] | None:
    """The classes by split if their top folders are those of splits."""
    split_by_name = {name: split_of(_top(name)) if _below(name) else None for name in tree.classes}
    found = {split for split in split_by_name.values() if split}
    if not found:
        return None
    if foreign := [name for name, split in split_by_name.items() if split is None]:
        raise UsageError(
            f"{tree.path} has folders of splits ({', '.join(sorted(found))}) and beside them the class {foreign[0]!r}."
            " Move it into a split, or list the classes of each split (task.splits)."
        )
    return {
        split: tuple(name for name, own in split_by_name.items() if own == split) for split in SPLITS if split in found
    }


def _refuse_unknown_splits(tree: ImageTree) -> None:
    """Refuses to shuffle what is split already, in folders called otherwise: a class would be there under two names."""
    seen: dict[str, str] = {}
    for name in filter(_below, tree.classes):
        if looks_like_split(_top(name)) and seen.setdefault(_below(name), _top(name)) != _top(name):
            raise UsageError(
                f"{tree.path} has the class {_below(name)!r} in {seen[_below(name)]!r} and in {_top(name)!r}, which"
                " look like splits: shuffled, one class would be trained on and tested. Call the folders train, val"
                " and test, with classes of their own in each, or list the classes of each split (task.splits)."
            )


def _listed(splits: Mapping[str, Sequence[str]] | str | Path) -> dict[str, Sequence[str]]:
    """The lists by our own names of the splits."""
    if not isinstance(splits, (Mapping, str, Path)):
        raise UsageError(
            f"`splits` must give the classes of each split, {{train: [a, b], …}}, or a file of them, got {splits!r}."
        )
    lists = splits if isinstance(splits, Mapping) else _read(Path(splits).expanduser())
    found: dict[str, Sequence[str]] = {}
    for given, names in lists.items():
        split = split_of(str(given)) or str(given)
        if split in found:
            raise UsageError(f"`splits` lists {split!r} under two names. Remove one.")
        found[split] = names
    return found


def _read(path: Path) -> Mapping[str, Sequence[str]]:
    try:
        if path.is_dir():
            files = {each.stem: each for each in sorted(path.glob("*.txt")) if split_of(each.stem)}
            if not files:
                raise UsageError(f"splits={path} holds no train.txt, val.txt or test.txt with a class name a line.")
            return {split: _lines(file) for split, file in files.items()}
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"splits={path} can not be read ({error.strerror or error}). Expected a JSON or YAML file, or a folder with"
            " train.txt, val.txt and test.txt."
        ) from error
    try:
        lists = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"splits={path} is not intact ({' '.join(str(error).split())}).") from error
    if not isinstance(lists, Mapping):
        raise UsageError(f"splits={path} must hold a list of classes for each of train, val and test.")
    return lists


def _lines(file: Path) -> list[str]:
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _check_apart(tree: ImageTree, chosen: ClassSplits) -> None:
    seen: dict[str, str] = {}
    for split, names in chosen.names.items():
        for name in names:
            if seen.get(name) == split:
                raise UsageError(f"The class {name!r} of {tree.path} is twice in split {split!r}. Remove one.")
            if name in seen:
                raise UsageError(
                    f"The class {name!r} of {tree.path} is in two splits, {seen[name]!r} and {split!r}. Few-shot"
                    " learning is tested on classes that were not trained on: put all images of a class in one split."
                )
            seen[name] = split
