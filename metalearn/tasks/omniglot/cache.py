"""Where Omniglot is looked for, and its decoded form: one compact file that loads in a fraction of a second."""

import contextlib
import logging
import os
import uuid
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metalearn.errors import UsageError
from metalearn.tasks import cache as shared_cache
from metalearn.tasks.base import check_path
from metalearn.tasks.omniglot.images import NUM_DRAWINGS, RawOmniglot, find_raw
from metalearn.tasks.omniglot.splits import character_names
from metalearn.torchvision_import import torchvision_module

_logger = logging.getLogger(__name__)
Images = npt.NDArray[np.uint8]


class _CorruptFileError(Exception):
    """A compact file that does not hold what its name says."""


def load_omniglot(root: str | Path | None, *, image_size: int, download: bool, cache_dir: str | Path | None) -> Images:
    """All drawings, `[1623, 20, image_size, image_size]`, ink = 255, from the first place that has them.

    With a `root` nothing else is looked at. Without one: `$METALEARN_DATA/omniglot`, the cache, a download.

    Raises:
        UsageError: when no place has the data, with all that was tried; when a place has damaged data.
    """
    cache = cache_folder(cache_dir)
    places = _default_places(cache) if root is None else [check_path("root", root)]
    for place in places:
        images = _load_from(place, image_size, cache)
        if images is not None:
            return images
    tried = [_looked_at(place, image_size) for place in places]
    if root is not None:
        raise UsageError(_not_found(tried, "correct `root` (task.root=…), or leave it out to search and download"))
    if not download:
        raise UsageError(_not_found([*tried, "no download (download=false)"]))
    failure = _download(cache)
    images = None if failure else _load_from(cache, image_size, cache)
    if images is None:
        raise UsageError(_not_found([*tried, f"download through torchvision ({failure or 'it left no images'})"]))
    return images


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Omniglot's part of the cache (`metalearn.tasks.cache.cache_folder`)."""
    return shared_cache.cache_folder(cache_dir) / "omniglot"


def _default_places(cache: Path) -> list[Path]:
    data = os.environ.get("METALEARN_DATA")
    return [*([Path(data).expanduser() / "omniglot"] if data else []), cache]


def _looked_at(place: Path, image_size: int) -> str:
    if not place.is_dir():
        return f"{place} (no such folder)"
    return f"{place} (not both zips or folders, nor omniglot-{image_size}x{image_size}-*.npz)"


def _not_found(tried: list[str], fix: str = "set task.root to the folder that holds them") -> str:
    return (
        f"Omniglot was not found. Tried: {'; '.join(tried)}. Expected images_background.zip and"
        f" images_evaluation.zip, or folders of these names.\nTo mend it, {fix};"
        " `task=glyphs` is the same protocol without data."
    )


def _load_from(place: Path, image_size: int, cache: Path) -> Images | None:
    raw = find_raw(place)
    if raw is not None:
        return _load_or_decode(raw, image_size, cache)
    for file in sorted(place.glob(f"omniglot-{image_size}x{image_size}-*.npz")):
        try:
            return _read(file, image_size)
        except _CorruptFileError as error:
            raise UsageError(
                f"{file} is damaged ({error}), and {place} has no zips to rebuild it. Delete it."
            ) from error
    return None


def _load_or_decode(raw: RawOmniglot, image_size: int, cache: Path) -> Images:
    # The name says the content, so that other data or another size is another file and nothing goes stale.
    file = cache / f"omniglot-{image_size}x{image_size}-{raw.fingerprint()}.npz"
    if file.exists():
        try:
            return _read(file, image_size)
        except _CorruptFileError as error:
            _logger.warning("%s is damaged (%s): decoding Omniglot again.", file, error)
    images = raw.decode(image_size)
    try:
        _write(file, images)
    except OSError as error:
        _logger.warning(
            "Omniglot's decoded images can not be kept in %s (%s): every start decodes again.", cache, error
        )
    return images


def _read(file: Path, image_size: int) -> Images:
    try:
        with np.load(file, allow_pickle=False) as stored:
            images: Images = stored["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _CorruptFileError(str(error) or type(error).__name__) from error
    expected = (len(character_names()), NUM_DRAWINGS, image_size, image_size)
    if images.shape != expected or images.dtype != np.uint8:
        raise _CorruptFileError(f"{images.dtype} {images.shape}, expected uint8 {expected}")
    return images


def _write(file: Path, images: Images) -> None:
    """Write beside and rename: two processes that build at once each leave a whole file, and the contents are equal."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".building-{uuid.uuid4().hex}.npz")  # mkstemp would hide the cache from other users
    try:
        with open(temporary, "xb") as stream:
            np.savez_compressed(stream, images=images)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _download(folder: Path) -> str | None:
    """Both zips into `folder`/omniglot-py through torchvision; what went wrong, or None."""
    try:
        datasets = _torchvision_datasets()
        folder.mkdir(parents=True, exist_ok=True)
        for background in (True, False):
            datasets.Omniglot(str(folder), background=background, download=True)
    except (OSError, RuntimeError, ImportError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def _torchvision_datasets() -> Any:
    return torchvision_module("datasets")
