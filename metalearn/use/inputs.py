"""From what a person has (arrays, tensors, pictures, paths of pictures) to what a run's model takes."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.tasks.images.format import ImageFormat
from metalearn.training import TaskCard

_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}


def as_inputs(x: Any, card: TaskCard) -> Tensor:
    """The examples `x` as a model of this task takes them, float32 `[example, *input_shape]` on the CPU.

    uint8 pictures are scaled to [0, 1] and pictures and their files decoded, as the task's own were; numbers are
    standardised where the task's were.

    Args:
        x: a tensor, an array or a data frame `[example, *input_shape]`, or a list of tensors, arrays, Pillow images or
            paths of image files.
        card: what the model takes.

    Raises:
        UsageError: it is something else, has another shape, holds what is no finite number, or a file is no image.
    """
    inputs = _pixels(x, card) if _holds_pictures(x) else _numbers(x)
    if inputs.shape[1:] != card.input_shape or inputs.dim() == 0:
        raise UsageError(_wrong_shape(inputs, card))
    if len(inputs) == 0:
        raise UsageError("there are no examples in x: it needs at least one.")
    if inputs.dtype == torch.uint8 and len(card.input_shape) == 3:
        # A product, as the task sources do it: a division is not rounded alike on every device.
        inputs = inputs.to(torch.float32).mul_(1 / 255)
    inputs = inputs.detach().cpu()
    inputs = (inputs if card.inputs is None else card.inputs.apply(inputs.double())).to(torch.float32)
    _check_finite(inputs)
    return inputs


def decoded(content: bytes, name: str, image_format: ImageFormat) -> Tensor:
    """One picture's bytes as uint8 `[channel, height, width]`."""
    return torch.from_numpy(image_format.decode(content, name))


def format_of(card: TaskCard) -> ImageFormat:
    """How this task reads pictures.

    Raises:
        UsageError: it reads none.
    """
    if card.image_format is None:
        raise UsageError(
            f"the task {card.name!r} of this run was not read from image files, so it is not known how a picture "
            f"becomes an input. Give arrays or tensors of shape {_shown('example', card.input_shape)} instead."
        )
    return card.image_format


def _holds_pictures(x: Any) -> bool:
    if isinstance(x, (str, os.PathLike, Image.Image)):
        raise UsageError("x is a single picture: give a list of them, such as [x].")
    return isinstance(x, Sequence) and len(x) > 0 and isinstance(x[0], (str, os.PathLike, Image.Image))


def _pixels(pictures: Sequence[Any], card: TaskCard) -> Tensor:
    image_format = format_of(card)
    return torch.stack([_picture(each, number, image_format) for number, each in enumerate(pictures)])


def _picture(picture: Any, number: int, image_format: ImageFormat) -> Tensor:
    if isinstance(picture, Image.Image):
        return decoded(_as_file(picture, number), f"picture {number} of x", image_format)
    if not isinstance(picture, (str, os.PathLike)):
        raise UsageError(f"x[{number}] is a {type(picture).__name__} among pictures: give all of x in one kind.")
    path = Path(picture).expanduser()
    try:
        return decoded(path.read_bytes(), str(path), image_format)
    except OSError as error:
        raise UsageError(f"{path} can not be read ({error.strerror or error}).") from None


def _as_file(picture: Image.Image, number: int) -> bytes:
    # Through a lossless file, so that a picture in memory is treated by the very code that treats one on the disk.
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("F", "I"):
        raise UsageError(
            f"picture {number} of x is of Pillow's mode {upright.mode!r}: convert it to 'L' or 'RGB' first."
        )
    stream = io.BytesIO()
    (upright if upright.mode in _PNG_MODES else upright.convert("RGB")).save(stream, "PNG")
    return stream.getvalue()


def _numbers(x: Any) -> Tensor:
    if isinstance(x, Sequence) and len(x) > 0 and all(isinstance(each, Tensor) for each in x):
        shapes = {tuple(each.shape) for each in x}
        if len(shapes) > 1:
            raise UsageError(f"the tensors in x have different shapes: {sorted(shapes)}. Give them one shape.")
        x = torch.stack(list(x))
    found = x if isinstance(x, Tensor) else _tensor(x)
    if found.is_complex() or found.layout != torch.strided:
        raise UsageError(f"x must hold real numbers in a dense tensor, got {found.dtype}, {found.layout}.")
    return found


def _tensor(x: Any) -> Tensor:
    try:
        array = np.asarray(x)
    except ValueError as error:  # rows of different lengths
        raise UsageError(f"x is no array of numbers: {' '.join(str(error).split())}") from None
    if array.dtype == object:
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(f"x holds what is no number: {' '.join(str(error).split())}") from None
    if array.dtype.kind not in "buif":
        raise UsageError(f"x must hold numbers, got an array of dtype {array.dtype}.")
    # A copy: torch warns at arrays that can not be written to. The other unsigned types it does not know everywhere.
    wide = array.dtype.kind == "u" and array.dtype != np.uint8
    return torch.from_numpy(np.array(array, dtype=np.int64 if wide else array.dtype.newbyteorder("=")))


def _check_finite(inputs: Tensor) -> None:
    bad = (~inputs.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UsageError(f"example {bad[0]} of x{more} holds NaN or an infinite number. Fill it in or leave it out.")


def _wrong_shape(inputs: Tensor, card: TaskCard) -> str:
    expected, got = _shown("example", card.input_shape), list(inputs.shape)
    hint = ""
    if tuple(inputs.shape) == card.input_shape:
        hint = " It is a single example: give x[None]."
    elif len(card.input_shape) == 3:
        channels, *size = card.input_shape
        if tuple(inputs.shape[1:]) == (*size, channels):
            hint = " Channels come first: use x.transpose(0, 3, 1, 2) (NumPy) or x.permute(0, 3, 1, 2) (torch)."
        elif channels == 1 and list(inputs.shape[1:]) == size:
            hint = " The channel is missing: use x[:, None]."
        elif inputs.dim() == 4:
            hint = " Resize the images to what the run was trained on."
    return f"x has shape {got}, the model of this run takes {expected}.{hint}"


def _shown(first: str, shape: Sequence[int]) -> str:
    return "[" + ", ".join([first, *map(str, shape)]) + "]"
