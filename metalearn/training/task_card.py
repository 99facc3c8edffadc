"""task.json: what goes into a run's model and what comes out, so that it can be used where its data are not."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError, did_you_mean
from metalearn.files import write_atomically
from metalearn.tasks.images.format import ImageFormat

TASK = "task.json"
_FORMAT = "metalearn-task"
_VERSION = 1
_NEEDED = ("kind", "input_shape", "num_outputs")
_KINDS = ("classification", "regression")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a source standardised numbers, feature by feature: `(raw - mean) / std`.

    Attributes:
        mean: what was taken off, one number a feature; features of more than one axis flat, in their order.
        std: what it was then divided by, likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, raw: Tensor) -> Tensor:
        """Numbers in the units of the data -> in the model's, `[example, *feature]`; in float64, then as `raw` is."""
        flat = raw.double().flatten(1)
        return ((flat - flat.new_tensor(self.mean)) / flat.new_tensor(self.std)).reshape(raw.shape).to(raw.dtype)

    def undo(self, scaled: Tensor) -> Tensor:
        """Numbers in the model's units -> in those of the data, likewise."""
        flat = scaled.double().flatten(1)
        return (flat * flat.new_tensor(self.std) + flat.new_tensor(self.mean)).reshape(scaled.shape).to(scaled.dtype)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Scale":
        """From `{"mean": [...], "std": [...]}`, of any depth."""
        mean, std = (torch.tensor(data[name], dtype=torch.float64).flatten().tolist() for name in ("mean", "std"))
        if len(mean) != len(std):
            raise ValueError(f"{len(mean)} means and {len(std)} standard deviations")
        return cls(mean=tuple(mean), std=tuple(std))

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"mean": list(self.mean), "std": list(self.std)}


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """A task source without its data: what a model for it takes and gives.

    It has the attributes that models and algorithms ask a source for, and can stand in for one there.

    Attributes:
        name: of the data set.
        kind: `"classification"` or `"regression"`.
        input_shape: the shape of one example.
        num_outputs: the most classes at a time, or the width of a regression's target.
        image_format: how a picture's file becomes an input; `None` for a source that reads no pictures.
        inputs: how the source standardised its inputs; `None` where it left them as they are.
        targets: likewise a regression's targets.
        label_names: what each output stands for, where that is the same in all tasks; else empty, and a task's own
            classes take the outputs in their order.
        scaled_uint8: whether the source multiplied uint8 values by 1/255; `None` where it does not say.
        differs: the optional attributes that the sources of a mixture do not agree on.
        sources: the cards of a mixture's sources by name, where there is such a difference.
        num_training_classes: the classes of the training split, where the source tells them apart in all its tasks.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    num_outputs: int
    image_format: ImageFormat | None = None
    inputs: Scale | None = None
    targets: Scale | None = None
    label_names: tuple[str, ...] = ()
    scaled_uint8: bool | None = None
    differs: tuple[str, ...] = ()
    sources: tuple[tuple[str, "TaskCard"], ...] = ()
    num_training_classes: int | None = None

    @property
    def scales_uint8(self) -> bool | None:
        """Whether the bytes of a picture go in as multiples of 1/255; `None` where that is not known."""
        if self.scaled_uint8 is not None:
            return self.scaled_uint8
        if self.image_format is not None:
            return True
        # Standardised numbers are given in the units of the data.
        return None if self.inputs is None else False

    def of_source(self, name: str) -> "TaskCard":
        """The card for examples of one of a mixture's sources; the model's outputs stay those of the mixture.

        Raises:
            UsageError: there is no such source, or the card tells none apart.
        """
        sources = dict(self.sources)
        if name in sources:
            return replace(sources[name], num_outputs=self.num_outputs)
        if not sources:
            raise UsageError(
                f"source={name!r}: the task {self.name!r} has no sources that take their examples differently. "
                "Leave it out."
            )
        raise UsageError(f"source={name!r} is not in the task {self.name!r}. {did_you_mean(name, sources)}")

    def check_agreed(self, attribute: str, what: str) -> None:
        """Refuses what the sources of a mixture do not agree on.

        Raises:
            UsageError: they differ in `attribute`; `what` says in what, as in "read pictures".
        """
        if attribute in self.differs:
            names = [name for name, _ in self.sources]
            one = names[0] if names else "NAME"
            choose = f" Choose one: source={one} of metalearn.adapt, or metalearn.load(run, source={one!r})."
            of = f" ({', '.join(map(repr, names))})" if names else ""
            raise UsageError(f"the sources{of} of the task {self.name!r} of this run {what} differently.{choose}")

    @classmethod
    def of(cls, source: Any) -> "TaskCard":
        """The card of a task source.

        Raises:
            UsageError: it lacks an attribute that every `metalearn.tasks.TaskSource` has, or has a wrong one.
        """
        for name in _NEEDED:
            if not hasattr(source, name):
                raise UsageError(f"{type(source).__name__} has no `{name}`, which a task source needs.")
        differs = tuple(getattr(source, "differing", ()))
        name = str(getattr(source, "name", type(source).__name__))
        try:
            card = cls(
                name=name,
                kind=str(source.kind),
                input_shape=tuple(source.input_shape),
                num_outputs=source.num_outputs,
                image_format=getattr(source, "image_format", None),
                **_scales(getattr(source, "standardisation", None)),
                label_names=_texts(getattr(source, "label_names", None)),
                scaled_uint8=getattr(source, "scaled_uint8", None),
                differs=differs,
                sources=tuple((each, cls.of(part)) for each, part in source.components.items()) if differs else (),
                num_training_classes=getattr(source, "num_training_classes", None),
            )
            _check(card)
        except UsageError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"the task source {name!r} ({type(source).__name__}) says of itself what can not be: {_told(error)}. "
                "See metalearn.tasks.TaskSource."
            ) from None
        return card

    @classmethod
    def read(cls, folder: Path) -> "TaskCard | None":
        """The card in a run directory; `None` where there is none.

        Raises:
            UsageError: the file is there and can not be read.
        """
        path = folder / TASK
        try:
            data = json.loads(path.read_bytes())
            if data["format"] != _FORMAT or data["version"] != _VERSION:
                raise ValueError(f"expected {_FORMAT} {_VERSION}, got {data['format']} {data['version']}")
            return cls._from_dict(data)
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UsageError(
                f"{path} can not be read ({_told(error)}). Remove it, and "
                "python -m metalearn.evaluate writes it again from the task."
            ) from None

    def write(self, folder: Path) -> None:
        """Writes task.json.

        Raises:
            UsageError: the folder can not be written.
        """
        data = {"format": _FORMAT, "version": _VERSION, **self._to_dict()}
        try:
            write_atomically(folder / TASK, (json.dumps(data, indent=2) + "\n").encode())
        except OSError as error:
            raise UsageError(f"{folder / TASK} can not be written ({error.strerror or error}).") from None

    def _to_dict(self) -> dict[str, Any]:
        nested = (("image_format", self.image_format), ("inputs", self.inputs), ("targets", self.targets))
        return {
            "name": self.name,
            "kind": self.kind,
            "input_shape": list(self.input_shape),
            "num_outputs": self.num_outputs,
            "label_names": list(self.label_names),
            **{name: None if value is None else value.to_dict() for name, value in nested},
            "scaled_uint8": self.scaled_uint8,
            "differs": list(self.differs),
            "sources": {name: card._to_dict() for name, card in self.sources},
            "num_training_classes": self.num_training_classes,
        }

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> "TaskCard":
        card = cls(
            name=str(data["name"]),
            kind=str(data["kind"]),
            input_shape=tuple(data["input_shape"]),
            num_outputs=data["num_outputs"],
            image_format=ImageFormat.from_dict(data["image_format"]) if data["image_format"] else None,
            **_scales(data),
            label_names=tuple(map(str, data["label_names"])),
            # The first files had none of these.
            scaled_uint8=data.get("scaled_uint8"),
            differs=tuple(map(str, data.get("differs", ()))),
            sources=tuple((str(name), cls._from_dict(each)) for name, each in data.get("sources", {}).items()),
            num_training_classes=data.get("num_training_classes"),
        )
        _check(card)
        return card


def _scales(data: Mapping[str, Any] | None) -> dict[str, Any]:
    found = data or {}
    return {name: Scale.from_dict(found[name]) if found.get(name) else None for name in ("inputs", "targets")}


def _texts(names: Any) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ValueError(f"label_names is the text {names!r}, expected a list of them")
    return () if names is None else tuple(map(str, names))


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def _check(card: TaskCard) -> None:
    """Refuses a card that no model and no example can fit, with a `ValueError` that says why."""
    if card.kind not in _KINDS:
        raise ValueError(f"kind is {card.kind!r}, expected one of {', '.join(_KINDS)}")
    if not all(_is_count(size) for size in card.input_shape):
        raise ValueError(f"input_shape is {list(card.input_shape)}, expected whole numbers of at least 1")
    if not _is_count(card.num_outputs):
        raise ValueError(f"num_outputs is {card.num_outputs!r}, expected a whole number of at least 1")
    if card.num_training_classes is not None and not _is_count(card.num_training_classes):
        raise ValueError(f"num_training_classes is {card.num_training_classes!r}, expected a whole number")
    if card.image_format is not None and not isinstance(card.image_format, ImageFormat):
        raise ValueError(f"image_format is a {type(card.image_format).__name__}, expected an ImageFormat")
    if card.image_format is not None and card.image_format.shape != card.input_shape:
        raise ValueError(
            f"image_format makes pictures {list(card.image_format.shape)}, input_shape is {list(card.input_shape)}"
        )
    _check_scale(card.inputs, "inputs", math.prod(card.input_shape), "input_shape")
    _check_scale(card.targets, "targets", card.num_outputs, "num_outputs")
    if len(card.label_names) not in (0, card.num_outputs):
        raise ValueError(f"there are {len(card.label_names)} label_names for num_outputs={card.num_outputs}")
    if len(set(card.label_names)) < len(card.label_names):
        raise ValueError("two of label_names are alike")
    if card.scaled_uint8 not in (None, True, False):
        raise ValueError(f"scaled_uint8 is {card.scaled_uint8!r}, expected true or false")


def _check_scale(scale: Scale | None, what: str, width: int, of: str) -> None:
    if scale is None:
        return
    if len(scale.mean) != width:
        raise ValueError(f"standardisation of {what} has {len(scale.mean)} means, expected {width} ({of})")
    if not all(map(math.isfinite, scale.mean)):
        raise ValueError(f"standardisation of {what} has a mean that is no finite number")
    if not all(math.isfinite(each) and each > 0 for each in scale.std):
        raise ValueError(f"standardisation of {what} has a std that is not above 0 and finite")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def write_task_card(source: Any, folder: Path) -> None:
    """Writes the card of a source that can say what it is; a bare one, with episodes alone, is trained without."""
    if all(hasattr(source, name) for name in _NEEDED):
        TaskCard.of(source).write(folder)
