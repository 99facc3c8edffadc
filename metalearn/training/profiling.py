"""Where a meta-step's time goes: a table over a window of steps, and a trace of a few more.

A meta-step is at one thing at a time, its *phase*, and says so when it goes on to the next: nothing but the call of an
empty method where no profile is taken. What is inner and what outer is told by the problem's own functions: a task is
in its inner loop until its outer loss has been computed, and then on its way back. So a step that is computed again
on the way back (`Stepwise`) counts as outer, and a strategy that has no way back (`ForwardMode`) has nearly all of its
time in inner. A compiled meta-gradient has no such places: it is one row.
"""

import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from metalearn.errors import UsageError
from metalearn.execution import BatchedMetaGradient
from metalearn.files import write_atomically
from metalearn.metagrad import MetaGradient, Outcome, Strategy
from metalearn.problem import Episode, Problem
from metalearn.types import Tensors

PROFILE = "profile.json"
TABLE = "profile.txt"
TRACE = "profile/trace.json"

WARM_UP, MEASURED, TRACED = 5, 20, 3
"""Meta steps before the window, in it, and those that are traced after it: tracing makes them slower."""

_LARGE = 20_000_000  # bytes; a larger trace is compressed, which the viewers take too

_ROWS = {
    "sampling": "drawing the episodes and looking at them",
    "inner": "the inner steps forward, up to the outer loss",
    "outer": "the way back: the gradient of the outer loss through the inner steps, the mean over tasks",
    "meta-gradient": "inner and outer in one, as a compiled graph has them",
    "optimizer": "the outer optimizer",
    "logging": "numbers off the device, the window of metrics, records, loggers, progress",
    "rest": "whatever is none of these",
}


class Phases(Protocol):
    """Who is told what a meta-step is at."""

    def enter(self, phase: str) -> None:
        """The meta-step goes on to this."""

    def gradient(self, execution: Any, strategy: Any, problem: Problem) -> BatchedMetaGradient:
        """`execution.value_and_grad(strategy, problem)`, watched or as it is."""


class NoPhases:
    """Nobody is told."""

    def enter(self, phase: str) -> None:
        """Does nothing."""

    def gradient(self, execution: Any, strategy: Any, problem: Problem) -> BatchedMetaGradient:
        """The function as it is."""
        found: BatchedMetaGradient = execution.value_and_grad(strategy, problem)
        return found


NO_PHASES = NoPhases()


@dataclass
class Profiler:
    """Measures a window of a run's meta-steps, traces a few more, and writes both into the run directory.

    Attributes:
        folder: the run directory.
        device: of the run. One that works by itself is waited for at the end of every phase while it is profiled.
        tell: said what was found.
        described: what is profiled, for the table.
        clock: seconds.
    """

    folder: Path
    device: torch.device
    tell: Callable[[str], None]
    described: dict[str, Any]
    clock: Callable[[], float] = time.perf_counter
    _steps: int = field(default=0, init=False)
    _running: bool = field(default=False, init=False)
    _separable: bool = field(default=True, init=False)
    _phase: str = field(default="rest", init=False)
    _since: float = field(default=0.0, init=False)
    _range: Any = field(default=None, init=False)
    _trace: Any = field(default=None, init=False)
    _seconds: dict[str, float] = field(default_factory=dict, init=False)

    def begin(self) -> None:
        """A meta-step begins."""
        if self._steps >= WARM_UP + MEASURED + TRACED:
            return
        if self._steps == WARM_UP + MEASURED:
            self._trace = _torch_profiler(self.device)
            self._trace.start()
        if self._steps == WARM_UP:
            self._seconds.clear()
        self._running, self._phase = True, "rest"
        self._since = self._now()

    def end(self) -> None:
        """The meta-step that began is done with, records and all."""
        if not self._running:
            return
        self.enter("rest")
        self._closed_range()
        self._running = False
        self._steps += 1
        if self._steps == WARM_UP + MEASURED:
            self._write_table()
        if self._steps == WARM_UP + MEASURED + TRACED:
            self._write_trace()

    def close(self) -> None:
        """Stops a trace that was begun, without a file: the run ends within it."""
        self._closed_range()
        trace, self._trace = self._trace, None
        if trace is not None:
            trace.stop()

    def enter(self, phase: str) -> None:
        """See `Phases.enter`; phases follow one another, so that their times add up to the step's."""
        if not self._running:
            return
        if phase == "meta-gradient" and self._separable:
            phase = "inner"
        if phase == self._phase:
            return
        now = self._now()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now
        self._closed_range()
        if self._trace is not None:
            self._range = torch.profiler.record_function(phase)
            self._range.__enter__()

    def gradient(self, execution: Any, strategy: Any, problem: Problem) -> BatchedMetaGradient:
        """See `Phases.gradient`."""
        self._separable = getattr(execution, "compiled", None) is None and isinstance(strategy, Strategy)
        found: BatchedMetaGradient = execution.value_and_grad(
            _Watched(strategy, self) if self._separable else strategy, problem
        )
        return found

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    def _closed_range(self) -> None:
        entered, self._range = self._range, None
        if entered is not None:
            entered.__exit__(None, None, None)

    def _write_table(self) -> None:
        total = sum(self._seconds.values())
        shown = [name for name in _ROWS if name in self._seconds]
        rows = [
            {"phase": name, "milliseconds": 1e3 * self._seconds[name] / MEASURED, "share": self._seconds[name] / total}
            for name in shown
        ]
        found = {
            "step_milliseconds": 1e3 * total / MEASURED,
            "warm_up_steps": WARM_UP,
            "measured_steps": MEASURED,
            "phases": rows,
            "meaning": {name: _ROWS[name] for name in shown},
            **self.described,
        }
        table = as_table(found)
        write_atomically(self.folder / PROFILE, (json.dumps(found, indent=1) + "\n").encode())
        write_atomically(self.folder / TABLE, (table + "\n").encode())
        self.tell(table)

    def _write_trace(self) -> None:
        trace, self._trace = self._trace, None
        trace.stop()
        path = self.folder / TRACE
        path.parent.mkdir(exist_ok=True)
        trace.export_chrome_trace(str(path))
        if path.stat().st_size > _LARGE:
            packed = path.with_suffix(".json.gz")
            packed.write_bytes(gzip.compress(path.read_bytes(), compresslevel=5))
            path.unlink()
            path = packed
        self.tell(f"profile: a trace of {TRACED} meta steps is in {path} (open it at ui.perfetto.dev)")


