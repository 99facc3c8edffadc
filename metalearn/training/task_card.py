"""task.json: what goes into a run's model and what comes out, so that it can be used where its data are not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.tasks.images.format import ImageFormat
from metalearn.training.files import write_atomically

TASK = "task.json"
_FORMAT = "metalearn-task"
_VERSION = 1
_NEEDED = ("kind", "input_shape", "num_outputs")


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
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    num_outputs: int
    image_format: ImageFormat | None = None
    inputs: Scale | None = None
    targets: Scale | None = None
    label_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Any) -> "TaskCard":
        """The card of a task source.

        Raises:
            UsageError: it lacks an attribute that every `metalearn.tasks.TaskSource` has.
        """
        for name in _NEEDED:
            if not hasattr(source, name):
                raise UsageError(f"{type(source).__name__} has no `{name}`, which a task source needs.")
        scaling = getattr(source, "standardisation", None) or {}
        return cls(
            name=str(getattr(source, "name", type(source).__name__)),
            kind=str(source.kind),
            input_shape=tuple(map(int, source.input_shape)),
            num_outputs=int(source.num_outputs),
            image_format=getattr(source, "image_format", None),
            inputs=Scale.from_dict(scaling["inputs"]) if scaling.get("inputs") else None,
            targets=Scale.from_dict(scaling["targets"]) if scaling.get("targets") else None,
            label_names=tuple(map(str, getattr(source, "label_names", None) or ())),
        )

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
            return cls(
                name=str(data["name"]),
                kind=str(data["kind"]),
                input_shape=tuple(map(int, data["input_shape"])),
                num_outputs=int(data["num_outputs"]),
                image_format=ImageFormat.from_dict(data["image_format"]) if data["image_format"] else None,
                inputs=Scale.from_dict(data["inputs"]) if data["inputs"] else None,
                targets=Scale.from_dict(data["targets"]) if data["targets"] else None,
                label_names=tuple(map(str, data["label_names"])),
            )
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{path} can not be read ({type(error).__name__}: {' '.join(str(error).split())}). Remove it, and "
                "python -m metalearn.evaluate writes it again from the task."
            ) from None

    def write(self, folder: Path) -> None:
        """Writes task.json.

        Raises:
            UsageError: the folder can not be written.
        """
        data = {
            "format": _FORMAT,
            "version": _VERSION,
            "name": self.name,
            "kind": self.kind,
            "input_shape": list(self.input_shape),
            "num_outputs": self.num_outputs,
            "label_names": list(self.label_names),
            **{
                name: None if value is None else value.to_dict()
                for name, value in (
                    ("image_format", self.image_format), ("inputs", self.inputs), ("targets", self.targets)
                )
            },
        }  # fmt: skip
        try:
            write_atomically(folder / TASK, (json.dumps(data, indent=2) + "\n").encode())
        except OSError as error:
            raise UsageError(f"{folder / TASK} can not be written ({error.strerror or error}).") from None


def write_task_card(source: Any, folder: Path) -> None:
    """Writes the card of a source that can say what it is; a bare one, with episodes alone, is trained without."""
    if all(hasattr(source, name) for name in _NEEDED):
        TaskCard.of(source).write(folder)
