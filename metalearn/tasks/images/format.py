"""How the file of a picture becomes an input: one size, grey or colour, uint8 `[channel, height, width]`."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from metalearn.errors import UsageError, did_you_mean

COLORS = ("grey", "rgb")
FITS = ("crop", "stretch")
Pixels = npt.NDArray[np.uint8]


class BadImageError(UsageError):
    """A file that is no readable image; what `on_bad_image=skip` leaves out."""


class OtherSizeError(UsageError):
    """A readable image that has not the size that all images were said to have."""


@dataclass(frozen=True)
class ImageFormat:
    """What every picture is turned into, so that a person's own pictures can be treated as those trained on.

    Attributes:
        size: (height, width) in pixels.
        color: `"rgb"` (3 channels) or `"grey"` (1 channel).
        inverted: whether values are turned round, 255 - value: dark ink on white paper becomes ink = 255 on 0.
        fit: `"crop"` takes the largest part in the picture's middle that has the proportions of `size`; `"stretch"`
            takes the whole picture and gives up its proportions. Both resize with the Lanczos filter, 8 bits a channel.

    Example:
        >>> stream = io.BytesIO()
        >>> Image.new("RGB", (40, 20), "white").save(stream, "PNG")
        >>> ImageFormat((8, 8), color="grey", inverted=True).decode(stream.getvalue(), "white.png").max()
        np.uint8(0)
    """

    size: tuple[int, int]
    color: str = "rgb"
    inverted: bool = False
    fit: str = "crop"

    def __post_init__(self) -> None:
        size = tuple(self.size) if isinstance(self.size, (list, tuple)) else ()
        if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
            raise UsageError(f"`size` must be two whole numbers (height, width) of at least 1, got {self.size!r}.")
        object.__setattr__(self, "size", size)
        for name, known in (("color", COLORS), ("fit", FITS)):
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise UsageError(f"Unknown `{name}` {value!r} of images. {did_you_mean(str(value), known)}")
        if not isinstance(self.inverted, bool):
            raise UsageError(f"`inverted` must be true or false, got {self.inverted!r}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an input, (channels, height, width)."""
        return (1 if self.color == "grey" else 3, *self.size)

    def decode(self, content: bytes, name: str, *, same_size: bool = False) -> Pixels:
        """The picture in a file's bytes, uint8 `[channel, height, width]`.

        It is turned as its EXIF orientation says, what is transparent becomes white, palettes become colours, 16-bit
        grey becomes 8-bit, and of an animation the first frame is taken.

        Args:
            content: the bytes of the file.
            name: what to call the file in an error.
            same_size: refuse a picture of another size than `size` instead of resizing it.

        Raises:
            BadImageError: the bytes are no image that Pillow reads, are truncated, or make a picture so large that
                Pillow takes it for an attack.
            OtherSizeError: `same_size` and the picture has another size.
        """
        picture = open_picture(content, name)
        if same_size and picture.size != self.size[::-1]:
            raise OtherSizeError(
                f"{name} has {picture.width} x {picture.height} pixels (width x height), expected {self.size[1]} x"
                f" {self.size[0]}."
            )
        picture = self._fitted(picture.convert("L" if self.color == "grey" else "RGB"))
        pixels = np.array(picture).reshape(*self.size, -1).transpose(2, 0, 1)
        return np.ascontiguousarray(255 - pixels if self.inverted else pixels)

    def to_dict(self) -> dict[str, Any]:
        """The format as plain data."""
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ImageFormat":
        """What `to_dict` gave.

        Raises:
            UsageError: for an entry that is unknown, missing or of a wrong kind.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(f"An image format has no {unknown[0]!r}. {did_you_mean(unknown[0], known)}")
        if "size" not in data:
            raise UsageError("An image format needs `size`, [height, width].")
        return cls(**data)

    def _fitted(self, picture: Image.Image) -> Image.Image:
        height, width = self.size
        if picture.size == (width, height):
            return picture
        box = _middle(picture.size, width / height) if self.fit == "crop" else None
        # The part is cut out within resize: to resize a long strip as a whole first would take its length in memory.
        return picture.resize((width, height), Image.Resampling.LANCZOS, box=box)


def open_picture(content: bytes, name: str) -> Image.Image:
    """The picture upright, its transparent parts on white, decoded, in a mode of 8 bits a channel.

    Raises:
        BadImageError: see `ImageFormat.decode`.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return _on_white(_eight_bits(ImageOps.exif_transpose(image)))
    except (MemoryError, BadImageError):
        raise
    except Exception as error:  # Pillow's plug-ins meet broken files with errors of a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its content is no image that Pillow knows" if content else "it is empty"
        raise BadImageError(f"{name} is not a readable image ({reason}).") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion from more than 8 bits clips at 255: white paper and most ink would be alike."""
    if image.mode == "F":
        raise ValueError("it has floating point values; save it with 8 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its values are not in 0 … 65535; save it with 8 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("RGBA", "RGBa", "LA", "La", "PA") and "transparency" not in image.info:
        return image
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer)


def _middle(size: tuple[int, int], proportion: float) -> tuple[float, float, float, float]:
    """The largest box of this width / height in the middle, (left, top, right, bottom)."""
    width, height = size
    across, down = min(width, height * proportion), min(height, width / proportion)
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
