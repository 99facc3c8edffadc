"""CIFAR-100 for each of its few-shot splits: found, downloaded or opened from one store, and divided by class lists."""

import json
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError
from metalearn.tasks.base import check_path
from metalearn.tasks.cache import cache_folder
from metalearn.tasks.cifar_fs.images import FORMAT, download_cifar100, find_cifar100
from metalearn.tasks.class_splits import SPLITS
from metalearn.tasks.classes import Classes
from metalearn.tasks.images.store import ImageStore, find_store, load_store, locked

# All 100 classes, so that one store does for every split of them; its name is that of the first data set that had one.
STORE = "cifar_fs"


def load_split(
    scheme: str, root: str | Path | None, *, download: bool, cache_dir: str | Path | None
) -> tuple[dict[str, Classes], dict[str, Any]]:
    """CIFAR-100's classes by split, and what the protocol card should say of them.

    Args:
        scheme: whose split: `"cifar_fs"` or `"fc100"`.
        root: the folder or zip that holds the data; None searches the usual places.
        download: whether to download data that is in no place.
        cache_dir: where the decoded set is kept.

    Raises:
        UsageError: for data that is not found or damaged.
    """
    store = load_cifar100(root, download=download, cache_dir=cache_dir)
    classes = {split: store.classes(class_names(scheme, split)) for split in SPLITS}
    images = {split: int(each.counts.sum()) for split, each in classes.items()}
    return classes, {**_superclasses_of_their_own(scheme), "images": images, "image_format": FORMAT.to_dict()}


def _superclasses_of_their_own(scheme: str) -> dict[str, Any]:
    """How many superclasses each split has, where none has classes in two splits."""
    names = {split: superclasses(scheme, split).keys() for split in SPLITS}
    counts = {split: len(own) for split, own in names.items()}
    return {"superclasses": counts} if sum(counts.values()) == len(set().union(*names.values())) else {}


@cache
def superclasses(scheme: str, split: str) -> dict[str, tuple[str, ...]]:
    """The names of a split's classes by CIFAR-100's superclass."""
    text = files("metalearn.tasks").joinpath("data").joinpath(f"{scheme}_splits.json").read_text(encoding="utf-8")
    return {name: tuple(classes) for name, classes in json.loads(text)[split].items()}


def class_names(scheme: str, split: str) -> tuple[str, ...]:
    """The names of a split's classes, sorted."""
    return tuple(sorted(name for names in superclasses(scheme, split).values() for name in names))


def load_cifar100(root: str | Path | None, *, download: bool, cache_dir: str | Path | None) -> ImageStore:
    """All images, class by class, from the first place that has them.

    With a `root` nothing else is looked at. Without one: `$METALEARN_DATA/cifar100`, the cache, a download.

    Raises:
        UsageError: when no place has the data, with all that was tried; when a place has damaged data.
    """
    names = tuple(sorted(name for split in SPLITS for name in class_names("cifar_fs", split)))
    downloads = cache_folder(cache_dir) / "cifar100"
    places = _default_places(downloads) if root is None else [check_path("root", root)]
    for place in places:
        if (pictures := find_cifar100(place, names)) is not None:
            return load_store(STORE, pictures, cache_dir=cache_dir)
    tried = [_looked_at(place) for place in places]
    if root is not None:
        raise UsageError(_not_found(tried, "correct `root` (task.root=…), or leave it out to search and download"))
    if (store := find_store(STORE, names, FORMAT.shape, cache_dir=cache_dir)) is not None:
        return store
    if not download:
        raise UsageError(_not_found([*tried, "no download (download=false)"]))
    failure = _download(downloads)
    pictures = None if failure else find_cifar100(downloads, names)
    if pictures is None:
        raise UsageError(_not_found([*tried, f"download through torchvision ({failure or 'it left no images'})"]))
    return load_store(STORE, pictures, cache_dir=cache_dir)


def _default_places(downloads: Path) -> list[Path]:
    data = os.environ.get("METALEARN_DATA")
    return [*([Path(data).expanduser() / "cifar100"] if data else []), downloads]


def _download(folder: Path) -> str | None:
    try:
        with locked(folder, doing="downloading"):
            return download_cifar100(folder)
    except OSError as error:
        return f"{type(error).__name__}: {error}"


def _looked_at(place: Path) -> str:
    return f"{place} ({'no CIFAR-100 in it' if place.exists() else 'no such folder'})"


def _not_found(tried: list[str], fix: str = "set task.root to the zip or folder") -> str:
    return (
        f"CIFAR-100 was not found. Tried: {'; '.join(tried)}. Expected cifar100_png.zip or its folders,"
        " <class>/{train,test}_<name>.png, or torchvision's cifar-100-python.\n"
        f"To mend it, {fix}; `task=glyphs` is few-shot classification without data."
    )
