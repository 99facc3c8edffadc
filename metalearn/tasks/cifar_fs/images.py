"""CIFAR-100's pictures where a person may have them: a zip or folders of PNG files, or torchvision's download."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError
from metalearn.tasks.images.decoding import Pictures, TreePictures
from metalearn.tasks.images.files import ImageTree, list_images
from metalearn.tasks.images.format import ImageFormat, Pixels
from metalearn.torchvision_import import torchvision_module

NUM_IMAGES = 600  # of each class
FORMAT = ImageFormat((32, 32), color="rgb")
LAYOUTS = ("cifar100_png.zip", "cifar100_png", ".")
TORCHVISION_FOLDER = "cifar-100-python"
TORCHVISION_FILES = {"train": "train", "test": "test", "meta": "meta"}


def find_cifar100(place: Path, class_names: tuple[str, ...]) -> Pictures | None:
    """CIFAR-100 in a folder or zip, None if it is not there.

    Args:
        place: a zip or a folder with one folder a class, a folder that holds either as `cifar100_png.zip` or
            `cifar100_png`, or a folder that torchvision downloaded into.
        class_names: all 100, in the order in which they shall be stored.

    Raises:
        UsageError: a zip is damaged; something is not the whole CIFAR-100.
    """
    if place.is_file():
        return _checked(list_images(place), class_names)
    for layout in LAYOUTS:
        candidate = place / layout
        if candidate.is_file() or any((candidate / name).is_dir() for name in class_names):
            return _checked(list_images(candidate), class_names)
    if all((place / TORCHVISION_FOLDER / file).is_file() for file in TORCHVISION_FILES):
        return TorchvisionCifar100(place, class_names)
    return None


def _checked(tree: ImageTree, class_names: tuple[str, ...]) -> Pictures:
    known, found = set(class_names), set(tree.classes)
    if missing := sorted(known - found):
        raise UsageError(
            f"{tree.path} lacks {len(missing)} of CIFAR-100's 100 classes, {missing[0]!r} first. Expected a folder a"
            " class, as <class>/{train,test}_<name>.png: copy or extract it again."
        )
    if unexpected := sorted(found - known):
        raise UsageError(f"{tree.path} holds {unexpected[0]!r}, which is no class of CIFAR-100. Remove it.")
    for name in class_names:
        if (count := len(tree.classes[name])) != NUM_IMAGES:
            raise UsageError(
                f"{tree.path} has {count} images of {name!r}, expected {NUM_IMAGES}. Copy or extract it again."
            )
    return TreePictures(tree, FORMAT, class_names, same_size=True)


@dataclass(frozen=True)
class TorchvisionCifar100:
    """The arrays that torchvision downloads. Their pictures have the names and the order of the PNG files.

    Attributes:
        root: the folder that holds `cifar-100-python`.
        class_names: all 100, in the order in which they are stored.
    """

    root: Path
    class_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Pictures.shape`."""
        return FORMAT.shape

    @property
    def members(self) -> dict[str, list[str]]:
        """See `Pictures.members`."""
        members: dict[str, list[str]] = {name: [] for name in self.class_names}
        for member in sorted(self._pixels):
            members[member.partition("/")[0]].append(member)
        return members

    def fingerprint(self) -> str:
        """See `Pictures.fingerprint`: of the files' sizes and times, because to read them takes a second."""
        stats = ((self.root / TORCHVISION_FOLDER / file).stat() for file in TORCHVISION_FILES)
        return f"torchvision {self.class_names} {[(stat.st_size, stat.st_mtime_ns) for stat in stats]}"

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], Pixels]]:
        """See `Pictures.opened`."""
        yield self._pixels.__getitem__

    @cached_property
    def _pixels(self) -> dict[str, Pixels]:
        """`<class>/{train,test}_<file name>` -> pixels, by torchvision, which checks its files' checksums."""
        datasets, pixels = torchvision_module("datasets"), {}
        for part in ("train", "test"):
            data = self._read(datasets, part)
            # torchvision keeps no file names, and without them its images would have another order than the PNG files.
            with open(self.root / TORCHVISION_FOLDER / part, "rb") as stream:
                names = pickle.load(stream, encoding="latin1")["filenames"]
            for image, label, name in zip(data.data, data.targets, names, strict=True):
                pixels[f"{data.classes[label]}/{part}_{name}"] = image.transpose(2, 0, 1)
        return pixels

    def _read(self, datasets: Any, part: str) -> Any:
        try:
            return datasets.CIFAR100(str(self.root), train=part == "train", download=False)
        except RuntimeError as error:
            raise UsageError(
                f"{self.root / TORCHVISION_FOLDER} is not what torchvision downloads ({error}). Delete the folder."
            ) from error


def download_cifar100(folder: Path) -> str | None:
    """CIFAR-100 into `folder`/cifar-100-python through torchvision; what went wrong, or None."""
    try:
        datasets = torchvision_module("datasets")
        folder.mkdir(parents=True, exist_ok=True)
        datasets.CIFAR100(str(folder), train=True, download=True)
    except (OSError, RuntimeError, ImportError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None
