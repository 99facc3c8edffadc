"""Small pictures and trees of them, for the tests."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TRUNCATED = 60  # bytes of a PNG file that still have its header


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def noise(seed: int, *, width: int = 8, height: int = 8) -> bytes:
    """A PNG file of colours that are a function of the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def pixels_of(content: bytes) -> np.ndarray:
    """What the store should hold: uint8 `[3, height, width]`."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def tree_files(counts: Mapping[str, int], **size: int) -> dict[str, bytes]:
    """`<class>/<number>.png` -> content, each picture another one."""
    names = [f"{name}/{number:02d}.png" for name, count in counts.items() for number in range(count)]
    return {name: noise(seed, **size) for seed, name in enumerate(names)}


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
