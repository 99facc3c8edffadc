"""Augmentation of training images by transforms of torchvision v2, each image on its own, as a function of keys."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from metalearn import random
from metalearn.errors import UsageError, did_you_mean
from metalearn.tasks.images.augmentation_steps import Step, batched_step
from metalearn.tasks.seeded import borrowed_generators
from metalearn.torchvision_import import torchvision_module

_NUM_TRIALS = 16
_HOLDS_TRANSFORMS = "transforms"  # the argument of Compose, RandomApply, RandomChoice and RandomOrder
_ENUMS = {"interpolation": ("transforms.v2", "InterpolationMode"), "policy": ("transforms.v2", "AutoAugmentPolicy")}


class Augmentation:
    """Transforms applied to every image independently of the others.

    The picture made of an image is what the transforms give for that image alone with the global generators seeded by
    the image's key: the same key gives the same picture, in whatever batch. The generators themselves are left alone.

    Flips, RandomCrop, ColorJitter, RandomErasing with a constant and the transforms that only toss a coin run on the
    whole batch at once. Pipelines with any other transform call it image by image, several times slower on a CPU.

    Attributes:
        transforms: the transforms, in the order in which they are applied.
        image_shape: of the images that it takes and gives, `(channel, height, width)`.
        is_batched: whether the whole pipeline runs on batches at once.

    Example:
        >>> augment = Augmentation.of([{"name": "RandomCrop", "size": 8, "padding": 1}], image_shape=(3, 8, 8))
        >>> augment(torch.rand(2, 5, 3, 8, 8), random.key(torch.tensor([0, 1]))).shape
        torch.Size([2, 5, 3, 8, 8])
    """

    def __init__(self, transforms: Sequence[Any], *, image_shape: Sequence[int]) -> None:
        """A pipeline of transforms of torchvision v2.

        Args:
            transforms: `torchvision.transforms.v2.Transform` objects.
            image_shape: of the images it will get, `(channel, height, width)`.

        Raises:
            UsageError: for another kind of transform, or one that fails on such images or changes their shape.
        """
        self.transforms = tuple(flat for each in transforms for flat in _flattened(each))
        self.image_shape = _checked_shape(image_shape)
        for transform in self.transforms:
            self._try(transform)
        steps = [batched_step(transform, self.image_shape) for transform in self.transforms]
        self._steps: tuple[Step, ...] | None = None if None in steps else tuple(step for step in steps if step)

    @classmethod
    def of(cls, augment: Any, *, image_shape: Sequence[int]) -> "Augmentation":
        """The augmentation that a user described.

        Args:
            augment: a v2 transform, the name of one, a mapping of its `name` and arguments, or a list of these. A
                mapping with `_target_: my_module.MyTransform` in place of `name` is a class of one's own.
            image_shape: of the images it will get, `(channel, height, width)`.

        Raises:
            UsageError: for a name that v2 does not have, wrong arguments, and as the constructor.
        """
        if isinstance(augment, Augmentation):
            return cls(augment.transforms, image_shape=image_shape)
        described = [augment] if isinstance(augment, str | Mapping) or not isinstance(augment, Sequence) else augment
        return cls([_transform(each) for each in described], image_shape=image_shape)

    @property
    def is_batched(self) -> bool:
        """Whether the whole pipeline runs on batches at once."""
        return self._steps is not None

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """The augmented images.

        Args:
            images: float32 in [0, 1], `[task, example, channel, height, width]`.
            keys: int64 random keys `[task]`, others for the support than for the query set.

        Returns:
            Images of the same shape, on the same device.
        """
        num_examples = images.shape[1]
        flat = images.flatten(0, 1)
        if not len(flat) or not self.transforms:
            return images
        image_keys = random.fold_in(keys[:, None], torch.arange(num_examples, device=keys.device)).flatten().tolist()
        done = self._one_by_one(flat, image_keys) if self._steps is None else _at_once(self._steps, flat, image_keys)
        return done.reshape(images.shape)

    def protocol(self) -> list[str]:
        """The transforms with their arguments, as plain data for the protocol card."""
        return [" ".join(repr(transform).split()) for transform in self.transforms]

    def _one_by_one(self, images: Tensor, keys: Sequence[int]) -> Tensor:
        made = []
        with borrowed_generators() as seed:
            for image, key in zip(images, keys, strict=True):
                seed(key)
                for transform in self.transforms:
                    image = transform(image)
                self._check(image, self.transforms[-1])
                made.append(image.as_subclass(Tensor))
        return torch.stack(made)

    def _try(self, transform: Any) -> None:
        with borrowed_generators() as seed:
            for key in range(_NUM_TRIALS):  # several, because some transforms change the shape now and then
                seed(key)
                try:
                    made = transform(torch.rand(self.image_shape))
                except Exception as error:
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    raise UsageError(
                        f"augment: {_name(transform)} fails on a float32 image {list(self.image_shape)} ({reason})."
                    ) from error
                self._check(made, transform)

    def _check(self, made: Any, transform: Any) -> None:
        if not isinstance(made, Tensor) or made.dtype != torch.float32:
            got = made.dtype if isinstance(made, Tensor) else type(made).__name__
            raise UsageError(f"augment: {_name(transform)} gives {got} for a float32 image. Leave it out.")
        if tuple(made.shape) != self.image_shape:
            raise UsageError(
                f"augment: {_name(transform)} makes images {list(made.shape)} of images {list(self.image_shape)}, and"
                " the test images would stay as they are. Keep the size (RandomCrop: size=…, padding=…), or set"
                " image_size."
            )


def _at_once(steps: Sequence[Step], images: Tensor, keys: Sequence[int]) -> Tensor:
    generator = Generator()  # a private one: nobody else's draws, no lock
    drawn: list[list[tuple[float, ...]]] = [[] for _ in steps]
    for key in keys:
        generator.manual_seed(key)
        for step, scalars in zip(steps, drawn, strict=True):
            scalars.append(step.draw(generator))
    for step, scalars in zip(steps, drawn, strict=True):
        images = step.apply(images, torch.tensor(scalars, dtype=torch.float64).to(images.device))
    return images


def _transform(described: Any) -> Any:
    """One transform from its name, a mapping of its name and arguments, or itself."""
    if isinstance(described, str):
        return _build(described, _of_torchvision(described), {})
    if isinstance(described, Mapping):
        arguments = {str(key): value for key, value in described.items() if key not in ("name", "_target_")}
        name, target = described.get("name"), described.get("_target_")
        if isinstance(target, str) and name is None:
            return _build(target, _of_ones_own(target), arguments)
        if not isinstance(name, str) or target is not None:
            raise UsageError(
                f"augment: {dict(described)} names no transform. Write {{name: RandomCrop, size: 32, padding: 4}}, or"
                " {_target_: my_module.MyTransform, …}."
            )
        return _build(name, _of_torchvision(name), arguments)
    return described


def _of_torchvision(name: str) -> Any:
    known = _known_transforms()
    if name not in known:
        raise UsageError(f"augment: torchvision.transforms.v2 has no {name!r}. {did_you_mean(name, known)}")
    return known[name]


def _of_ones_own(target: str) -> Any:
    """The class that `my_module.MyTransform` names."""
    v2 = torchvision_module("transforms.v2")  # first: that module will import torchvision itself
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of somebody's own raises what it likes
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"augment: _target_={target} can not be imported ({reason}).") from error
    if not inspect.isclass(found) or not issubclass(found, v2.Transform):
        raise UsageError(f"augment: _target_={target} is no class derived from torchvision.transforms.v2.Transform.")
    return found


def _build(name: str, kind: Any, arguments: dict[str, Any]) -> Any:
    accepted = inspect.signature(kind).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in accepted.values())
    for argument in arguments:
        if argument not in accepted and not takes_any:
            raise UsageError(f"augment: {name} takes no {argument!r}. {did_you_mean(argument, accepted)}")
    arguments = {argument: _argument(argument, value) for argument, value in arguments.items()}
    try:
        return kind(**arguments)
    except UsageError:
        raise
    except Exception as error:  # torchvision raises what it likes for a wrong argument
        text = " ".join(str(error).split()).replace("__init__()", "it")
        raise UsageError(f"augment: {name} can not be built with {arguments} ({text}).") from error


def _argument(name: str, value: Any) -> Any:
    if name == _HOLDS_TRANSFORMS and isinstance(value, Sequence):
        return [_transform(each) for each in value]
    if name in _ENUMS and isinstance(value, str):
        module, attribute = _ENUMS[name]
        choices = getattr(torchvision_module(module), attribute)
        try:
            return choices(value)
        except ValueError:
            raise UsageError(
                f"augment: {name}={value!r} is unknown. {did_you_mean(value, [each.value for each in choices])}"
            ) from None
    return value


def _known_transforms() -> dict[str, Any]:
    v2 = torchvision_module("transforms.v2")
    found = {name: each for name, each in vars(v2).items() if inspect.isclass(each) and issubclass(each, v2.Transform)}
    return {name: each for name, each in found.items() if each is not v2.Transform}


def _flattened(transform: Any) -> list[Any]:
    """The transforms of (nested) Compose objects in a row."""
    v2 = torchvision_module("transforms.v2")
    if type(transform) is v2.Compose:
        return [flat for each in transform.transforms for flat in _flattened(each)]
    if not isinstance(transform, v2.Transform):
        raise UsageError(
            f"augment: expected a transform of torchvision.transforms.v2 or its name, got {transform!r}."
            " A function of your own goes into v2.Lambda."
        )
    if isinstance(transform, v2.Normalize):
        raise UsageError(
            "augment: Normalize would change the training images alone, and the test images would look like nothing the"
            " model has seen. Normalise in the model."
        )
    return [transform]


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise UsageError(f"augment: needs images [channel, height, width], and these examples are {list(shape)}.")
    channels, height, width = shape
    return channels, height, width


def _name(transform: Any) -> str:
    return type(transform).__name__
