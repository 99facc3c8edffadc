"""Pictures decoded by threads, in order and a few at a time."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeAlias

from metalearn.tasks.images.files import ImageTree
from metalearn.tasks.images.format import BadImageError, ImageFormat, Pixels
from metalearn.tasks.progress import progress

Decoded: TypeAlias = tuple[str, str, Pixels | None]
"""The class, the picture's name, and its pixels or None for one that was skipped."""

_BLOCK = 32  # pictures a thread takes at once: handing over one small picture costs as much as decoding it


class Pictures(Protocol):
    """What is to be decoded: pictures by class, and a way to decode one."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of every decoded picture, (channels, height, width)."""

    @property
    def class_names(self) -> Sequence[str]:
        """The classes in the order in which they are stored."""

    @property
    def members(self) -> Mapping[str, Sequence[str]]:
        """The names of the pictures by class, in the order in which they are stored."""

    def fingerprint(self) -> str:
        """A text that is another one when the decoded pictures would be others."""

    def opened(self) -> AbstractContextManager[Callable[[str], Pixels]]:
        """A function from a picture's name to its pixels, for many threads at once; `BadImageError` for a bad one."""


def decoded(pictures: Pictures, text: str, *, skip: bool) -> Iterator[Decoded]:
    """All the pictures in their order, with progress.

    Args:
        pictures: what to decode.
        text: what to call it, for the progress.
        skip: whether a picture that can not be read comes without pixels, instead of ending everything.

    Raises:
        UsageError: for a picture that can not be read, and is not to be skipped.
    """
    names = ((name, member) for name, members in pictures.members.items() for member in members)
    total = sum(map(len, pictures.members.values()))
    with pictures.opened() as decode:
        yield from progress(_in_threads(decode, names, skip=skip), text, total=total, unit="images")


def _num_workers() -> int:
    return min(8, os.cpu_count() or 1)


def most_at_once() -> int:
    """How many decoded pictures there are in memory at a time, at the most."""
    return _BLOCK * (2 * _num_workers() + 1)


def _in_threads(decode: Callable[[str], Pixels], names: Iterator[tuple[str, str]], *, skip: bool) -> Iterator[Decoded]:
    workers = _num_workers()
    waiting: deque[Future[list[Decoded]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        while block := list(islice(names, _BLOCK)):
            waiting.append(pool.submit(_decode_block, decode, block, skip))
            if len(waiting) > 2 * workers:  # bounds the memory
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_block(decode: Callable[[str], Pixels], block: list[tuple[str, str]], skip: bool) -> list[Decoded]:
    done: list[Decoded] = []
    for name, member in block:
        try:
            done.append((name, member, decode(member)))
        except BadImageError:
            if not skip:
                raise
            done.append((name, member, None))
    return done


@dataclass(frozen=True)
class TreePictures:
    """The pictures of a folder or zip in a format, as something to decode.

    Attributes:
        tree: where they lie.
        format: what each is turned into.
        class_names: which of the tree's classes, in the order in which they are stored.
        same_size: whether a picture of another size is refused instead of resized.
    """

    tree: ImageTree
    format: ImageFormat
    class_names: tuple[str, ...]
    same_size: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Pictures.shape`."""
        return self.format.shape

    @property
    def members(self) -> dict[str, list[str]]:
        """See `Pictures.members`."""
        return {name: [each.member for each in self.tree.classes[name]] for name in self.class_names}

    def fingerprint(self) -> str:
        """See `Pictures.fingerprint`. A size that all pictures have is part of their content."""
        settings = {**self.format.to_dict(), "size": None if self.same_size else self.format.size}
        return f"{self.tree.fingerprint(self.class_names)} {settings}"

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], Pixels]]:
        """See `Pictures.opened`."""
        with self.tree.opened() as read:
            yield lambda member: self.format.decode(
                read(member), f"{self.tree.path}: {member}", same_size=self.same_size
            )
