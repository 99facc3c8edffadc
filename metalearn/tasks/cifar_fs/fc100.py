"""FC100: the 100 classes of CIFAR-100, split by superclass."""

from pathlib import Path
from typing import Any

from metalearn.tasks.cifar_fs.images import FORMAT
from metalearn.tasks.cifar_fs.loading import load_split, superclasses
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.counts import Count


class FC100(ClassificationSource):
    """Few-shot classification of CIFAR-100's 32 x 32 colour images: 60 / 20 / 20 classes of 600 images each.

    No superclass of CIFAR-100 has classes in two splits (12 / 4 / 4 superclasses of 5), so that what is tested is less
    like what was trained on than in `CifarFS`. The images come from the same places as those of `CifarFS`, and the
    decoded ones lie in the same store.

    Attributes:
        classes: the images by split.
        class_names: CIFAR-100's names of the classes, by split.
        image_format: how a picture's file becomes an input.

    Reference:
        Oreshkin, Rodriguez and Lacoste, "TADAM: Task dependent adaptive metric for improved few-shot learning", NeurIPS
        2018, arXiv:1805.10123. The images: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
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
        classes, details = load_split("fc100", root, download=download, cache_dir=cache_dir)
        super().__init__(
            name="fc100",
            classes=classes,
            ways=ways,
            shots=shots,
            query_shots=query_shots,
            imbalanced=imbalanced,
            rotations=rotations,
            augment=augment,
            image_format=FORMAT,
            details={
                "split_scheme": "FC100 (arXiv:1805.10123)",
                "superclasses": {split: len(superclasses("fc100", split)) for split in classes},
                **details,
            },
        )
