"""`execution=measure`: the execution of a run, chosen once by trying the candidates on its own model and episodes."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn.errors import UsageError
from metalearn.execution import Execution, Loop, Vmap
from metalearn.execution.choice import is_walk
from metalearn.training.equality import Moved, difference, without_compiler
from metalearn.training.execution_record import ExecutionRecord, read_record
from metalearn.training.experiment import Experiment
from metalearn.training.gradients import episodes_of, forms_of, gradient_of
from metalearn.training.guard import blamed, in_a_line
from metalearn.training.laboratory import Laboratory
from metalearn.training.progress import Progress, duration
from metalearn.training.state import TrainState
from metalearn.types import Tensors

REPEATS = 5
"""Timed meta-gradients of a candidate; the median counts."""

LONGEST_GRAPH = 5
"""One graph of more inner steps than this is not tried where there are pieces: its compile time grows with them."""

_TASKS = {"loop": Loop, "vmap": Vmap}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way of running tasks, and what it took.

    Attributes:
        tasks: "loop" or "vmap".
        compiled: "pieces", "whole" or None.
        settings: others of the execution, that only compiled code on a GPU is tried with.
        refused: why it is none to choose, in a line; empty where it is.
        compile_seconds: until its first meta-gradient was there.
        step_seconds: one meta-gradient: time of the process on a CPU, wall time on a GPU.
        total_seconds: compiling and all meta steps of the run, as far as they are meta-gradients.
        break_even: the meta step after which it has overtaken the fastest eager one; None for never, or for that one.
        relative_error: of its gradient, from that of the eager loop.
        peak_mb: of the device's memory in MB; None on a CPU.
    """

    tasks: str
    compiled: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    compile_seconds: float = 0.0
    step_seconds: float | None = None
    total_seconds: float | None = None
    break_even: int | None = None
    relative_error: float | None = None
    peak_mb: float | None = None

    @property
    def name(self) -> str:
        """As the table has it."""
        products = ["products"] if self.settings.get("convolutions") == "products" else []
        graph = ["CUDA graph"] if self.settings.get("cuda_graphs") else []
        return ", ".join([self.tasks, self.compiled or "eager", *products, *graph])


def with_measured_execution(
    laboratory: Laboratory, folder: Path, state: TrainState, progress: Progress, *, resume: bool
) -> Laboratory:
    """The laboratory with the execution that was measured in this folder, or is now; as it is where none is wanted."""
    experiment = laboratory.experiment
    if not experiment.settings.measures:
        return laboratory
    if not resume or read_record(folder) is None:
        found = measured(laboratory, state, progress)
        best = fastest(found)
        execution = _execution_of(experiment.execution, best)
        progress.message(f"execution=measure: {best.name} it is, for {experiment.settings.num_steps} meta steps")
        chosen = {name: getattr(best, name) for name in ("tasks", "compiled", "settings")}
        record = {**chosen, "candidates": [asdict(each) for each in found]}
        ExecutionRecord(execution=repr(execution), compiled=best.compiled, measured=record).write(folder)
    return replace(laboratory, experiment=as_measured(experiment, folder))


