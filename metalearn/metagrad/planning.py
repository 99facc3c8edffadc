"""`plan`: what each strategy would take for a user's own problem, from short runs of it, and which one to take."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.inner import unroll
from metalearn.metagrad.base import Strategy
from metalearn.metagrad.first_order import FirstOrder
from metalearn.metagrad.forward_mode import ForwardMode
from metalearn.metagrad.growth import growth_of, name_of
from metalearn.metagrad.implicit import Implicit
from metalearn.metagrad.memory import free_bytes, peak_bytes
from metalearn.metagrad.stepwise import Stepwise
from metalearn.metagrad.truncated import Truncated
from metalearn.metagrad.unrolled import Unrolled
from metalearn.problem import Episode, Problem
from metalearn.types import Tensors

LENGTHS = (3, 6)  # of the measured runs; in the first two steps not everything that a strategy keeps is there yet
REPEATS = 2
MARGIN = 0.8  # of the free memory; a process takes more than its tensors (see `peak_bytes`)
MOST_FORWARD = 100  # meta-parameters that ForwardMode is measured for


@dataclass(frozen=True)
class Row:
    """A strategy's line of a plan.

    Attributes:
        name: the strategy as it is written.
        strategy: the strategy.
        peak_bytes: the predicted peak for one task, above what is there before; None where it was not measured.
        time: the predicted time in multiples of Unrolled's; None likewise.
        exact: whether it computes the gradient of the objective itself; None for a strategy that is not ours.
        refused: why it can not be used; None where it can.
    """

    name: str
    strategy: Strategy
    peak_bytes: int | None
    time: float | None
    exact: bool | None
    refused: str | None


@dataclass(frozen=True)
class Plan:
    """What `plan` found: a row a strategy, in order of preference; `print` shows a table.

    Attributes:
        rows: the strategies.
        num_inner_steps: of the problem that was planned for.
        num_tasks: how many tasks are in memory at once.
        memory: bytes that may be used; None where that is not known.
    """

    rows: tuple[Row, ...]
    num_inner_steps: int
    num_tasks: int
    memory: int | None

    @property
    def recommended(self) -> Strategy:
        """The first exact strategy that fits.

        Raises:
            UsageError: none does; the text names what is missing.
        """
        usable = [row.strategy for row in self.rows if row.exact and row.refused is None]
        if usable:
            return usable[0]
        sizes = [(row.peak_bytes * self.num_tasks, row.name) for row in self.rows if row.exact and row.peak_bytes]
        if not sizes or self.memory is None:
            reasons = "; ".join(f"{row.name}: {row.refused or 'not exact'}" for row in self.rows)
            raise UsageError(f"None of the strategies is exact and can be used here. {reasons}.")
        least, name = min(sizes)
        raise UsageError(
            f"No exact strategy fits: {name} takes the least, {_megabytes(least)} for {self.num_tasks} tasks at once, "
            f"{_megabytes(least - self.memory)} more than the {_megabytes(self.memory)} that may be used. Run fewer "
            "tasks at once (execution.chunk_size), or choose FirstOrder() or Truncated(k), which are biased."
        )

    def __str__(self) -> str:
        may = "an amount not known on this system (pass memory=...)" if self.memory is None else _megabytes(self.memory)
        title = f"{self.num_inner_steps} inner steps, {self.num_tasks} task(s) at once, memory that may be used: {may}"
        lines = [f"{'strategy':<34}{'peak':>12}{'time':>8}  gradient"]
        for row in self.rows:
            size = "-" if row.peak_bytes is None else _megabytes(row.peak_bytes * self.num_tasks)
            factor = "-" if row.time is None else f"{row.time:.1f} x"
            kind = {True: "exact", False: "not exact", None: "not known"}[row.exact]
            lines.append(f"{row.name:<34}{size:>12}{factor:>8}  {kind}{'; ' + row.refused if row.refused else ''}")
        try:
            last = f"recommended: {name_of(self.recommended)}"
        except UsageError as error:
            last = str(error)
        return "\n".join([title, *lines, last])


def plan(
    problem: Problem,
    meta: Tensors,
    episode: Episode,
    *,
    num_tasks: int = 1,
    memory: int | None = None,
    strategies: Sequence[Strategy] | None = None,
) -> Plan:
    """Predicts each strategy's peak memory and time for a problem, and recommends one.

    Each is run for 3 and for 6 inner steps under `metalearn.metagrad.memory.peak_bytes`; from there memory grows by
    what each more step keeps: its graph (Unrolled), or its state (Stepwise). What is recommended is the first exact
    strategy that fits: Unrolled, the fastest; else Stepwise(every=1); else Stepwise(every="sqrt"). It goes by memory
    alone and so is the same in every run, given `memory`; the times are measured and vary.

    Args:
        problem: with the number of inner steps that is planned for.
        meta: meta-parameters, on the device that is planned for.
        episode: one task's data, without the task axis.
        num_tasks: how many tasks are in memory at once: the meta-batch or `chunk_size` under vmap, 1 in a loop.
        memory: bytes that may be used; by default four fifths of what the device has free now.
        strategies: in order of preference; by default those named, the forward modes, and three that are not exact.

    Raises:
        UsageError: `num_tasks` is below 1, or the problem itself is wrong.
    """
    if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks < 1:
        raise UsageError(f"num_tasks={num_tasks!r}: it must be an integer of at least 1.")
    runs = _Runs(problem, meta, episode)
    if memory is None:
        free = free_bytes(runs.device)
        memory = None if free is None else int(MARGIN * free)
    steps = problem.num_inner_steps
    unit = runs.predicted(Unrolled()).seconds
    rows = []
    for strategy in _default(steps) if strategies is None else strategies:
        row = _row(strategy, runs, unit)
        if row.peak_bytes is not None and memory is not None and row.peak_bytes * num_tasks > memory:
            row = replace(row, refused="does not fit")
        rows.append(row)
    return Plan(tuple(rows), steps, num_tasks, memory)


def _default(num_steps: int) -> list[Strategy]:
    exact: list[Strategy] = [Unrolled(), Stepwise(), Stepwise(every="sqrt"), Stepwise(mode="forward"), ForwardMode()]
    return [*exact, FirstOrder(), Truncated(max(1, num_steps // 10)), Implicit()]


def _row(strategy: Strategy, runs: "_Runs", unit: float) -> Row:
    growth, steps = growth_of(strategy), runs.problem.num_inner_steps
    row = Row(name_of(strategy), strategy, None, None, growth.is_exact(strategy, steps), None)
    numbers = sum(value.numel() for value in runs.meta.values())
    if isinstance(strategy, ForwardMode) and numbers > MOST_FORWARD:
        return replace(row, refused=f"a derivative of the whole state for each of {numbers:,} meta-parameters")
    try:
        predicted = runs.predicted(strategy)
        return replace(row, peak_bytes=predicted.bytes, time=predicted.seconds / unit)
    except (UsageError, RuntimeError) as error:
        if isinstance(strategy, Unrolled):
            raise  # the problem itself does not run
        return replace(row, refused=str(error).splitlines()[0].split(": ")[0])


class _Measured(NamedTuple):
    """A run's peak and time."""

    bytes: int
    seconds: float


