"""CIFAR-FS: the 100 classes of CIFAR-100, split for few-shot learning."""

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
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.counts import Count
from metalearn.tasks.images.store import ImageStore, find_store, load_store, locked

NAME = "cifar_fs"


class CifarFS(ClassificationSource):
    """Few-shot classification of CIFAR-100's 32 x 32 colour images: 64 / 16 / 20 classes of 600 images each.

    The images are read from `root` when it is given. Otherwise they are looked for in `$METALEARN_DATA/cifar100` and in
    the cache, and then downloaded through torchvision. A place holds a folder a class, as
    `<class>/{train,test}_<name>.png`, or a zip of that, `cifar100_png.zip`; or what torchvision downloads. CIFAR-100's
    own training and test images of a class are taken together, as the published protocol does.

    Attributes:
        classes: the images by split.
        class_names: CIFAR-100's names of the classes, by split.
        image_format: how a picture's file becomes an input.

    Reference:
        Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019,
        arXiv:1805.08136, section 4.1. The images: Krizhevsky, "Learning multiple layers of features from tiny images",
        2009.
    """

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        ways: Count = 5,
        shots: Count = 1,
        query_shots: int = 15,
        imbalanced: bool = False,
        rotations: bool = False,
        augment: Any = None,
        download: bool = True,
        cache_dir: str | Path | None = None,
    ) -> None:
        """Load the data set; the first start decodes it (seconds) and keeps it, memory-mapped ever after.

        Args:
            root: the folder or zip that holds the data; None searches the usual places.
            ways: classes in an episode, or the lowest and highest number.
            shots: support images a class, or the lowest and highest number.
            query_shots: query images a class.
            imbalanced: whether each class of an episode draws its own shots from the range.
            rotations: whether turned classes are classes of their own (not in the published protocol).
            augment: transforms of torchvision v2 for the training images.
            download: whether to download data that is in no place.
            cache_dir: where the decoded set is kept; None is `$METALEARN_CACHE` or the platform's folder for caches.

        Raises:
            UsageError: for data that is not found or damaged, episodes larger than the data.
        """
        store = load_cifar_fs(root, download=download, cache_dir=cache_dir)
        classes = {split: store.classes(class_names(split)) for split in SPLITS}
        super().__init__(
            name=NAME,
            classes=classes,
            ways=ways,
            shots=shots,
            query_shots=query_shots,
            imbalanced=imbalanced,
            rotations=rotations,
            augment=augment,
            image_format=FORMAT,
            details={
                "split_scheme": "CIFAR-FS (arXiv:1805.08136)",
                "images": {split: int(each.counts.sum()) for split, each in classes.items()},
                "image_format": FORMAT.to_dict(),
            },
        )


@cache
def class_names(split: str) -> tuple[str, ...]:
    """The names of a split's classes, sorted."""
    text = files("metalearn.tasks").joinpath("data").joinpath("cifar_fs_splits.json").read_text(encoding="utf-8")
    return tuple(sorted(name for names in json.loads(text)[split].values() for name in names))


def load_cifar_fs(root: str | Path | None, *, download: bool, cache_dir: str | Path | None) -> ImageStore:
    """All images, class by class, from the first place that has them.

    With a `root` nothing else is looked at. Without one: `$METALEARN_DATA/cifar100`, the cache, a download.

    Raises:
        UsageError: when no place has the data, with all that was tried; when a place has damaged data.
    """
    names = tuple(sorted(name for split in SPLITS for name in class_names(split)))
    downloads = cache_folder(cache_dir) / "cifar100"
    places = _default_places(downloads) if root is None else [check_path("root", root)]
    for place in places:
        if (pictures := find_cifar100(place, names)) is not None:
            return load_store(NAME, pictures, cache_dir=cache_dir)
    tried = [_looked_at(place) for place in places]
    if root is not None:
        raise UsageError(_not_found(tried, "correct `root` (task.root=…), or leave it out to search and download"))
    if (store := find_store(NAME, names, FORMAT.shape, cache_dir=cache_dir)) is not None:
        return store
    if not download:
        raise UsageError(_not_found([*tried, "no download (download=false)"]))
    failure = _download(downloads)
    pictures = None if failure else find_cifar100(downloads, names)
    if pictures is None:
        raise UsageError(_not_found([*tried, f"download through torchvision ({failure or 'it left no images'})"]))
    return load_store(NAME, pictures, cache_dir=cache_dir)


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
