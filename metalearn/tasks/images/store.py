"""Decoded pictures in one memory-mapped file: built once, by one process, and opened in no time ever after."""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import filelock
import numpy as np
import torch
from torch import Tensor

from metalearn.errors import UsageError, did_you_mean
from metalearn.tasks.cache import cache_folder
from metalearn.tasks.classes import Classes
from metalearn.tasks.images.decoding import Pictures, decoded
from metalearn.tasks.images.format import Pixels
from metalearn.tasks.images.room import check_room

VERSION = 1  # of what is stored; another one is another file
ON_BAD_IMAGE = ("error", "skip")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageStore:
    """Decoded pictures, class by class.

    Attributes:
        images: uint8 `[image, channel, height, width]`. Where it is mapped from the cache nothing of it is read before
            it is used, and what is written to it stays in this process.
        counts: the number of images of each class, by name, in the order in which they are stored.
        skipped: the names of the pictures that were left out because they could not be read.
    """

    images: Tensor
    counts: Mapping[str, int]
    skipped: tuple[str, ...] = ()

    def classes(self, names: Sequence[str]) -> Classes:
        """These of its classes; `images` is shared and not copied."""
        ends = dict(zip(self.counts, itertools.accumulate(self.counts.values()), strict=True))
        first = torch.tensor([ends[name] - self.counts[name] for name in names])
        return Classes(self.images, torch.tensor([self.counts[name] for name in names]), tuple(names), first)


class _DamagedError(Exception):
    """A store that does not hold what its name says."""


def load_store(
    name: str, pictures: Pictures, *, on_bad_image: str = "error", cache_dir: str | Path | None = None
) -> ImageStore:
    """The decoded `pictures`: from the cache, or decoded now and kept there for the next start.

    The cache's folder is named after the content and everything that decides on the pixels, so that nothing goes stale.
    It is built beside its place and renamed, under a lock: a process that wants it meanwhile waits, and one that dies
    leaves nothing that could be taken for a store.

    Args:
        name: what the store is called, `"cifar_fs"`.
        pictures: what to decode.
        on_bad_image: `"error"`, or `"skip"` to leave out pictures that can not be read.
        cache_dir: where it is kept (`metalearn.tasks.cache.cache_folder`).

    Raises:
        UsageError: for a picture that can not be read, unless it is to be skipped; for more than there is room for.
    """
    key, skip = _key(pictures, on_bad_image), on_bad_image == "skip"
    channels, height, width = pictures.shape
    folder = cache_folder(cache_dir) / f"{name}-{height}x{width}x{channels}-{key}"
    with contextlib.suppress(_DamagedError, OSError):  # what is wrong is told below, by the process that has the lock
        return _open(folder, pictures.class_names, pictures.shape)
    check_room(pictures, folder)
    try:
        with locked(folder) as is_locked:
            return _open_or_build(folder, pictures, f"Decoding {name}", skip=skip, is_locked=is_locked)
    except OSError as error:
        _logger.warning("The decoded images can not be kept in %s (%s): every start decodes again.", folder, error)
    return _in_memory(pictures, f"Decoding {name}", skip=skip)


def find_size(
    name: str, pictures: Pictures, *, on_bad_image: str = "error", cache_dir: str | Path | None = None
) -> tuple[int, int] | None:
    """(height, width) of the cache's store of these pictures, whose own size is not known yet; None if there is none.

    It spares a second start the reading of a picture, for which `zipfile` reads the whole directory of a zip.
    """
    ending = f"x{pictures.shape[0]}-{_key(pictures, on_bad_image)}"
    for folder in sorted(cache_folder(cache_dir).glob(f"{name}-*{ending}")):
        height, _, width = folder.name[len(name) + 1 : -len(ending)].partition("x")
        if folder.is_dir() and height.isdecimal() and width.isdecimal():
            return int(height), int(width)
    return None


def _key(pictures: Pictures, on_bad_image: str) -> str:
    if on_bad_image not in ON_BAD_IMAGE:
        raise UsageError(f"Unknown on_bad_image={on_bad_image!r}. {did_you_mean(str(on_bad_image), ON_BAD_IMAGE)}")
    what = f"{VERSION} {on_bad_image} {pictures.fingerprint()}"
    return hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def find_store(
    name: str, class_names: Sequence[str], shape: tuple[int, int, int], *, cache_dir: str | Path | None = None
) -> ImageStore | None:
    """A store of this name and these classes in the cache, whatever it was built from; None if there is none."""
    channels, height, width = shape
    for folder in sorted(cache_folder(cache_dir).glob(f"{name}-{height}x{width}x{channels}-*")):
        with contextlib.suppress(_DamagedError, OSError):
            return _open(folder, class_names, shape)
    return None


