"""A person's own pictures: a folder or zip with one folder of images a class."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError
from metalearn.tasks.base import check_count, check_path
from metalearn.tasks.classes import Classes
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.counts import Count, span
from metalearn.tasks.images.decoding import TreePictures
from metalearn.tasks.images.files import ImageTree, list_images
from metalearn.tasks.images.format import BadImageError, ImageFormat, OtherSizeError, open_picture
from metalearn.tasks.images.splits import ClassSplits, split_classes
from metalearn.tasks.images.store import ImageStore, find_size, load_store

_logger = logging.getLogger(__name__)


class ImageFolder(ClassificationSource):
    """Few-shot classification of the pictures in a folder or zip.

    A class is a folder that directly holds pictures, and its name is its path, so that classes may lie in folders of
    folders. The splits have no class in common: they are the sub-folders `train`, `val` and `test` where there are
    such, or lists of classes, or the classes shuffled by a seed.

    The first start decodes everything into one memory-mapped file in the cache; later ones open it, until a file, the
    splits or a setting of the images changes.

    Attributes:
        classes: the images by split.
        class_names: the names of the classes by split.
        image_format: how a picture's file becomes an input.
        skipped: the names of the pictures that were left out because they could not be read.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        ways: Count = 5,
        shots: Count = 1,
        query_shots: int = 15,
        imbalanced: bool = False,
        splits: Mapping[str, Sequence[str]] | str | Path | None = None,
        split_seed: int = 0,
        fractions: Sequence[float] = (0.64, 0.16, 0.2),
        image_size: int | None = None,
        color: str = "rgb",
        inverted: bool = False,
        fit: str = "crop",
        on_bad_image: str = "error",
        rotations: bool = False,
        augment: Any = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        """Load the pictures; the first start decodes them and keeps them.

        Args:
            root: the folder or zip.
            ways: classes in an episode, or the lowest and highest number.
            shots: support images a class, or the lowest and highest number.
            query_shots: query images a class.
            imbalanced: whether each class of an episode draws its own shots from the range.
            splits: the names of the classes by split, or a file or folder that holds them
                (`metalearn.tasks.images.splits.split_classes`).
            split_seed: what the classes are shuffled by, when nothing else says what is in which split.
            fractions: of the shuffled classes for train, val and test.
            image_size: pixels a side that every picture is brought to; None takes them as they are, of one size.
            color: `"rgb"` or `"grey"`.
            inverted: whether dark becomes high: for drawings in ink.
            fit: how a picture of other proportions is brought to size: `"crop"` or `"stretch"`.
            on_bad_image: `"error"` ends with the name of a picture that can not be read, `"skip"` leaves it out.
            rotations: whether every class turned by 90, 180 and 270 degrees is a class of its own.
            augment: transforms of torchvision v2 for the training images.
            cache_dir: where the decoded set is kept; None is `$METALEARN_CACHE` or the platform's folder for caches.

        Raises:
            UsageError: no pictures, an empty class, a class in two splits or too small for an episode, a picture that
                can not be read, pictures of several sizes without `image_size`.
        """
        tree = _listed(root)
        chosen = split_classes(tree, splits, seed=split_seed, fractions=fractions)
        _check_room(tree, chosen, ways=ways, shots=shots, query_shots=query_shots, turns=4 if rotations else 1)
        side = 1 if image_size is None else check_count("image_size", image_size)
        image_format = ImageFormat((side, side), color=color, inverted=inverted, fit=fit)
        # Sorted, so that one store does for every `split_seed`.
        names = tuple(sorted(name for folders in chosen.folders.values() for name in folders))
        pictures = TreePictures(tree, image_format, names, same_size=image_size is None)
        name = _name(tree.path)
        if image_size is None:
            size = find_size(name, pictures, on_bad_image=on_bad_image, cache_dir=cache_dir)
            image_format = replace(image_format, size=size or _first_size(pictures, skip=on_bad_image == "skip"))
        store = _loaded(name, replace(pictures, format=image_format), on_bad_image, cache_dir)
        self.skipped = store.skipped
        classes = _by_split(store, chosen)
        super().__init__(
            name=name,
            classes=classes,
            ways=ways,
            shots=shots,
            query_shots=query_shots,
            imbalanced=imbalanced,
            rotations=rotations,
            augment=augment,
            image_format=image_format,
            details={
                "split_scheme": chosen.scheme,
                **chosen.details,
                "images": {split: int(each.counts.sum()) for split, each in classes.items()},
                "images_skipped": len(store.skipped),
                "image_format": image_format.to_dict(),
            },
        )


