"""What the meta-training loop carries from step to step, and its form in a checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.training.checkpoint import Checkpoint, check_fits
from metalearn.types import Tensors


@dataclass(frozen=True)
class Best:
    """The best validation so far: its meta step and its summaries by metric."""

    step: int
    metrics: Mapping[str, Any]

    def beats(self, other: "Best | None") -> bool:
        """Whether this one is better: the higher accuracy if there is one, else the lower loss; a tie keeps the old."""
        return other is None or self._score() > other._score()

    def _score(self) -> float:
        name, sign = ("accuracy", 1.0) if "accuracy" in self.metrics else ("loss", -1.0)
        mean = self.metrics[name]["mean"]
        return -float("inf") if mean is None else sign * float(mean)


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state of a run. The loop is a fold over it, so a checkpoint of it is enough to go on bit for bit.

    Attributes:
        step: the meta steps done.
        meta: the meta-parameters. The optimizer owns them: a torch optimizer steps in place.
        optimizer: the outer optimizer over them.
        buffers: the model's buffers, as merged over the tasks of every step.
        best: the best validation so far.
        validated: the meta step of the last validation; 0 for none yet.
        window: the sums of the training metrics since the last record.
        window_steps: the meta steps in those sums.
        batches: the meta-batches that are done with; the same as `step` but for strategies that take several meta
            steps for one.
        carry: what such a strategy goes on from, None between two batches; `SavedCarry` in a resumed run.
    """

    step: int
    meta: Tensors
    optimizer: torch.optim.Optimizer
    buffers: Tensors
    best: Best | None = None
    validated: int = 0
    window: Mapping[str, float] = field(default_factory=dict)
    window_steps: int = 0
    batches: int = 0
    carry: Any = None


class SavedCarry(NamedTuple):
    """The leaves of a carry. Its structure is known once the strategy has run."""

    leaves: list[Any]


def to_checkpoint(state: TrainState, *, config: Mapping[str, Any], num_records: int, wall_time: float) -> Checkpoint:
    """The state as data, with the length of metrics.jsonl and the seconds that the run took so far."""
    best = None if state.best is None else {"step": state.best.step, "metrics": state.best.metrics}
    return Checkpoint(
        step=state.step,
        meta=state.meta,
        buffers=state.buffers,
        optimizer=state.optimizer.state_dict(),
        loop={
            "best": best,
            "validated": state.validated,
            "window": dict(state.window),
            "window_steps": state.window_steps,
            "num_records": num_records,
            "wall_time": wall_time,
            "batches": state.batches,
        },
        config=config,
        carry=None if state.carry is None else _leaves(state.carry),
    )


def check_loop(loop: Mapping[str, Any], *, path: Path) -> None:
    """Refuses a checkpoint whose loop's own numbers are not as `to_checkpoint` writes them.

    Raises:
        UsageError: naming the entry.
    """
    for name, fits in _LOOP.items():
        if name == "batches" and name not in loop:
            continue  # of a run from before strategies that take several meta steps for a batch
        if name not in loop or not fits(loop[name]):
            got = repr(loop[name]) if name in loop else "nothing"
            raise UsageError(
                f"the checkpoint {path} is damaged: loop.{name} in its state.json is {got[:60]}. Use another "
                "checkpoint, or train again."
            )


def from_checkpoint(checkpoint: Checkpoint, start: TrainState, *, path: Path) -> TrainState:
    """The state of a checkpoint, in the place of a run's initial one.

    Raises:
        UsageError: it is a checkpoint of something else.
    """
    check_loop(checkpoint.loop, path=path)
    check_fits(checkpoint.meta, start.meta, path=path, what="meta-parameter")
    check_fits(checkpoint.buffers, start.buffers, path=path, what="buffer")
    device = next(iter(start.meta.values())).device
    try:
        # In place: the optimizer that `start` made holds these very tensors.
        for name, value in start.meta.items():
            value.copy_(checkpoint.meta[name])
        if checkpoint.optimizer is None:
            raise ValueError("it has no optimizer state")
        start.optimizer.load_state_dict(checkpoint.optimizer)
        loop = checkpoint.loop
        return TrainState(
            step=checkpoint.step,
            meta=start.meta,
            optimizer=start.optimizer,
            buffers={name: value.to(device) for name, value in checkpoint.buffers.items()},
            best=None if loop["best"] is None else Best(**loop["best"]),
            validated=loop["validated"],
            window=loop["window"],
            window_steps=loop["window_steps"],
            batches=loop.get("batches", checkpoint.step),
            carry=None if checkpoint.carry is None else SavedCarry(checkpoint.carry),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the run can not go on from {path}: {error}. Start a new run.") from None


def _leaves(carry: Any) -> list[Any]:
    return carry.leaves if isinstance(carry, SavedCarry) else tree.flatten(carry)[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_window(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_best(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or set(value) != {"step", "metrics"} or not isinstance(value["metrics"], dict):
        return False
    means = [found.get("mean", "") for found in value["metrics"].values() if isinstance(found, dict)]
    whole = len(means) == len(value["metrics"]) and not {"loss", "accuracy"}.isdisjoint(value["metrics"])
    return whole and _is_count(value["step"]) and all(mean is None or _is_number(mean) for mean in means)


_LOOP: dict[str, Callable[[Any], bool]] = {
    "best": _is_best,
    "validated": _is_count,
    "window": _is_window,
    "window_steps": _is_count,
    "num_records": _is_count,
    "wall_time": _is_number,
    "batches": _is_count,
}