def as_measured(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with the execution that was measured in a run directory, or in the one a checkpoint lies in.

    Raises:
        UsageError: what was written there can not be read.
    """
    for place in (folder, *folder.parents[:2]):
        record = read_record(place) if experiment.settings.measures else None
        if record is not None and record.measured is not None:
            chosen = {name: value for name, value in record.measured.items() if name != "candidates"}
            best = Candidate(**chosen)
            if best.tasks in experiment.settings.measures:
                return replace(experiment, execution=_execution_of(experiment.execution, best))
    return experiment


def measured(laboratory: Laboratory, state: TrainState, progress: Progress) -> list[Candidate]:
    """All candidates, tried one after another; the table is told.

    No more compiled ones are tried once this took as long as the whole run would with the fastest so far.
    """
    experiment = laboratory.experiment
    bench, tasks = _Bench(laboratory, state), experiment.settings.measures
    began = time.monotonic()
    found = [_told(bench, progress, Candidate(tasks=each, compiled=None)) for each in tasks]
    # What is fastest as it is comes first: the time for compiling may not be enough for all.
    for name in (each.tasks for each in sorted(found, key=_total)):
        for candidate in compiled_ways(experiment, name, laboratory.device):
            if not candidate.refused and time.monotonic() - began >= _total(min(found, key=_total)):
                candidate = replace(candidate, refused="the run is too short to be worth compiling more")
            found.append(candidate if candidate.refused else _told(bench, progress, candidate))
    found = [_compared(each, found) for each in found]
    for line in table(found):
        progress.message(f"execution=measure: {line}")
    return found


def fastest(candidates: list[Candidate]) -> Candidate:
    """The candidate of the least total time; of several, the first.

    Raises:
        UsageError: none can be run.
    """
    fit = [each for each in candidates if each.total_seconds is not None]
    if not fit:
        reasons = "; ".join(f"{each.name}: {each.refused}" for each in candidates)
        raise UsageError(f"execution=measure: none of the candidates can be run. {reasons}")
    return min(fit, key=_total)


def table(candidates: list[Candidate]) -> list[str]:
    """The candidates for people, a line each.

    Example:
        >>> for line in table([Candidate(tasks="vmap", compiled=None, step_seconds=0.01, total_seconds=10.0),
        ...                    Candidate(tasks="loop", compiled="whole", refused="too many steps")]):
        ...     print(line)
                        compile      a step     the run   ahead after
        vmap, eager          0s       10 ms         10s             -
        loop, whole  left out: too many steps
    """
    width = max(len(each.name) for each in candidates)
    has_memory = any(each.peak_mb is not None for each in candidates)
    memory = "     peak" if has_memory else ""
    lines = [f"{'':<{width}}  {'compile':>10}  {'a step':>10}  {'the run':>10}  {'ahead after':>12}{memory}"]
    for each in candidates:
        if each.step_seconds is None or each.total_seconds is None:
            lines.append(f"{each.name:<{width}}  left out: {each.refused}")
            continue
        step = f"{1e3 * each.step_seconds:.3g} ms"
        after = "-" if each.break_even is None else f"{each.break_even} steps"
        peak = "" if each.peak_mb is None else f"  {each.peak_mb:.0f} MB"
        lines.append(
            f"{each.name:<{width}}  {duration(each.compile_seconds):>10}  {step:>10}  "
            f"{duration(each.total_seconds):>10}  {after:>12}{peak}"
        )
    return lines


def _told(bench: "_Bench", progress: Progress, candidate: Candidate) -> Candidate:
    progress.message(f"execution=measure: trying {candidate.name}")
    return bench.tried(candidate)


def _total(candidate: Candidate) -> float:
    return math.inf if candidate.total_seconds is None else candidate.total_seconds


def compiled_ways(experiment: Experiment, tasks: str, device: torch.device) -> list[Candidate]:
    """How to compile this way of running tasks, and why not; on a GPU with what there is for one, too."""
    return [
        Candidate(tasks=tasks, compiled=compiled, settings=settings, refused=refused)
        for compiled, refused in _compiled_as(experiment)
        for settings in _settings(experiment, tasks, device)
    ]


def _settings(experiment: Experiment, tasks: str, device: torch.device) -> list[dict[str, Any]]:
    if device.type != "cuda":
        return [{}]
    graphs: dict[str, Any] = {"cuda_graphs": True}
    convolves = any(isinstance(part, nn.modules.conv._ConvNd) for part in experiment.module.modules())
    return [graphs, {**graphs, "convolutions": "products"}, {}] if convolves and tasks == "vmap" else [graphs, {}]


def _compiled_as(experiment: Experiment) -> Iterator[tuple[str, str]]:
    strategies = [form.strategy for form in forms_of(experiment, 0)]
    walks = all(map(is_walk, strategies))
    num_steps = getattr(experiment.algorithm, "num_inner_steps", 1)
    refused = ""
    if not walks:
        refused = f"{type(strategies[0]).__name__} is no walk through the steps, which alone has pieces"
    elif num_steps < 2:
        refused = "of so few inner steps the whole is one piece"
    yield "pieces", refused
    is_long = walks and num_steps > LONGEST_GRAPH
    yield "whole", f"one graph of {num_steps} inner steps takes long to compile, pieces do the same" if is_long else ""


class _Bench:
    """Times candidates on the first meta-batch."""

    def __init__(self, laboratory: Laboratory, state: TrainState) -> None:
        self._laboratory, self._state = laboratory, state
        self._form = forms_of(laboratory.experiment, state.step)[0]
        self._is_cpu = laboratory.device.type == "cpu"
        self._episodes = episodes_of(laboratory, state.batches)
        self._expected: Tensors | None = None

    def tried(self, candidate: Candidate) -> Candidate:
        """The candidate with its numbers, or why it has none."""
        execution = _execution_of(self._laboratory.experiment.execution, candidate)
        try:
            with blamed():
                return self._timed(candidate, execution)
        except torch.OutOfMemoryError:
            return replace(candidate, refused="it needs more memory than the device has")
        except UsageError as error:
            return replace(candidate, refused=" ".join(str(error).split()))
        except Exception as error:
            if candidate.compiled is None:
                raise
            return replace(candidate, refused=in_a_line(error))

    def _timed(self, candidate: Candidate, execution: Execution) -> Candidate:
        expected = self._loop()
        if not self._is_cpu:
            torch.cuda.reset_peak_memory_stats(self._laboratory.device)
        began = time.monotonic()
        gradient = self._gradient(execution)
        grads = gradient()
        self._wait()
        compile_seconds = 0.0 if candidate.compiled is None else time.monotonic() - began
        between = difference(grads, expected, execution=execution, exact=self._exact)
        if not between.is_none:
            far = f"its gradient is {between.error:.2g} off that of the eager loop (at most {between.bound:.2g})"
            return replace(candidate, refused=far, relative_error=between.error)
        step_seconds = statistics.median(self._seconds(gradient) for _ in range(REPEATS))
        memory = None if self._is_cpu else torch.cuda.max_memory_allocated(self._laboratory.device) / 1e6
        return replace(
            candidate,
            compile_seconds=compile_seconds,
            step_seconds=step_seconds,
            total_seconds=compile_seconds + step_seconds * self._laboratory.experiment.settings.num_steps,
            relative_error=between.error,
            peak_mb=memory,
        )

    def _seconds(self, gradient: Callable[[], Tensors]) -> float:
        clock: Callable[[], float] = time.process_time if self._is_cpu else time.perf_counter
        self._wait()
        began = clock()
        gradient()
        self._wait()
        return clock() - began

    def _gradient(self, execution: Any, moved: Moved = dict) -> Callable[[], Tensors]:
        state = self._state
        gradient, meta = gradient_of(execution, self._laboratory, self._form, state.buffers), moved(state.meta)
        return lambda: gradient(meta, self._episodes).grads

    def _loop(self) -> Tensors:
        if self._expected is None:
            self._expected = self._gradient(self._eager_loop)()
        return self._expected

    def _exact(self, moved: Moved) -> Tensors:
        return self._gradient(without_compiler(self._eager_loop, precision="float32"), moved)()

    @property
    def _eager_loop(self) -> Any:
        return _execution_of(self._laboratory.experiment.execution, Candidate(tasks="loop", compiled=None))

    def _wait(self) -> None:
        if self._laboratory.device.type == "cuda":
            torch.cuda.synchronize(self._laboratory.device)


def _execution_of(like: Any, candidate: Candidate) -> Any:
    """A candidate's execution, otherwise with the settings of another one."""
    given = {name: getattr(like, name) for name in ("buffers", "nonfinite", "task_clip", "precision")}
    if candidate.tasks == "vmap":
        given["chunk_size"] = getattr(like, "chunk_size", None)
    return _TASKS[candidate.tasks](**given, **candidate.settings, compiled=candidate.compiled)


def _compared(candidate: Candidate, found: list[Candidate]) -> Candidate:
    eager = [each.step_seconds for each in found if each.step_seconds is not None and each.compiled is None]
    if candidate.compiled is None or candidate.step_seconds is None or not eager:
        return candidate
    saved = min(eager) - candidate.step_seconds
    return replace(candidate, break_even=math.ceil(candidate.compile_seconds / saved)) if saved > 0 else candidate