def _listed(root: str | Path | None) -> ImageTree:
    if root is None:
        raise UsageError("`root` is missing: set task.root to a folder with one folder of images a class, or its zip.")
    tree = list_images(check_path("root", root))
    if tree.empty:
        raise UsageError(
            f"{tree.path} has a class without images, {tree.empty[0]!r} ({len(tree.empty)} such). Put images"
            " (png, jpg …) into the folder, or remove it."
        )
    if tree.loose:
        raise UsageError(
            f"{tree.path} has images that lie in no class's folder, {tree.loose[0]!r} ({len(tree.loose)} such). Put the"
            " images of each class into a folder of its own."
        )
    if not tree.classes:
        zips = sorted(tree.path.glob("*.zip")) if tree.path.is_dir() else []
        hint = f" Did you mean task.root={zips[0]}?" if zips else ""
        raise UsageError(f"{tree.path} holds no images. Expected one folder of images (png, jpg …) a class.{hint}")
    return tree


def _name(path: Path) -> str:
    path = path.resolve()
    return re.sub(r"[^\w.-]+", "_", path.stem if path.is_file() else path.name)[:60] or "images"


def _check_room(
    tree: ImageTree, chosen: ClassSplits, *, ways: Count, shots: Count, query_shots: int, turns: int
) -> None:
    """What the base class checks too, told before minutes of decoding and with the names of folders."""
    most_ways, most_shots = span("ways", ways, minimum=2).high, span("shots", shots, minimum=1).high
    needed = most_shots + check_count("query_shots", query_shots)
    for split, folders in chosen.folders.items():
        if most_ways > turns * len(folders):
            raise UsageError(
                f"ways={most_ways} is more than the {turns * len(folders)} classes of split {split!r} of {tree.path}."
                f" Choose task.ways <= {turns * len(folders)}, or other splits (task.splits, task.fractions)."
            )
        smallest = min(folders, key=lambda name: len(tree.classes[name]))
        if needed > (count := len(tree.classes[smallest])):
            raise UsageError(
                f"The class {smallest!r} of {tree.path} has {count} {'image' if count == 1 else 'images'}, and"
                f" shots={most_shots} with query_shots={query_shots} need {needed} of each class."
                " Lower task.shots or task.query_shots, add images, or remove the folder."
            )


def _first_size(pictures: TreePictures, *, skip: bool) -> tuple[int, int]:
    """(height, width) of the first picture that can be read."""
    with pictures.tree.opened() as read:
        for member in (member for members in pictures.members.values() for member in members):
            try:
                picture = open_picture(read(member), f"{pictures.tree.path}: {member}")
            except BadImageError:
                if not skip:
                    raise
            else:
                return picture.height, picture.width
    raise UsageError(f"{pictures.tree.path} has no image that can be read.")


def _by_split(store: ImageStore, chosen: ClassSplits) -> dict[str, Classes]:
    return {split: replace(store.classes(names), names=chosen.names[split]) for split, names in chosen.folders.items()}


def _loaded(name: str, pictures: TreePictures, on_bad_image: str, cache_dir: str | Path | None) -> ImageStore:
    try:
        store = load_store(name, pictures, on_bad_image=on_bad_image, cache_dir=cache_dir)
    except OtherSizeError as error:
        side = min(pictures.format.size)
        raise UsageError(
            f"{error} Without `image_size` all images must have the size of the first one:"
            f" set task.image_size={side} to bring them to {side} x {side}."
        ) from error
    if store.skipped:
        path, number, first = pictures.tree.path, len(store.skipped), store.skipped[0]
        _logger.warning("%s: %d images could not be read and were left out, %s first.", path, number, first)
    return store
