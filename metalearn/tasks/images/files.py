"""The pictures in a folder or a zip, one folder a class: what there is, in what order, and the bytes of each."""

import hashlib
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metalearn.errors import UsageError
from metalearn.tasks.images.format import BadImageError
from metalearn.tasks.images.zip_directory import read_directory

SUFFIXES = frozenset(
    {"png", "jpg", "jpeg", "jfif", "bmp", "gif", "tif", "tiff", "webp", "avif", "jp2", "pbm", "pgm", "ppm", "tga"}
)
NOT_CLASSES = frozenset({"__MACOSX"})


class ImageFile(NamedTuple):
    """A picture in a tree: its path from the top, and what tells that its content changed."""

    member: str
    stamp: str


@dataclass(frozen=True)
class ImageTree:
    """The pictures of a folder or zip. A class is a folder that directly holds pictures; its name is its path.

    Hidden files and folders, `__MACOSX` and files without an image's suffix are not looked at. Folders that everything
    lies in (the one top folder of a zip) are not part of the names.

    Attributes:
        path: the folder or the zip.
        classes: the pictures by class; classes and pictures in the order of their names.
        empty: folders without a picture in or below them.
        loose: pictures that lie in no class's folder.
    """

    path: Path
    classes: Mapping[str, tuple[ImageFile, ...]]
    empty: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()

    def fingerprint(self, class_names: Sequence[str]) -> str:
        """A name of the content of classes, found without reading all of it.

        Of a zip: the names, sizes and CRCs of the pictures, wherever the zip lies. Of a folder: its resolved path; the
        names, sizes, times of modification and of change, inodes and devices of the pictures; and the first and last
        4 KiB of up to 128 of them, evenly spread. So a folder that is copied, moved or unzipped again is decoded again,
        because names, sizes and times alone are those of other pictures too (bitmaps out of a zip with fixed dates).
        """
        digest = hashlib.sha256()
        lines = (f"{name}\t{each.member}\t{each.stamp}\n" for name in class_names for each in self.classes[name])
        digest.update("".join(lines).encode("utf-8", "surrogatepass"))
        if self.path.is_dir():
            digest.update(os.fsencode(self.path.resolve()))
            files = [each for name in class_names for each in self.classes[name]]
            for each in files[:: max(1, math.ceil(len(files) / _SAMPLED))]:
                digest.update(_ends_of(self.path / each.member))
        return digest.hexdigest()

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], bytes]]:
        """A function from a member's name to its bytes, for many threads at once.

        Raises:
            BadImageError: (from the function) for a member that can not be read or is damaged.
        """
        if self.path.is_dir():
            yield self._read_file
            return
        with _damage_named(self.path):
            archive = zipfile.ZipFile(self.path)

        def read(member: str) -> bytes:
            try:
                return archive.read(member)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
                raise BadImageError(f"{self.path}: {member} can not be read from the zip ({error}).") from error

        with archive:
            yield read

    def _read_file(self, member: str) -> bytes:
        try:
            return (self.path / member).read_bytes()
        except OSError as error:
            raise BadImageError(f"{self.path / member} can not be read ({error}).") from error


def list_images(path: Path) -> ImageTree:
    """What pictures lie in a folder or zip.

    Raises:
        UsageError: there is neither, the zip is damaged, or something can not be read.
    """
    try:
        if path.is_dir():
            files, folders = _in_folder(path)
        elif path.is_file():
            files, folders = _in_zip(path)
        else:
            raise UsageError(f"{path} does not exist. It must be a folder with one folder of images a class, or a zip.")
    except OSError as error:
        raise UsageError(f"{path} can not be read ({error}). Check its permissions.") from error
    return _tree(path, files, folders)


def _in_folder(path: Path) -> tuple[list[ImageFile], list[str]]:
    files: list[ImageFile] = []
    folders: list[str] = []
    seen: set[tuple[int, int]] = set()

    def scan(folder: str, inside: str) -> None:
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:  # its classes would be there twice, perhaps in two splits, or for ever
            raise UsageError(f"{folder} is a link to a folder that {path} has under another name too. Remove the link.")
        seen.add((stat.st_dev, stat.st_ino))
        below: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if _ignored(entry.name):
                    continue
                if entry.is_dir():
                    below.append(entry.name)
                elif _is_picture(entry.name):
                    files.append(ImageFile(inside + entry.name, _stamp(entry)))
        for name in sorted(below):
            folders.append(inside + name)
            scan(os.path.join(folder, name), f"{inside}{name}/")

    scan(str(path), "")
    return files, folders


