"""Which classes of a tree of pictures belong to which split: by sub-folders, by lists of their names, or by a seed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metalearn.errors import UsageError
from metalearn.tasks.class_splits import FRACTIONS, SPLITS, split_names
from metalearn.tasks.images.files import SPLIT_FOLDERS, ImageTree


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
            folder with a `train.txt` … with a name a line. None takes the tree's own folders `train`, `val` and `test`
            where it has them, and shuffles the classes otherwise.
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
        folders = _folders(split_names(names, split_seed=seed, fractions=fractions, plural=plural))
        chosen = ClassSplits("random", folders, {"split_seed": seed, "split_fractions": list(fractions)})
    _check_apart(tree, chosen)
    return chosen


def _folders(names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {split: tuple(chosen) for split, chosen in names.items()}


def _below(folder: str) -> str:
    return folder.partition("/")[2]


def _sub_folders(tree: ImageTree) -> dict[str, tuple[str, ...]] | None:
    """The classes by split if their top folders are those of splits."""
    tops = {name: name.partition("/")[0] for name in tree.classes}
    found = {SPLIT_FOLDERS[tops[name]] for name in tree.classes if _below(name) and tops[name] in SPLIT_FOLDERS}
    if not found:
        return None
    if foreign := [name for name in tree.classes if not _below(name) or tops[name] not in SPLIT_FOLDERS]:
        raise UsageError(
            f"{tree.path} has folders of splits ({', '.join(sorted(found))}) and beside them the class {foreign[0]!r}."
            " Move it into a split, or list the classes of each split (task.splits)."
        )
    return {
        split: tuple(name for name in tree.classes if SPLIT_FOLDERS[tops[name]] == split)
        for split in SPLITS
        if split in found
    }


def _listed(splits: Mapping[str, Sequence[str]] | str | Path) -> dict[str, Sequence[str]]:
    """The lists by our own names of the splits."""
    lists = splits if isinstance(splits, Mapping) else _read(Path(splits).expanduser())
    found: dict[str, Sequence[str]] = {}
    for given, names in lists.items():
        split = SPLIT_FOLDERS.get(str(given), str(given))
        if split in found:
            raise UsageError(f"`splits` lists {split!r} under two names. Remove one.")
        found[split] = names
    return found


def _read(path: Path) -> Mapping[str, Sequence[str]]:
    try:
        if path.is_dir():
            files = {split: path / f"{split}.txt" for split in SPLIT_FOLDERS if (path / f"{split}.txt").is_file()}
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
