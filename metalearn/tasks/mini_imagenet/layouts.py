"""mini-ImageNet's pictures in the layouts that people have: flat with lists, or a folder a class, split or not."""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from json import loads
from pathlib import Path, PurePosixPath

from metalearn.errors import UsageError
from metalearn.tasks.class_splits import SPLITS
from metalearn.tasks.images.files import ImageFile, ImageTree, list_images, split_of

NUM_IMAGES = 600  # of each class
_CLASS = re.compile(r"n\d{8}")  # a WordNet id


@cache
def class_ids(split: str) -> tuple[str, ...]:
    """The WordNet ids of a split's classes, sorted."""
    text = files("metalearn.tasks").joinpath("data").joinpath("mini_imagenet_splits.json").read_text(encoding="utf-8")
    return tuple(sorted(loads(text)[split]))


def find_mini_imagenet(place: Path) -> ImageTree | None:
    """The pictures of a folder or zip by class, None where there are none.

    Three layouts have the same classes, with pictures in the order of their file names:

    - `images/n0153282900000005.jpg` …, a class by the lists `train.csv`, `val.csv` and `test.csv` (columns `filename`
      and `label`) beside `images`, or by the first nine characters of the name where there are no lists;
    - `train/n01532829/….jpg`, `val/…`, `test/…`;
    - `n01532829/….jpg`.

    Raises:
        UsageError: something is not the whole mini-ImageNet, or has a class in another split than it is published in.
    """
    if not place.exists():
        return None
    tree = list_images(place)
    if tree.loose:
        raise UsageError(
            f"{place} has images that lie in no folder of it, {tree.loose[0]!r} first. Set task.root to the folder"
            " above, which holds `images` and its lists, or put the images of each class into a folder."
        )
    if not tree.classes:
        return None
    found: dict[str, list[ImageFile]] = {name: [] for split in SPLITS for name in class_ids(split)}
    for folder, pictures in tree.classes.items():
        for name, picture in _labelled(tree.path, folder, pictures):
            if name not in found:
                raise UsageError(
                    f"{tree.path}: {picture.member} is of {name!r}, which is no class of mini-ImageNet. Remove it, or"
                    " read a data set of your own by task=image_folder."
                )
            found[name].append(picture)
    for name, own in found.items():
        if len(own) != NUM_IMAGES:
            raise UsageError(
                f"{tree.path} has {len(own)} images of {name!r}, expected {NUM_IMAGES} of each of the 100 classes."
                " Copy or extract them again; whole ImageNet is read by task=image_folder."
            )
    return replace(tree, classes={name: tuple(sorted(found[name], key=_file_name)) for name in sorted(found)})


def _file_name(picture: ImageFile) -> str:
    return PurePosixPath(picture.member).name


def _labelled(path: Path, folder: str, pictures: tuple[ImageFile, ...]) -> Iterator[tuple[str, ImageFile]]:
    """The class and the file of each picture of a folder; those that lists leave out are not among them."""
    parts = folder.split("/")
    split = next((split for split in map(split_of, parts) if split), None)
    if _CLASS.fullmatch(parts[-1]):
        labelled = [(parts[-1], picture) for picture in pictures]
    else:
        lists = _read_lists((path / pictures[0].member).parents[1])
        labelled = [(label, picture) for picture in pictures if (label := _label(_file_name(picture), lists))]
    if split is not None:
        for name in {name for name, _ in labelled}:
            _check_split(name, split, where=f"{path}: the folder {folder}")
    yield from labelled


def _label(file_name: str, lists: Mapping[str, str]) -> str | None:
    # A picture of the flat layout is called by its class, n0153282900000005.jpg.
    return lists.get(file_name) if lists else file_name[: len("n01532829")]


def _read_lists(folder: Path) -> Mapping[str, str]:
    """File name -> class, of the lists in a folder; nothing where there is none."""
    labels: dict[str, str] = {}
    for split in SPLITS:
        file = folder / f"{split}.csv"
        if not file.is_file():
            continue
        try:
            with file.open(encoding="utf-8", newline="") as stream:
                rows = [(row["filename"], row["label"]) for row in csv.DictReader(stream)]
        except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(
                f"{file} can not be read ({type(error).__name__}: {error}). Expected columns `filename` and `label`."
            ) from error
        for name in {label for _, label in rows}:
            _check_split(name, split, where=str(file))
        labels.update(rows)
    return labels


def _check_split(name: str, split: str, *, where: str) -> None:
    published = next((each for each in SPLITS if name in class_ids(each)), None)
    if published not in (None, split):
        raise UsageError(
            f"{where} has {name!r} in {split!r}; in Ravi and Larochelle's split it is in {published!r}. Correct it, or"
            " read another split by task=image_folder."
        )
