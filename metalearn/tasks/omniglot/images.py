"""Omniglot's drawings from the authors' zips or file tree to one uint8 array, checked file by file."""

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from metalearn.errors import UsageError
from metalearn.tasks.omniglot.splits import character_names, facts
from metalearn.tasks.progress import progress

HALVES = ("images_background", "images_evaluation")
LAYOUTS = (".", "omniglot-py")  # the second is where torchvision puts its downloads
NUM_DRAWINGS = 20
ORIGINAL_SIZE = 105
_DRAWING = re.compile(r"([^/]+/character\d\d)/\d{4}_(\d\d)\.png$")


@dataclass(frozen=True)
class RawOmniglot:
    """Both halves of the data set as the authors publish them.

    Attributes:
        background: `images_background` as a zip or a folder.
        evaluation: `images_evaluation` as a zip or a folder.
    """

    background: Path
    evaluation: Path

    def fingerprint(self) -> str:
        """A short name of the content: of the bytes of zips, of the names, sizes and times of files in folders."""
        digest = hashlib.sha256()
        for half in (self.background, self.evaluation):
            try:
                _add_content(digest, half)
            except OSError as error:
                raise UsageError(f"{half} can not be read ({error}). Check its permissions.") from error
        return digest.hexdigest()[:16]

    def decode(self, image_size: int) -> npt.NDArray[np.uint8]:
        """All drawings in the order of `character_names()`, `[1623, 20, image_size, image_size]`, ink = 255.

        Resized as 8-bit grey with the Lanczos filter. MAML's script names that filter too, but runs it on
        1-bit images, for which PIL silently takes the nearest pixel and breaks the strokes.

        Raises:
            UsageError: for a corrupt zip or image, and for a drawing that is missing or unexpected.
        """
        with _opened(self.background) as background, _opened(self.evaluation) as evaluation:
            jobs = [(half, name) for half in (background, evaluation) for name in half.drawings()]
            images = np.zeros((len(character_names()), NUM_DRAWINGS, image_size, image_size), dtype=np.uint8)
            row = {name: index for index, name in enumerate(character_names())}
            for half, (character, drawing, member) in progress(
                jobs, "Decoding Omniglot", total=len(jobs), unit="drawings"
            ):
                images[row[character], drawing] = _ink(half.read(member), image_size, f"{half.path}: {member}")
        return images


def _add_content(digest: "hashlib._Hash", half: Path) -> None:
    if not half.is_dir():
        digest.update(half.read_bytes())
        return
    for path in sorted(half.glob("*/*/*.png")):
        stat = path.stat()
        digest.update(f"{path.relative_to(half).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n".encode())


def find_raw(place: Path) -> RawOmniglot | None:
    """Both halves in `place` or in torchvision's folder below it; zips rather than folders. None if one is missing."""
    for layout in LAYOUTS:
        halves = [half for half in (_find_half(place / layout, name) for name in HALVES) if half is not None]
        if len(halves) == len(HALVES):
            return RawOmniglot(*halves)
    return None


def _find_half(folder: Path, name: str) -> Path | None:
    archive, tree = folder / f"{name}.zip", folder / name
    return archive if archive.is_file() else tree if tree.is_dir() else None


@dataclass(frozen=True)
class _Half:
    """One opened half: its files' names and a way to read one."""

    path: Path
    members: tuple[str, ...]
    read: Callable[[str], bytes]

    def drawings(self) -> list[tuple[str, int, str]]:
        """`(character, drawing 0 … 19, member)` of every drawing there must be; raises when one is not there."""
        found: dict[str, dict[int, str]] = {}
        for member in self.members:
            if match := _DRAWING.search(member):
                found.setdefault(match[1], {})[int(match[2]) - 1] = member
        expected = self._expected()
        if unexpected := sorted(set(found) - set(expected)):
            raise UsageError(
                f"{self.path} holds {unexpected[0]}, which is not one of its {len(expected)} Omniglot characters"
                f" ({len(unexpected)} such). Use the authors' unchanged files."
            )
        for name in expected:
            self._check_character(name, found.get(name, {}))
        return [(name, drawing, found[name][drawing]) for name in expected for drawing in range(NUM_DRAWINGS)]

    def _expected(self) -> list[str]:
        background, mine = set(facts()["background"]), "background" in self.path.name
        return [name for name in character_names() if (name.split("/")[0] in background) == mine]

    def _check_character(self, name: str, drawings: dict[int, str]) -> None:
        if missing := sorted(set(range(NUM_DRAWINGS)) - set(drawings)):
            number = next(iter(drawings.values()), "????").rsplit("/", 1)[-1][:4]
            raise UsageError(
                f"{self.path} lacks {name}/{number}_{missing[0] + 1:02d}.png: {name} has"
                f" {NUM_DRAWINGS - len(missing)} of {NUM_DRAWINGS} drawings. Extract or download the data set again."
            )
        if len(drawings) > NUM_DRAWINGS:
            raise UsageError(f"{self.path} has {len(drawings)} drawings of {name}, expected {NUM_DRAWINGS}.")


@contextmanager
def _opened(path: Path) -> Iterator[_Half]:
    if path.is_dir():
        members = tuple(file.relative_to(path).as_posix() for file in path.glob("*/*/*.png"))
        yield _Half(path, members, lambda member: (path / member).read_bytes())
        return
    with _damage_named(path):
        archive = zipfile.ZipFile(path)

    def read(member: str) -> bytes:
        with _damage_named(path):
            return archive.read(member)

    with archive:
        yield _Half(path, tuple(name for name in archive.namelist() if not name.startswith("__MACOSX")), read)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UsageError(f"{path} is not an intact zip ({error}). Delete it and copy or download it again.") from error


def _ink(content: bytes, image_size: int, name: str) -> npt.NDArray[np.uint8]:
    try:
        image = Image.open(io.BytesIO(content)).convert("L")
    except (OSError, SyntaxError) as error:  # PIL reports a broken PNG by either
        raise UsageError(f"{name} is not a readable image. Extract or download the data set again.") from error
    if image.size != (ORIGINAL_SIZE, ORIGINAL_SIZE):
        raise UsageError(f"{name} has {image.size} pixels, expected 105 x 105. Use the authors' unchanged files.")
    if image_size != ORIGINAL_SIZE:
        image = image.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return 255 - np.asarray(image)
