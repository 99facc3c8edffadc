"""mini-ImageNet: 100 classes of ImageNet, small, from a folder that a person has."""

import os
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError
from metalearn.tasks.base import check_count, check_path
from metalearn.tasks.class_splits import SPLITS
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.counts import Count
from metalearn.tasks.images.decoding import TreePictures
from metalearn.tasks.images.format import ImageFormat
from metalearn.tasks.images.store import ImageStore, find_store, load_store
from metalearn.tasks.mini_imagenet.layouts import class_ids, find_mini_imagenet

NAME = "mini_imagenet"
LISTS_FROM = "https://github.com/twitter/meta-learning-lstm"


class MiniImageNet(ClassificationSource):
    """Few-shot classification of mini-ImageNet's 84 x 84 colour images: 64 / 16 / 20 classes of 600 images each.

    The images are ImageNet's and are not downloaded. They are read from `root`, or else from
    `$METALEARN_DATA/mini_imagenet`: a folder or zip in one of the usual layouts
    (`metalearn.tasks.mini_imagenet.layouts.find_mini_imagenet`), whose episodes are the same. A picture of another size
    is brought to 84 x 84 as a whole, by the Lanczos filter, as the scripts that prepare mini-ImageNet do.

    Attributes:
        classes: the images by split.
        class_names: the WordNet ids of the classes, by split.
        image_format: how a picture's file becomes an input.

    Reference:
        Vinyals et al., "Matching networks for one shot learning", NeurIPS 2016, arXiv:1606.04080. The split: Ravi and
        Larochelle, "Optimization as a model for few-shot learning", ICLR 2017.
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
        image_size: int = 84,
        cache_dir: str | Path | None = None,
    ) -> None:
        """Load the data set; the first start decodes it (a minute) and keeps it, memory-mapped ever after.

        Args:
            root: the folder or zip that holds the data; None is `$METALEARN_DATA/mini_imagenet`.
            ways: classes in an episode, or the lowest and highest number.
            shots: support images a class, or the lowest and highest number.
            query_shots: query images a class.
            imbalanced: whether each class of an episode draws its own shots from the range.
            rotations: whether turned classes are classes of their own (not in the published protocol).
            augment: transforms of torchvision v2 for the training images.
            image_size: pixels a side (84 in the published protocol).
            cache_dir: where the decoded set is kept; None is `$METALEARN_CACHE` or the platform's folder for caches.

        Raises:
            UsageError: for data that is not found or damaged, episodes larger than the data.
        """
        side = check_count("image_size", image_size)
        image_format = ImageFormat((side, side), color="rgb", fit="stretch")
        store = load_mini_imagenet(root, image_format, cache_dir=cache_dir)
        classes = {split: store.classes(class_ids(split)) for split in SPLITS}
        super().__init__(
            name=NAME,
            classes=classes,
            ways=ways,
            shots=shots,
            query_shots=query_shots,
            imbalanced=imbalanced,
            rotations=rotations,
            augment=augment,
            image_format=image_format,
            details={
                "split_scheme": "Ravi and Larochelle, ICLR 2017",
                "images": {split: int(each.counts.sum()) for split, each in classes.items()},
                "image_format": image_format.to_dict(),
            },
        )


def load_mini_imagenet(
    root: str | Path | None, image_format: ImageFormat, *, cache_dir: str | Path | None
) -> ImageStore:
    """All images, class by class.

    Raises:
        UsageError: no place has the data, with what was tried; a place has something else.
    """
    names = tuple(sorted(name for split in SPLITS for name in class_ids(split)))
    places = _default_places() if root is None else [check_path("root", root)]
    for place in places:
        if (tree := find_mini_imagenet(place)) is not None:
            return load_store(NAME, TreePictures(tree, image_format, names), cache_dir=cache_dir)
    if root is None and (store := find_store(NAME, names, image_format.shape, cache_dir=cache_dir)) is not None:
        return store
    tried = "; ".join(f"{place} ({_seen(place)})" for place in places) or "nothing ($METALEARN_DATA is not set)"
    raise UsageError(
        f"mini-ImageNet was not found. Tried: {tried}. Expected images/ with train.csv, val.csv and test.csv beside"
        " it, or a folder a class (n01532829, …), in train/, val/ and test/ or not.\n"
        f"Its images are ImageNet's and are not downloaded: take them from https://image-net.org by the lists of"
        f" {LISTS_FROM}, and set task.root. Without them: task=cifar_fs, task=fc100."
    )


def _default_places() -> list[Path]:
    data = os.environ.get("METALEARN_DATA")
    return [Path(data).expanduser() / NAME] if data else []


def _seen(place: Path) -> str:
    if not place.is_dir():
        return "no such folder" if not place.exists() else "a zip without images"
    zips = sorted(place.glob("*.zip"))
    return f"no images in it; did you mean {zips[0]}?" if zips else "no images in it"