class _Runs:
    """Short runs of a problem, and what follows from them for its own number of steps."""

    def __init__(self, problem: Problem, meta: Tensors, episode: Episode) -> None:
        self.problem, self.meta, self.episode = problem, meta, episode
        self.device = next((value.device for value in tree.tensors(meta)), torch.device("cpu"))
        self._forward: float | None = None
        self._known: dict[tuple[Hashable, int], _Measured] = {}

    def predicted(self, strategy: Strategy) -> _Measured:
        """What a strategy would take for the problem's own number of steps."""
        growth, num_steps = growth_of(strategy), self.problem.num_inner_steps
        if num_steps <= LENGTHS[-1]:
            return self._measured(strategy, num_steps)
        short, long = (self._measured(*growth.short(strategy, length)) for length in LENGTHS)
        like_these, forward = growth.steps(strategy, num_steps)
        seconds = _line((short.seconds, max(short.seconds, long.seconds)), like_these)
        if forward:
            seconds += forward * self._forward_step()
        return _Measured(int(_line((short.bytes, long.bytes), growth.length(strategy, num_steps))), seconds)

    def _measured(self, strategy: Strategy, num_steps: int) -> _Measured:
        # Several of ours share their short runs. A user's own may not be hashable, and is run each time.
        key = (strategy if isinstance(strategy, Unrolled | Stepwise) else id(strategy), num_steps)
        if key not in self._known:
            gradient = strategy.value_and_grad(_shortened(self.problem, num_steps))

            def work() -> object:
                return gradient(self.meta, self.episode)

            if not self._known:
                work()  # a model's first call runs it once more
            self._known[key] = _Measured(peak_bytes(work, self.device), self._seconds(work))
        return self._known[key]

    def _forward_step(self) -> float:
        """The time of a step that keeps nothing for a gradient."""
        if self._forward is None:
            problems = [_shortened(self.problem, each) for each in LENGTHS]
            short, long = (self._seconds(partial(self._unroll, problem)) for problem in problems)
            self._forward = max(long - short, 0.0) / (LENGTHS[1] - LENGTHS[0])
        return self._forward

    def _unroll(self, problem: Problem) -> None:
        with torch.no_grad():
            for _ in unroll(problem, self.meta, self.episode):
                pass

    def _seconds(self, work: Callable[[], object]) -> float:
        """The shortest of some repetitions, in process time on a CPU; it has run once before, for its kernels' sake."""
        return min(self._once(work) for _ in range(REPEATS))

    def _once(self, work: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            begin = time.process_time()
            work()
            return time.process_time() - begin
        torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin


def _shortened(problem: Problem, num_steps: int) -> Problem:
    weights = problem.outer_weights
    weights = None if weights is None else [weights[step] for step in range(num_steps)]
    return replace(problem, num_inner_steps=num_steps, outer_weights=weights)


def _line(measured: tuple[float, float], length: int) -> float:
    """Where the line through what was measured at `LENGTHS` is at another length; never below nothing."""
    short, long = measured
    return max(short + (length - LENGTHS[0]) * (long - short) / (LENGTHS[1] - LENGTHS[0]), 0.0)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"
