"""CIFAR-FS: the 100 classes of CIFAR-100, split for few-shot learning."""

from pathlib import Path
from typing import Any

from metalearn.tasks.cifar_fs.images import FORMAT
from metalearn.tasks.cifar_fs.loading import load_split
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.counts import Count


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
        classes, details = load_split("cifar_fs", root, download=download, cache_dir=cache_dir)
        super().__init__(
            name="cifar_fs",
            classes=classes,
            ways=ways,
            shots=shots,
            query_shots=query_shots,
            imbalanced=imbalanced,
            rotations=rotations,
            augment=augment,
            image_format=FORMAT,
            details={"split_scheme": "CIFAR-FS (arXiv:1805.08136)", **details},
        )
