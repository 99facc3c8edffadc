"""Transforms of torchvision v2 on a whole batch at once, each image's scalars drawn as torchvision draws them.

torchvision draws one set of scalars for a call, so independent images need a call each, and that costs more than all
the rest of sampling. Here each image's scalars come from its own generator in torchvision's order, and the pixels are
worked on together: the result is that of the calls, to rounding in the last bit.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from metalearn.tasks.seeded import seeded
from metalearn.torchvision_import import torchvision_module

_NOT_ERASED = (0, 0, 0, 0)


class Step(ABC):
    """One transform for batches."""

    @abstractmethod
    def draw(self, generator: Generator) -> tuple[float, ...]:
        """One image's scalars, drawn as the transform itself draws them from the global generator."""

    @abstractmethod
    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The transformed images.

        Args:
            images: float32 in [0, 1], `[image, channel, height, width]`.
            drawn: what `draw` gave for each, float64 `[image, scalar]`.
        """


def batched_step(transform: Any, image_shape: tuple[int, int, int]) -> Step | None:
    """The step that does what `transform` does, or `None` for a transform that has to be called image by image."""
    make = _MAKERS.get(type(transform).__name__)
    # By the very class: a subclass may do anything.
    if make is None or type(transform) is not getattr(torchvision_module("transforms.v2"), type(transform).__name__):
        return None
    return make(transform, image_shape)


@dataclass(frozen=True)
class _Coin(Step):
    """A transform without other randomness, applied with the probability `p`."""

    transform: Any
    params: dict[str, Any]

    def draw(self, generator: Generator) -> tuple[float, ...]:
        return (float(_tossed(self.transform.p, generator)),)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        changed = drawn[:, 0].to(torch.bool)[:, None, None, None]
        return torch.where(changed, self.transform.transform(images, self.params), images)


@dataclass(frozen=True)
class _Crop(Step):
    """RandomCrop, with its padding."""

    transform: Any
    params: dict[str, Any]
    spare: tuple[int, int]

    def draw(self, generator: Generator) -> tuple[float, ...]:
        # Nothing is drawn for a side that leaves no choice.
        return tuple(int(torch.randint(0, n + 1, (), generator=generator)) if n else 0 for n in self.spare)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        padded: Tensor = self.transform.transform(images, self.params | {"needs_crop": False})
        windows = padded.unfold(2, self.params["height"], 1).unfold(3, self.params["width"], 1)
        top, left = drawn.to(torch.int64).unbind(1)
        return windows[torch.arange(len(images), device=images.device), :, top, left]


@dataclass(frozen=True)
class _Jitter(Step):
    """ColorJitter: up to four adjustments in an order of the image's own."""

    transform: Any

    def draw(self, generator: Generator) -> tuple[float, ...]:
        order = torch.randperm(4, generator=generator).tolist()
        return (*order, *(0.0 if bounds is None else _between(bounds, generator) for bounds in self._bounds))

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        images = images.clone()
        for position in range(4):
            for number, (bounds, adjust) in enumerate(zip(self._bounds, _ADJUST, strict=True)):
                if bounds is not None:
                    chosen = torch.nonzero(drawn[:, position] == number)[:, 0]
                    if not len(chosen):  # few images: torchvision's hue, and a stack, do not take none
                        continue
                    adjusted = adjust(images[chosen], drawn[chosen, 4 + number][:, None, None, None])
                    images.index_copy_(0, chosen, adjusted)
        return images

    @property
    def _bounds(self) -> tuple[tuple[float, float] | None, ...]:
        one = self.transform
        return one.brightness, one.contrast, one.saturation, one.hue


@dataclass(frozen=True)
class _Erase(Step):
    """RandomErasing with a constant value."""

    transform: Any
    size: tuple[int, int]

    def draw(self, generator: Generator) -> tuple[float, ...]:
        if not _tossed(self.transform.p, generator):
            return _NOT_ERASED
        height, width = self.size
        log_ratio = torch.log(torch.tensor(self.transform.ratio)).tolist()
        for _ in range(10):  # torchvision gives up after ten rectangles that do not fit
            area = height * width * _between(self.transform.scale, generator)
            ratio = torch.exp(torch.empty(1).uniform_(*log_ratio, generator=generator)).item()
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                top = torch.randint(0, height - h + 1, (1,), generator=generator).item()
                return top, torch.randint(0, width - w + 1, (1,), generator=generator).item(), h, w
        return _NOT_ERASED

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        top, left, h, w = drawn[..., None].unbind(1)
        rows, columns = (torch.arange(side, device=images.device) for side in self.size)
        inside = ((rows >= top) & (rows < top + h))[:, :, None] & ((columns >= left) & (columns < left + w))[:, None]
        value = torch.tensor(self.transform.value, dtype=images.dtype, device=images.device)
        return torch.where(inside[:, None], value[:, None, None], images)


def _tossed(probability: float, generator: Generator) -> bool:
    return not bool(torch.rand(1, generator=generator) >= probability)


def _between(bounds: tuple[float, float], generator: Generator) -> float:
    return torch.empty(1).uniform_(*bounds, generator=generator).item()


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return images.mul(factor.to(images.dtype)).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean(dim=(-3, -2, -1), keepdim=True), factor)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else _blend(images, _grey(images), factor)


def _hue(images: Tensor, factor: Tensor) -> Tensor:
    # One by one: torchvision's conversion takes one angle a call.
    shifted = torchvision_module("transforms.v2.functional").adjust_hue
    return torch.stack([shifted(one, angle) for one, angle in zip(images, factor.flatten().tolist(), strict=True)])


def _blend(images: Tensor, others: Tensor, ratio: Tensor) -> Tensor:
    return images.mul(ratio.to(images.dtype)).addcmul_(others, (1 - ratio).to(images.dtype)).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else torchvision_module("transforms.v2.functional").rgb_to_grayscale(images)


def _coin(transform: Any, image_shape: tuple[int, int, int]) -> Step:
    return _Coin(transform, transform.make_params([torch.empty(image_shape, device="meta")]))


def _crop(transform: Any, image_shape: tuple[int, int, int]) -> Step:
    with seeded(0):
        params = transform.make_params([torch.empty(image_shape, device="meta")])
    left, top, right, bottom = params["padding"]
    _, height, width = image_shape
    return _Crop(transform, params, (height + top + bottom - params["height"], width + left + right - params["width"]))


def _erase(transform: Any, image_shape: tuple[int, int, int]) -> Step | None:
    return None if transform.value is None else _Erase(transform, image_shape[1:])


_ADJUST: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_brightness, _contrast, _saturation, _hue)
_MAKERS: dict[str, Callable[[Any, tuple[int, int, int]], Step | None]] = {
    "RandomHorizontalFlip": _coin,
    "RandomVerticalFlip": _coin,
    "RandomGrayscale": _coin,
    "RandomInvert": _coin,
    "RandomSolarize": _coin,
    "RandomAutocontrast": _coin,
    "RandomAdjustSharpness": _coin,
    "RandomCrop": _crop,
    "ColorJitter": lambda transform, _: _Jitter(transform),
    "RandomErasing": _erase,
}