def _stamp(entry: "os.DirEntry[str]") -> str:
    try:
        stat = entry.stat()
    except OSError as error:  # such as a link to nowhere: to read it is what tells, or skips, it
        return f"unreadable {error.errno}"
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino} {stat.st_dev}"


_SAMPLED, _END = 128, 4096


def _ends_of(file: Path) -> bytes:
    """The first and the last bytes of a file; of one that can not be read, that it can not."""
    try:
        with open(file, "rb") as stream:
            first = stream.read(_END)
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _END))
            return first + stream.read(_END)
    except OSError as error:  # whoever decodes it tells, or skips, it
        return f"unreadable {error.errno}".encode()


def _in_zip(path: Path) -> tuple[list[ImageFile], list[str]]:
    with _damage_named(path):
        members = read_directory(path)
    files: list[ImageFile] = []
    folders: list[str] = []
    ignored: dict[str, bool] = {}  # by folder: this loop is what the second start on a large zip consists of
    for member, size, crc in members:
        inside, _, name = member.rstrip("/").rpartition("/")
        if inside not in ignored:
            ignored[inside] = any(map(_ignored, inside.split("/")))
        if ignored[inside]:
            continue
        if member.endswith("/"):
            if not _ignored(name):
                folders.append(member.rstrip("/"))
        elif _is_picture(name):
            files.append(ImageFile(member, f"{size} {crc}"))
    return files, folders


def _ignored(name: str) -> bool:
    return name.startswith(".") or name in NOT_CLASSES


def _is_picture(name: str) -> bool:
    return name[:1] != "." and name.rpartition(".")[2].lower() in SUFFIXES


def _tree(path: Path, files: Iterable[ImageFile], folders: Iterable[str]) -> ImageTree:
    classes: dict[str, list[ImageFile]] = {}
    for each in sorted(files):
        classes.setdefault(each.member.rpartition("/")[0], []).append(each)
    loose = tuple(each.member for each in classes.pop("", []))
    filled = {
        "/".join(parts[: stop + 1]) for parts in (name.split("/") for name in classes) for stop in range(len(parts))
    }
    empty = sorted(set(folders) - filled)
    # Of an empty folder in an empty folder only the outer one is told.
    empty = [name for name in empty if str(PurePosixPath(name).parent) not in empty]
    top = _common_top([*classes, *empty])
    return ImageTree(
        path,
        {name[len(top) :]: tuple(classes[name]) for name in sorted(classes)},
        tuple(name[len(top) :] for name in empty),
        loose,
    )


def _common_top(names: list[str]) -> str:
    """The folders that everything lies in, `"flowers/"`; the last part of a name is never one of them."""
    parents = [name.split("/")[:-1] for name in names]
    common = []
    for parts in zip(*parents, strict=False):
        # A tree that has one split's folder only must not look like one without splits.
        if len(set(parts)) > 1 or split_of(parts[0]):
            break
        common.append(parts[0])
    return "".join(f"{part}/" for part in common)


_SPLIT_NAMES = {
    "train": ("train", "training", "trainset", "metatrain", "metatraining"),
    "val": ("val", "valid", "validation", "valset", "dev", "devel", "metaval", "metavalid", "metavalidation"),
    "test": ("test", "testing", "testset", "metatest", "metatesting"),
}
_SPLIT_OF = {name: split for split, names in _SPLIT_NAMES.items() for name in names}
# Not taken for splits by themselves, as they may be classes or say something else.
_SPLIT_WORDS = {*_SPLIT_OF, "eval", "evaluation", "holdout", "heldout", "unseen", "development"}


def split_of(folder: str) -> str | None:
    """The split that a folder, a file or a key of this name holds; `None` for another name.

    Example:
        >>> split_of("Train"), split_of("meta-test"), split_of("dev"), split_of("trainers")
        ('train', 'test', 'val', None)
    """
    return _SPLIT_OF.get(re.sub(r"[\W_]", "", folder).lower())


def looks_like_split(folder: str) -> bool:
    """Whether a word of a folder's name is that of a split, as in `train_images` or `02-eval`."""
    return any(word in _SPLIT_WORDS for word in re.split(r"[\W\d_]+", folder.lower()))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        if not _begins_like_a_zip(path):  # another file is nobody's broken download, and not ours to have deleted
            fix = "Give a folder with one folder of images a class, or a zip of it."
            what = f"is a file and no zip ({error}). {fix}"
            if path.suffix.lower() == ".zip":
                what = f"is not an intact zip ({error}): copy or download it again."
            raise UsageError(f"{path} {what}") from error
        raise UsageError(f"{path} is not an intact zip ({error}). Delete it and copy or download it again.") from error


def _begins_like_a_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
