"""What a run spends beside the meta-gradient, as a share of its meta-step, and how long it takes to the first step."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Case, spread
from metalearn import algorithms, execution, losses, metagrad, models
from metalearn.tasks import Glyphs, Sinusoid
from metalearn.training import Experiment, Several, StopFlag, TrainingSettings
from metalearn.training.laboratory import prepare_laboratory
from metalearn.training.meta_step import MetaStep
from metalearn.training.progress import LineProgress
from metalearn.training.trainer import _logged, _open_run

STEPS = {"sinusoid, 5 steps, 25 tasks, compiled": 100, "conv4-64, 1 step, 16 tasks, loop": 10}
"""Meta-steps without a gradient that a repetition takes."""

FIRST = {"glyphs (the default)": "glyphs", "sinusoid": "sinusoid"}


@dataclass
class Frozen:
    """An execution that computes its meta-gradient once, and then returns it again."""

    real: Any
    buffers: str = "mean"
    kept: Any = None
    function: Any = None
    given: tuple[Any, ...] = field(default=())

    def check(self, problem: Any) -> None:
        self.real.check(problem)

    def value_and_grad(self, strategy: Any, problem: Any) -> Callable[..., Any]:
        self.function = self.real.value_and_grad(strategy, problem)

        def run(*given: Any, **named: Any) -> Any:
            if self.kept is None:
                self.given = given
                self.kept = self.function(*given, **named)
            return self.kept

        return run


def measure(options: Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {name: shares(name, options.repeats) for name in STEPS}
    for name, task in FIRST.items():
        rows = [first_step_in_a_process(task) for _ in range(max(3, options.repeats // 2))]
        found[f"first step: {name}"] = {clock: spread([row[clock] for row in rows]) for clock in rows[0]}
    return found


def shares(name: str, repeats: int) -> dict[str, Any]:
    """Seconds of a meta-step without its gradient and of the gradient alone, one after the other in each repetition."""
    experiment = sinusoid() if name.startswith("sinusoid") else conv4()
    frozen: Frozen = experiment.execution
    beside, gradient, parts = [], [], []
    with tempfile.TemporaryDirectory() as folder, steps_of(experiment, Path(folder)) as step:
        step()  # computes the gradient, compiles it
        for _ in range(repeats + 1):
            beside.append(timed(step, STEPS[name]))
            gradient.append(timed(lambda: frozen.function(*frozen.given[:2]), max(1, STEPS[name] // 5)))
            parts.append(beside[-1] / (beside[-1] + gradient[-1]))
    return {
        "beside_seconds": spread(beside[1:]),
        "gradient_seconds": spread(gradient[1:]),
        "share": statistics.median(parts[1:]),
        "times_gradient": statistics.median(a / b for a, b in zip(beside[1:], gradient[1:], strict=True)),
    }


@contextmanager
def steps_of(experiment: Experiment, folder: Path) -> Iterator[Callable[[], None]]:
    """A function that takes one meta-step of a run, as the trainer does: records, progress and all."""
    laboratory = prepare_laboratory(experiment)
    with (folder / "progress.txt").open("w") as stream:
        progress = LineProgress(stream)
        run, state = _open_run(laboratory, folder, False, Several(), progress, StopFlag())
        take = MetaStep(laboratory)
        with progress.phase("meta-training", experiment.settings.num_steps) as phase:

            def step() -> None:
                nonlocal state
                state = _logged(run, take(state), phase)

            yield step
        run.records.close()


def timed(work: Callable[[], object], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        work()
    return (time.process_time() - start) / count


def sinusoid() -> Experiment:
    source = Sinusoid()
    return _experiment(
        source,
        models.MLP(input_shape=(1,), num_outputs=1, hidden=(40, 40)),
        algorithms.MAML(loss=losses.mean_squared_error, inner_lr=0.01, num_inner_steps=5),
        execution.Vmap(compiled="whole"),
        batch_size=25,
    )


def conv4() -> Experiment:
    source = Glyphs(ways=5, shots=1, query_shots=5)
    return _experiment(
        source,
        models.Conv4(input_shape=source.input_shape, num_outputs=5, filters=64),
        algorithms.MAML(loss=losses.cross_entropy, inner_lr=0.4, num_inner_steps=1),
        execution.Loop(),
        batch_size=16,
    )


def _experiment(source: Any, module: Any, algorithm: Any, how: Any, *, batch_size: int) -> Experiment:
    settings = TrainingSettings(
        num_steps=10**6, batch_size=batch_size, device="cpu", log_every=10, eval_every=0, checkpoint_every=10**6
    )
    return Experiment(
        source=source,
        module=module,
        algorithm=algorithm,
        strategy=metagrad.Unrolled(),
        execution=Frozen(how),
        outer_optimizer=partial(torch.optim.Adam, lr=1e-3),
        settings=settings,
    )


def first_step_in_a_process(task: str) -> dict[str, float]:
    bench = Path(__file__).resolve().parents[1] / "bench.py"
    command = [sys.executable, str(bench), "overhead", "--part", task]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def part(arguments: list[str]) -> None:
    """Prints the seconds from the start of `train` to the end of the first meta-step, and of a later one."""
    from metalearn import train as command_line

    train, clock = command_line.train, _Clock()

    def watched(experiment: Experiment, folder: Path, **options: Any) -> Any:
        settings = replace(experiment.settings, eval_every=0, log_every=10**6, checkpoint_every=10**6)
        clock.start()
        options |= {"progress": clock, "stop": clock.stop}
        return train(replace(experiment, settings=settings), folder, **options)

    command_line.train = watched
    with tempfile.TemporaryDirectory() as folder:
        command_line.main([f"task={arguments[0]}", "device=cpu", "logger=none", f"hydra.run.dir={folder}/run"])
    first, later = clock.at[0], min(b - a for a, b in zip(clock.at, clock.at[1:], strict=False))
    cpu = clock.process_at[0]
    print(json.dumps({"wall_seconds": first, "process_seconds": cpu, "later_step_seconds": later}))


class _Clock:
    """A progress that notes when meta-steps end, and stops the run after a few."""

    def __init__(self) -> None:
        self.stop = StopFlag()
        self.at: list[float] = []
        self.process_at: list[float] = []

    def start(self) -> None:
        self._began, self._process_began = time.perf_counter(), time.process_time()

    @contextmanager
    def phase(self, name: str, total: int, *, done: int = 0, unit: str = "steps") -> Iterator["_Clock"]:
        yield self

    def advance(self, count: int = 1, metrics: Any = None) -> None:
        self.at.append(time.perf_counter() - self._began)
        self.process_at.append(time.process_time() - self._process_began)
        self.stop.requested = len(self.at) == 4

    def message(self, text: str) -> None:
        print(text, file=sys.stderr)


def _line(name: str, measured: dict[str, Any]) -> str:
    if "share" not in measured:
        first, later = (measured[f"{part}_seconds"]["median"] for part in ("wall", "later_step"))
        return f"{name:<40} {first:.2f} s, a later one {later:.3f} s"
    beside, gradient = (1e3 * measured[f"{part}_seconds"]["median"] for part in ("beside", "gradient"))
    return (
        f"{name:<40} beside {beside:8.3f} ms   gradient {gradient:9.3f} ms   share of the step {measured['share']:.1%}"
    )


CASE = Case(measure, _line, part=part)
