"""The 100 classes of CIFAR-100, split for few-shot learning in two ways."""

from pathlib import Path
from typing import Any, ClassVar

from metalearn.tasks.cifar_fs.images import FORMAT
from metalearn.tasks.cifar_fs.loading import load_split
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.counts import Count


class FewShotCifar100(ClassificationSource):
    """CIFAR-100's 32 x 32 colour images, 600 a class, by a split of its classes: `CifarFS` or `FC100`.

    The images are read from `root` when it is given. Otherwise they are looked for in `$METALEARN_DATA/cifar100` and in
    the cache, and then downloaded through torchvision. A place holds a folder a class, as
    `<class>/{train,test}_<name>.png`, or a zip of that, `cifar100_png.zip`; or what torchvision downloads. CIFAR-100's
    own training and test images of a class are taken together, as the published protocols do. The decoded images lie in
    one store for both splits.

    Attributes:
        classes: the images by split.
        class_names: CIFAR-100's names of the classes, by split.
        image_format: how a picture's file becomes an input.
    """

    scheme: ClassVar[str]
    paper: ClassVar[str]

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
            rotations: whether turned classes are classes of their own (not in the published protocols).
            augment: transforms of torchvision v2 for the training images.
            download: whether to download data that is in no place.
            cache_dir: where the decoded set is kept; None is `$METALEARN_CACHE` or the platform's folder for caches.

        Raises:
            UsageError: for data that is not found or damaged, episodes larger than the data.
        """
        classes, details = load_split(self.scheme, root, download=download, cache_dir=cache_dir)
        super().__init__(
            name=self.scheme,
            classes=classes,
            ways=ways,
            shots=shots,
            query_shots=query_shots,
            imbalanced=imbalanced,
            rotations=rotations,
            augment=augment,
            image_format=FORMAT,
            details={"split_scheme": self.paper, **details},
        )


class CifarFS(FewShotCifar100):
    """Few-shot classification of CIFAR-100 by CIFAR-FS's random split: 64 / 16 / 20 classes.

    Reference:
        Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019,
        arXiv:1805.08136, section 4.1. The images: Krizhevsky, "Learning multiple layers of features from tiny images",
        2009.
    """

    scheme = "cifar_fs"
    paper = "CIFAR-FS (arXiv:1805.08136)"


class FC100(FewShotCifar100):
    """Few-shot classification of CIFAR-100 by superclass: 60 / 20 / 20 classes.

    No superclass of CIFAR-100 has classes in two splits (12 / 4 / 4 superclasses of 5), so that what is tested is less
    like what was trained on than in `CifarFS`.

    Reference:
        Oreshkin, Rodriguez and Lacoste, "TADAM: Task dependent adaptive metric for improved few-shot learning", NeurIPS
        2018, arXiv:1805.10123. The images: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """

    scheme = "fc100"
    paper = "FC100 (arXiv:1805.10123)"
