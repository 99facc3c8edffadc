"""Where the numbers of a run go beside metrics.jsonl, which is always written."""

import importlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from metalearn.errors import UsageError, did_you_mean
from metalearn.files import write_atomically


class Logger(Protocol):
    """What the loop tells a logger: `start` once, `log` many times, and `finish` once, also after an error."""

    def start(self, run_directory: Path, config: Mapping[str, Any], *, step: int) -> None:
        """A run begins, or goes on after `step` meta steps."""

    def log(self, step: int, metrics: Mapping[str, float], *, split: str) -> None:
        """The metrics of `split` after `step` meta steps."""

    def finish(self, results: Mapping[str, Any] | None) -> None:
        """The run ends; `results` is the content of results.json, `None` if it did not get that far."""


@dataclass(frozen=True)
class Several:
    """Several loggers as one; none at all is fine.

    Attributes:
        loggers: they are told everything in this order.
    """

    loggers: Sequence[Logger] = ()

    def start(self, run_directory: Path, config: Mapping[str, Any], *, step: int) -> None:
        """Starts all of them."""
        for logger in self.loggers:
            logger.start(run_directory, config, step=step)

    def log(self, step: int, metrics: Mapping[str, float], *, split: str) -> None:
        """Tells all of them."""
        for logger in self.loggers:
            logger.log(step, metrics, split=split)

    def finish(self, results: Mapping[str, Any] | None) -> None:
        """Ends all of them."""
        for logger in self.loggers:
            logger.finish(results)


@dataclass
class Wandb:
    """Weights & Biases; a resumed run goes on in the same run there.

    Attributes:
        project: its project.
        mode: "online", "offline" (files in the run directory, to be synced later) or "disabled".
        name: the run's name; `None` for the run directory's.
        entity: the user or team; `None` for the default one.
        group: a group of runs.
        tags: labels of the run.
    """

    project: str = "metalearn"
    mode: str = "online"
    name: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()
    _run: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses an unknown mode."""
        modes = ("online", "offline", "disabled")
        if self.mode not in modes:
            raise UsageError(f"logger.mode={self.mode!r} is unknown. {did_you_mean(self.mode, modes)}")

    def start(self, run_directory: Path, config: Mapping[str, Any], *, step: int) -> None:
        """Starts the run, or goes on with the one whose id is in the run directory."""
        wandb = _import("wandb", extra="wandb")
        identity = _stored_id(run_directory / "wandb_id.txt")
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group,
                name=self.name or run_directory.resolve().name,
                tags=list(self.tags),
                mode=self.mode,
                dir=str(run_directory),
                config=dict(config),
                id=identity,
                resume="allow" if self.mode == "online" else None,
            )
        except wandb.errors.Error as error:
            raise UsageError(
                f"wandb did not start ({error}). Log in with `wandb login`, or use logger.mode=offline."
            ) from None
        # Meta steps as the axis: wandb's own counter refuses to go back, as a resumed run has to.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float], *, split: str) -> None:
        """Logs "train/loss" and the like against the meta step."""
        self._run.log({"step": step} | {f"{split}/{name}": value for name, value in metrics.items()})

    def finish(self, results: Mapping[str, Any] | None) -> None:
        """Puts the results into the summary and closes the run."""
        if self._run is None:
            return
        for name, measured in ((results or {}).get("test") or {}).items():
            self._run.summary[f"test/{name}"] = measured["mean"]
            self._run.summary[f"test/{name}_ci95"] = measured["ci95"]
        self._run.finish(exit_code=0 if results is not None else 1)
        self._run = None


@dataclass
class TensorBoard:
    """TensorBoard's event files.

    Attributes:
        folder: where they go; a relative one is inside the run directory.
    """

    folder: str = "tensorboard"
    _writer: Any = field(default=None, init=False, repr=False)

    def start(self, run_directory: Path, config: Mapping[str, Any], *, step: int) -> None:
        """Opens the event file; what an interrupted run logged after its checkpoint is hidden."""
        _import("tensorboard", extra="tensorboard")
        writer = _import("torch.utils.tensorboard", extra="tensorboard").SummaryWriter
        self._writer = writer(log_dir=str(run_directory / self.folder), purge_step=step + 1 if step else None)

    def log(self, step: int, metrics: Mapping[str, float], *, split: str) -> None:
        """Writes "loss/train" and the like, so that the splits of a metric share a chart's group."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"{name}/{split}", value, global_step=step)

    def finish(self, results: Mapping[str, Any] | None) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _import(name: str, *, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"logger={extra} needs a package that is not there ({error}). "
            f"Install it: pip install metalearn-torch[{extra}]"
        ) from None


def _stored_id(path: Path) -> str:
    if path.exists():
        return path.read_text().strip()
    identity = secrets.token_hex(4)
    write_atomically(path, identity.encode())
    return identity
