"""From what a person has (arrays, tensors, pictures, paths of pictures) to what a run's model takes."""

import io
import os
from collections.abc import Iterator, Sequence
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
_LIKE = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}


def as_inputs(x: Any, card: TaskCard) -> Tensor:
    """The examples `x` as a model of this task takes them, float32 `[example, *input_shape]` on the CPU.

    uint8 pictures are scaled to [0, 1] where the task's own were, pictures and their files decoded as the task's own;
    numbers are standardised where the task's were.

    Args:
        x: a tensor, an array or a data frame `[example, *input_shape]`, or a list, an array or an iterator of tensors,
            arrays, Pillow images or paths of image files.
        card: what the model takes.

    Raises:
        UsageError: it is something else, has another shape, holds what is no finite number, or a file is no image.
    """
    x = _listed(x)
    inputs = _pixels(x, card) if _holds_pictures(x) else _numbers(x)
    if inputs.shape[1:] != card.input_shape or inputs.dim() == 0:
        raise UsageError(_wrong_shape(inputs, card))
    if len(inputs) == 0:
        raise UsageError("there are no examples in x: it needs at least one.")
    card.check_agreed("standardisation", "standardised their numbers")
    inputs = inputs.detach().cpu()
    if inputs.is_inference():  # an adaptation differentiates, which such tensors can not be part of
        inputs = inputs.clone()
    if inputs.dtype == torch.uint8 and _scales(card):
        # A product, as the task sources do it: a division is not rounded alike on every device.
        inputs = inputs.to(torch.float32).mul_(1 / 255)
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
    card.check_agreed("image_format", "read pictures")
    if card.image_format is None:
        raise UsageError(
            f"the task {card.name!r} of this run was not read from image files, so it is not known how a picture "
            f"becomes an input. Give arrays or tensors of shape {_shown('example', card.input_shape)} instead."
        )
    return card.image_format


def _scales(card: TaskCard) -> bool:
    """Whether uint8 values become multiples of 1/255, as they did in the run's training."""
    card.check_agreed("scaled_uint8", "scaled uint8 values")
    if card.scales_uint8 is None and len(card.input_shape) == 3:
        raise UsageError(
            f"x is uint8, and how the task {card.name!r} of this run made numbers of bytes is not known. Give float32 "
            "in the units that it was trained on: x / 255, or x as float32 if these were 0 … 255."
        )
    return bool(card.scales_uint8)


def _listed(x: Any) -> Any:
    """An iterator as a list, and an array or a series of paths or pictures too."""
    if isinstance(x, Iterator):
        return list(x)
    if isinstance(x, (Tensor, Sequence, Image.Image)) or not hasattr(x, "__array__"):
        return x
    try:
        array = np.asarray(x)
    except (TypeError, ValueError, RuntimeError):
        return x  # told with the other arrays
    kinds = (str, os.PathLike, Image.Image)
    holds = array.ndim == 1 and len(array) > 0 and (array.dtype.kind == "U" or isinstance(array[0], kinds))
    return array.tolist() if holds else x


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
    try:
        path = Path(picture).expanduser()
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{os.fspath(picture)} can not be read ({error.strerror or error}).") from None
    except (TypeError, ValueError, RuntimeError) as error:  # a NUL in the name, a `~` of nobody
        raise UsageError(f"{picture!r} is no path of a file ({error}).") from None
    return decoded(content, str(path), image_format)


def _as_file(picture: Image.Image, number: int) -> bytes:
    # Through a lossless file, so that a picture in memory is treated by the very code that treats one on the disk.
    if picture.mode == "F" or (picture.mode.startswith("I") and picture.mode != "I;16"):
        raise UsageError(
            f"picture {number} of x is of Pillow's mode {picture.mode!r}: convert it to 'L' or 'RGB' first."
        )
    if 0 in picture.size:
        raise UsageError(f"picture {number} of x has {picture.width} x {picture.height} pixels: it is empty.")
    stream = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(picture)
        mode = upright.mode if upright.mode in _PNG_MODES else _LIKE.get(upright.mode, "RGB")
        (upright if mode == upright.mode else upright.convert(mode)).save(stream, "PNG")
    except MemoryError:
        raise
    except Exception as error:  # a truncated or closed file fails in a dozen ways, as open_picture's does
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"picture {number} of x (mode {picture.mode!r}) can not be used ({reason}).") from None
    return stream.getvalue()


def _numbers(x: Any) -> Tensor:
    if isinstance(x, Sequence) and len(x) > 0 and all(isinstance(each, Tensor) for each in x):
        shapes = {tuple(each.shape) for each in x}
        if len(shapes) > 1:
            raise UsageError(f"the tensors in x have different shapes: {sorted(shapes)}. Give them one shape.")
        for each in x:
            check_dense(each, "x")
        x = torch.stack([each.detach() for each in x])
    found = x if isinstance(x, Tensor) else _tensor(x)
    check_dense(found, "x")
    return found


def check_dense(values: Tensor, name: str) -> None:
    """Refuses tensors that hold no real numbers one could read.

    Raises:
        UsageError: they are complex, sparse, or on the device `meta`.
    """
    if values.is_complex() or values.layout != torch.strided:
        raise UsageError(f"{name} must hold real numbers in a dense tensor, got {values.dtype}, {values.layout}.")
    if values.is_meta:
        raise UsageError(f"{name} is on torch's device 'meta', where tensors have no values. Make it on a real device.")


def _tensor(x: Any) -> Tensor:
    try:
        array = np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged rows, tensors with a gradient in lists
        raise UsageError(f"x is no array of numbers: {' '.join(str(error).split())}") from None
    if array.dtype == object:
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(f"x holds what is no number: {' '.join(str(error).split())}") from None
    if array.dtype.kind not in "buif":
        raise UsageError(f"x must hold numbers, got an array of dtype {array.dtype}.")
    # A copy: torch warns at arrays that can not be written to. The other unsigned types it does not know everywhere.
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:  # nor NumPy's long doubles
        return torch.from_numpy(array.astype(np.float64))
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


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