def as_table(profile: dict[str, Any]) -> str:
    """A profile for people.

    Example:
        >>> print(as_table({"step_milliseconds": 4.0, "measured_steps": 20,
        ...     "phases": [{"phase": "sampling", "milliseconds": 1.0, "share": 0.25}]}))
        profile: a meta-step takes 4 ms (mean of 20)
          sampling             1 ms  25.0 %
    """
    lines = [f"profile: a meta-step takes {profile['step_milliseconds']:.4g} ms (mean of {profile['measured_steps']})"]
    for row in profile["phases"]:
        lines.append(f"  {row['phase']:<13} {row['milliseconds']:>8.4g} ms  {row['share']:>5.1%}".replace("%", " %"))
    return "\n".join(lines)


def profiler_of(
    folder: Path, device: torch.device, *, num_left: int, done: int, tell: Callable[[str], None], described: Any
) -> Profiler | None:
    """The profiler of a run that is to have one; None where its profile is there, or a resumed run is near its end.

    Args:
        folder: the run directory.
        device: of the run.
        num_left: the meta steps that are still to be done.
        done: those that are, in a resumed run.
        tell: said what was found.
        described: what is profiled, for the table.

    Raises:
        UsageError: a new run has too few meta steps.
    """
    if (folder / PROFILE).exists() and any(folder.glob(f"{TRACE}*")):
        return None
    wanted = WARM_UP + MEASURED + TRACED
    if num_left < wanted:
        what = f"{wanted} meta steps ({WARM_UP} to warm up, {MEASURED} measured, {TRACED} traced)"
        if done == 0:
            raise UsageError(f"execution.profile=true takes {what}, but meta.num_steps is {num_left}. Set it higher.")
        tell(f"profile: none is taken, it needs {what} and {num_left} are left")
        return None
    return Profiler(folder, device, tell, described)


@dataclass(frozen=True)
class _Watched(Strategy):
    """A strategy whose tasks say when they are on their way back."""

    strategy: Strategy
    profiler: Profiler

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        """The strategy's own function of a problem that is watched."""
        place = _Place(self.profiler)
        one_task = self.strategy.value_and_grad(
            replace(
                problem, inner_loss=place.at_inner(problem.inner_loss), outer_loss=place.at_outer(problem.outer_loss)
            )
        )

        def run(meta: Tensors, episode: Episode, carry: Any = None) -> Outcome:
            place.reached = 0
            self.profiler.enter("inner")
            outcome = one_task(meta, episode, carry)
            self.profiler.enter("outer")
            return outcome

        return run


@dataclass
class _Place:
    """How far a task is: `reached` inner steps at its last outer loss."""

    profiler: Profiler
    reached: int = 0

    def at_inner(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        def watched(meta: Any, params: Any, buffers: Any, batch: Any, step: int) -> Any:
            # A step further than any outer loss goes forward (a loss after every step); one before is computed again.
            if step >= self.reached:
                self.profiler.enter("inner")
            return loss(meta, params, buffers, batch, step)

        return watched

    def at_outer(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        def watched(meta: Any, params: Any, buffers: Any, episode: Any, step: int) -> Any:
            found = loss(meta, params, buffers, episode, step)
            self.reached = max(self.reached, step)
            self.profiler.enter("outer")
            return found

        return watched


def _torch_profiler(device: torch.device) -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities)