def _open(folder: Path, class_names: Sequence[str], shape: tuple[int, ...]) -> ImageStore:
    """The store in a folder; `FileNotFoundError` if there is none."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        facts = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
        counts = {str(name): int(count) for name, count in facts["classes"].items()}
        skipped = tuple(map(str, facts["skipped"]))
        # Copy-on-write: pages are writable for torch, what is written stays private, and nothing is read yet.
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError) as error:
        raise _DamagedError(str(error) or type(error).__name__) from error
    expected = (sum(counts.values()) + len(skipped), *shape)
    if images.shape != expected or images.dtype != np.uint8 or list(counts) != list(class_names):
        raise _DamagedError(f"it holds {images.dtype} {images.shape}, expected uint8 {expected}")
    return ImageStore(torch.from_numpy(images)[: sum(counts.values())], counts, skipped)


@contextlib.contextmanager
def locked(folder: Path, *, doing: str = "decoding") -> Iterator[bool]:
    """One process at a time; whether there is a lock. Without one (some network file systems) building is safe too."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"Another process is {doing} into {folder}: waiting for it.", file=sys.stderr, flush=True)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        _logger.info("%s can not be locked (%s).", folder, error)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _open_or_build(folder: Path, pictures: Pictures, text: str, *, skip: bool, is_locked: bool) -> ImageStore:
    try:
        # Another process may have built it while this one waited.
        return _open(folder, pictures.class_names, pictures.shape)
    except FileNotFoundError:
        pass
    except _DamagedError as error:
        _logger.warning("%s is damaged (%s): decoding the images again.", folder, error)
        _remove(folder)
    if is_locked:
        for left_over in folder.parent.glob(f".building-{folder.name}-*"):  # of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
    temporary = folder.with_name(f".building-{folder.name}-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        _write(temporary, pictures, text, skip=skip)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # a process that had no lock either was here first: the contents are equal
                raise
        return _open(folder, pictures.class_names, pictures.shape)
    except _DamagedError as error:
        raise OSError(f"what was written is not what is read back: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Away in one step, so that no process sees a half-removed one."""
    aside = folder.with_name(f".building-{folder.name}-{uuid.uuid4().hex}")
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _write(folder: Path, pictures: Pictures, text: str, *, skip: bool) -> None:
    # Written and not mapped: a full disk is then an OSError and not a signal that kills the process.
    shape = (sum(map(len, pictures.members.values())), *pictures.shape)
    with open(folder / "images.npy", "xb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        end = stream.tell() + math.prod(shape)
        counts, skipped = _decode(pictures, text, lambda pixels: stream.write(pixels.tobytes()), skip=skip)
        stream.truncate(end)  # where images were skipped the last rows are empty
        _to_disk(stream)
    with open(folder / "classes.json", "xb") as stream:
        stream.write(json.dumps({"classes": counts, "skipped": skipped}, indent=1).encode())
        _to_disk(stream)


def _to_disk(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _in_memory(pictures: Pictures, text: str, *, skip: bool) -> ImageStore:
    images = torch.empty((sum(map(len, pictures.members.values())), *pictures.shape), dtype=torch.uint8)
    rows = iter(images)
    counts, skipped = _decode(pictures, text, lambda pixels: next(rows).copy_(torch.from_numpy(pixels)), skip=skip)
    return ImageStore(images[: sum(counts.values())], counts, tuple(skipped))


def _decode(
    pictures: Pictures, text: str, store: Callable[[Pixels], object], *, skip: bool
) -> tuple[dict[str, int], list[str]]:
    """Hands every picture to `store`; the number of images by class, and the names of those that were skipped."""
    counts: dict[str, int] = dict.fromkeys(pictures.class_names, 0)
    skipped: list[str] = []
    for name, member, pixels in decoded(pictures, text, skip=skip):
        if pixels is None:
            skipped.append(member)
        else:
            store(pixels)
            counts[name] += 1
    return counts, skipped
