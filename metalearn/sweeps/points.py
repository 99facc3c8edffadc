"""A point of a sweep: what it is, where it lies, and what became of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from metalearn.errors import UsageError
from metalearn.files import write_atomically
from metalearn.training.run_directory import RESULTS, run_status

POINT = "point.json"
OUTCOME = "outcome.json"
TRACEBACK = "error.txt"

Status = Literal["finished", "pruned", "failed", "interrupted", "missing"]
DONE: tuple[Status, ...] = ("finished", "pruned")
"""What the same command does not run again."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a point of a study needs to report to it.

    Attributes:
        identifier: of the trial, in the study's file.
        metric: the name of the validation metric that the study looks at.
        last_step: the meta step of the last validation, at which nothing is gained by pruning.
        settings: how the study was set up, for its pruner.
    """

    identifier: int
    metric: str
    last_step: int
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run of a sweep. Two are the same if their configurations are, whatever their numbers.

    Attributes:
        folder: the run directory.
        number: its place in the sweep that made it.
        digest: of its whole configuration.
        values: the swept keys and their values.
        total: the points of the sweep.
        workers: the points that run at once.
        trial: in a study.
    """

    folder: Path
    number: int
    digest: str
    values: Mapping[str, Any]
    total: int = 1
    workers: int = 1
    trial: Trial | None = None

    @property
    def label(self) -> str:
        """The point for people, such as "point 3 (inner.lr=0.1 seed=2)"."""
        swept = " ".join(f"{key}={shown(value)}" for key, value in self.values.items())
        return f"point {self.number} ({swept})" if swept else f"point {self.number}"

    def write(self) -> None:
        """Writes point.json.

        Raises:
            UsageError: the folder can not be written.
        """
        data = {"number": self.number, "digest": self.digest, "values": dict(self.values), "total": self.total}
        data |= {"workers": self.workers, "trial": None if self.trial is None else vars(self.trial)}
        _write(self.folder / POINT, data)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a point.

    Attributes:
        status: "finished" has results; "pruned" was given up by its study; the rest runs when the sweep runs again.
        val: the best validation, metric -> {"mean", "ci95", "num_episodes"}.
        test: the test, likewise.
        seconds: the run's wall time.
        message: why it failed, or where it stopped.
    """

    status: Status
    val: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    message: str = ""

    def write(self, folder: Path) -> None:
        """Writes outcome.json; a finished point has its results.json instead."""
        if self.status != "finished":
            _write(folder / OUTCOME, dict(vars(self)))


def read_point(folder: Path) -> Point | None:
    """The point in a folder; `None` where there is none, or nothing that can be read."""
    data = _read(folder / POINT)
    try:
        trial = None if data.get("trial") is None else Trial(**data.pop("trial"))
        return Point(folder=folder, **(data | {"trial": trial}))
    except TypeError:
        return None


def read_outcome(folder: Path) -> Outcome:
    """What the files in a point's folder say of it."""
    if (folder / RESULTS).exists():
        found = _read(folder / RESULTS)
        if not isinstance(found.get("test"), dict):
            return Outcome(status="failed", message=f"{folder / RESULTS} can not be read")
        seconds = found.get("protocol", {}).get("wall_time_seconds")
        return Outcome(status="finished", val=found.get("val", {}), test=found["test"], seconds=seconds)
    try:
        return Outcome(**_read(folder / OUTCOME))
    except TypeError:
        return Outcome(status="interrupted" if run_status(folder) == "interrupted" else "missing")


def shown(value: Any) -> str:
    """A swept value for people: numbers in four digits.

    Example:
        >>> shown(0.037454011884736254), shown(1e-05), shown("maml"), shown(20)
        ('0.03745', '1e-05', 'maml', '20')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, data: Mapping[str, Any]) -> None:
    try:
        write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())
    except OSError as error:
        raise UsageError(
            f"{path} can not be written ({error.strerror or error}). Choose another folder with hydra.sweep.dir=…."
        ) from None
