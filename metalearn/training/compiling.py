"""A run's change from meta-gradients run as they are to compiled ones, at a step that is kept in execution.json.

Nobody waits for a compiler: a process beside the run fills torch's cache, and at the first step after that the run
makes its own compiled gradient from there, compares it with the eager one of that step's episodes, and goes on with it.
With `switch_at` the step is fixed, and the run waits for what is not ready by then. A resumed run repeats the steps
before the recorded one as they are, and those from it on compiled: it ends with the same bits.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

from metalearn.compilation import require_compiler
from metalearn.errors import UsageError
from metalearn.metagrad import Outcome, StrategyWarning
from metalearn.training.ahead import Ahead, CompilingProcess, Ready, shared_threads, threads
from metalearn.training.equality import Moved, difference, without_compiler
from metalearn.training.execution_record import EXECUTION, ExecutionRecord, StaysEager, Switched, read_record
from metalearn.training.experiment import Experiment
from metalearn.training.gradients import episodes_of, forms_of, gradient_of, named
from metalearn.training.guard import blamed, in_a_line
from metalearn.training.interrupts import StopFlag
from metalearn.training.laboratory import Laboratory
from metalearn.training.progress import Progress, duration
from metalearn.training.state import TrainState
from metalearn.training.step_times import StepTimes
from metalearn.types import Tensors

_EVERY = 0.1  # seconds between two looks at the compiler that a run waits for


def switching_of(
    laboratory: Laboratory,
    folder: Path,
    *,
    progress: Progress,
    stop: StopFlag,
    command: Sequence[str] | None,
    resume: bool,
    start: Callable[[Sequence[str]], Ahead] = CompilingProcess,
) -> "Switching | None":
    """What runs the meta-gradients of a run that is to be compiled; None for a run that is not.

    Args:
        laboratory: of the run.
        folder: the run directory.
        progress: told what goes on.
        stop: ends waiting.
        command: of a process that fills the cache for this run; None compiles in this process.
        resume: whether what was written down there is this run's.
        start: starts it.
    """
    execution = laboratory.experiment.execution
    if getattr(execution, "compiled", None) is None:
        return None
    settings = laboratory.experiment.settings
    new = ExecutionRecord(execution=repr(execution), compiled=execution.compiled, switch_at=settings.switch_at)
    record = read_record(folder) if resume else None
    if record is not None and record.torch != new.torch:
        progress.message(f"compiled by torch {record.torch} before, by {new.torch} now: not the same bits")
    return Switching(laboratory, folder, progress, stop, record or new, command, start)


@dataclass
class Switching:
    """An execution that runs meta-gradients as they are up to some step, and compiled from it on.

    It takes the place of the run's execution for meta steps alone, and is told which one comes.
    """

    laboratory: Laboratory
    folder: Path
    progress: Progress
    stop: StopFlag
    record: ExecutionRecord
    command: Sequence[str] | None
    start: Callable[[Sequence[str]], Ahead]
    _step: int = field(default=0, init=False)
    _child: Ahead | None = field(default=None, init=False)
    _ready: Ready | None = field(default=None, init=False)
    _given_up: list[str] = field(default_factory=list, init=False)
    _functions: dict[str, Callable[..., Outcome]] = field(default_factory=dict, init=False)
    _unsettled: list[str] = field(default_factory=list, init=False)
    _times: StepTimes = field(init=False)
    _threads: int = field(init=False)
    _failed_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._times = StepTimes(self.laboratory.device)
        self._threads = shared_threads()[0]
        self._failed_at = min((each.at for each in self.record.eager), default=inf)
        # What was not for good is tried again.
        self.record = replace(self.record, eager=tuple(each for each in self.record.eager if each.for_good))

    @property
    def compiled(self) -> str:
        """As what the meta-gradients are compiled."""
        return str(self._execution.compiled)

    def prepare(self, state: TrainState) -> None:
        """Starts compiling, or compiles what the next step needs; before it, so that a mistake is told before training.

        Raises:
            UsageError: a run with a fixed step can not be compiled.
        """
        settings, self._step = self._experiment.settings, state.step
        if state.step >= settings.num_steps:
            return
        forms = forms_of(self._experiment, state.step)
        problems = [self.laboratory.train_problem(state.buffers, form.step) for form in forms]
        names = [named(form.strategy, problem) for form, problem in zip(forms, problems, strict=True)]
        if settings.switch_at is not None:
            require_compiler(self.laboratory.device)
            for form, problem in zip(forms, problems, strict=True):
                self._execution.value_and_grad(form.strategy, problem)
        if self._is_due(names[0]):
            waits = settings.switch_at is not None or self.record.entry(names[0]) is not None
            if waits and state.carry is None:
                with blamed(), warnings.catch_warnings():
                    warnings.simplefilter("ignore", StrategyWarning)
                    gradient = gradient_of(self, self.laboratory, forms[0], state.buffers)
                    gradient(state.meta, episodes_of(self.laboratory, state.batches))
        elif any(name not in self._settled() for name in names):
            self._unsettled = names
            self._begin_compiling()

    def begin(self, step: int) -> None:
        """Told that a meta step comes; waits for the compiler where that is needed, unless the run is asked to stop.

        Raises:
            UsageError: a run with a fixed step can not be compiled.
        """
        at = self._experiment.settings.switch_at
        while self._child is not None and (found := self._child.poll()) is None and at is not None and step >= at:
            if self.stop.requested:
                return
            time.sleep(_EVERY)
        if self._child is not None and found is not None:
            self._arrived(found)
        self._step = step
        told = self._times.began(step)
        if told:
            self.progress.message(told)

    def close(self) -> None:
        """Ends a compiling process that is not done."""
        child, self._child = self._child, None
        if child is None:
            return
        if child.poll() is None:
            self.progress.message("execution.compile: the meta steps ended before the compiled code was ready")
        child.close()

    def value_and_grad(self, strategy: Any, problem: Any) -> Callable[..., Outcome]:
        """The meta-gradient: as it is, or compiled, by the step that it is called in."""
        eager, name = without_compiler(self._execution).value_and_grad(strategy, problem), named(strategy, problem)

        def run(meta: Tensors, episodes: Any, carry: Any = None, **held: Any) -> Outcome:
            if not self._is_due(name):
                self._times.is_compiled = False
                with threads(self._threads if self._waits(name) else None):
                    outcome: Outcome = eager(meta, episodes, carry, **held)
                return outcome
            self._times.is_compiled = True
            return self._outcome(name, strategy, problem, eager, (meta, episodes, carry), held)

        return run

    def _outcome(
        self, name: str, strategy: Any, problem: Any, eager: Callable[..., Outcome], args: Any, held: Any
    ) -> Outcome:
        entry, function = self.record.entry(name), self._functions.get(name)
        if entry is None:
            return self._first(strategy, problem, eager(*args, **held), args, held)
        try:
            found: Outcome = (function or self._made(strategy, problem))(*args, **held)
            return found
        except UsageError as error:
            reason = " ".join(str(error).split())
            if function is None or self._experiment.settings.switch_at is not None:
                raise UsageError(
                    f"this run is compiled from meta step {entry.since} on ({EXECUTION}), which fails here: {reason}"
                ) from error
            # It ran before, and can not for these episodes.
            self.record = self.record.with_entry(replace(entry, until=self._step))
            self.record.write(self.folder)
            self.progress.message(f"step {self._step}: meta-gradients as they are from here on: {reason}")
            return eager(*args, **held)

    def _first(self, strategy: Any, problem: Any, eager: Outcome, args: Any, held: Any) -> Outcome:
        """The compiled outcome, once it is known to equal the eager one and that is written down; else the eager."""

        def exact(moved: Moved) -> Tensors:
            in_float32 = without_compiler(self._execution, precision="float32")
            meta, *rest = args
            grads: Tensors = in_float32.value_and_grad(strategy, problem)(moved(meta), *rest, **held).grads
            return grads

        if not difference(eager.grads, eager.grads, execution=self._execution, exact=exact).is_known:
            return eager  # training tells what is no number; the next step tries it
        began, name = time.monotonic(), named(strategy, problem)
        try:
            found = (self._functions.get(name) or self._made(strategy, problem))(*args, **held)
        except Exception as error:
            reason = " ".join(str(error).split()) if isinstance(error, UsageError) else in_a_line(error)
            self._refuse(name, reason, cause=error)
            return eager
        seconds = time.monotonic() - began
        between = difference(found.grads, eager.grads, execution=self._execution, exact=exact)
        if not between.is_none:
            far = f"the compiled gradient is {between.error:.2g} off the eager one (at most {between.bound:.2g})."
            self._refuse(name, far, for_good=True)
            return eager
        self.record = self.record.with_entry(
            Switched(
                strategy=name,
                since=self._step,
                compile_seconds=round(seconds, 2),
                ahead_seconds=None if self._ready is None else round(self._ready.seconds, 2),
                relative_error=between.error,
                bound=between.bound,
            )
        )
        self.record.write(self.folder)
        self.progress.message(
            f"step {self._step}: compiled meta-gradients ({self.compiled}) from here on; made in {duration(seconds)}, "
            f"{between.error:.1e} off the eager one"
        )
        return found

    def _made(self, strategy: Any, problem: Any) -> Callable[..., Outcome]:
        if problem.holding is None and self.laboratory.initial_buffers():
            raise UsageError(
                "the model has buffers, and the algorithm's problem can not be given others than it was made with. "
                "Give its Problem `holding`, or take execution.compile=false."
            )
        if self._ready is None:
            self.progress.message(f"step {self._step}: compiling meta-gradients ({self.compiled}) in this process")
        function: Callable[..., Outcome] = self._execution.value_and_grad(strategy, problem)
        self._functions[named(strategy, problem)] = function
        return function

    def _is_due(self, name: str) -> bool:
        """Whether the coming step is to be compiled, or to try it."""
        entry, at = self.record.entry(name), self._experiment.settings.switch_at
        if entry is not None:
            return self._step >= entry.since and (entry.until is None or self._step < entry.until)
        if name in self._settled():
            return False
        if at is not None:
            return self._step >= at
        return self.command is None or self._ready is not None or bool(self.record.switched)

    def _waits(self, name: str) -> bool:
        """Whether the coming step is one of those that compiled ones come after, as far as that is known.

        What the record says decides, not whether a compiler runs at the time: a resumed run repeats the bits.
        """
        entry = self.record.entry(name)
        if entry is not None:
            return self._step < entry.since
        return self._step < self._failed_at and self.command is not None and name not in self._given_up

    def _settled(self) -> list[str]:
        """The meta-gradients of which it is known whether they are compiled, by their names."""
        known = [each.strategy for each in self.record.switched] + [each.strategy for each in self.record.eager]
        return self._given_up + known

    def _begin_compiling(self) -> None:
        if self.command is None:
            return
        try:
            self._child = self.start(self.command)
        except OSError as error:
            self._arrived(Ready(0.0, f"no process for it could be started ({error.strerror or error})"))
            return
        self.progress.message(
            f"execution.compile: compiling meta-gradients ({self.compiled}) in a process of its own; training goes on"
        )

    def _arrived(self, ready: Ready) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()
        if not ready.error:
            self._ready = ready
            return
        for name in self._unsettled:
            self._refuse(name, ready.error)

    def _refuse(self, name: str, reason: str, *, for_good: bool = False, cause: Exception | None = None) -> None:
        at = self._experiment.settings.switch_at
        if at is not None:
            told = reason if "execution.compile=" in reason else f"{reason} Take execution.compile=false."
            raise UsageError(f"execution.switch_at={at}, but nothing is compiled: {told}") from cause
        self._given_up.append(name)
        self.record = self.record.with_eager(StaysEager(strategy=name, reason=reason, for_good=for_good, at=self._step))
        self.record.write(self.folder)
        self.progress.message(f"step {self._step}: not compiled, the run goes on as it is: {reason}")

    @property
    def _experiment(self) -> Experiment:
        return self.laboratory.experiment

    @property
    def _execution(self) -> Any:
        return self.laboratory.experiment.execution
