"""`python -m metalearn.compare run=A run=B [overrides]`: the difference of two runs on the same episodes."""

import hashlib
import os
import re
import shlex
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    # The imports below take seconds; a signal during them is no traceback. `command_line` installs what follows.
    def _stop(number: int, frame: object) -> NoReturn:
        os.write(2, b"metalearn: stopped before anything was started.\n")
        os._exit(130)

    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _stop)

from metalearn import config as configuration
from metalearn.config import CompareConfig, Composed, MeasuredRun, TrainConfig
from metalearn.errors import UsageError
from metalearn.training.comparison_plot import draw_comparison
from metalearn.training.comparison_report import JSON, PICTURE, Compared, Side
from metalearn.training.experiment import has_inner_steps, refuse_inner_steps
from metalearn.training.pairing import Contestant, measure_together
from metalearn.training.run_directory import flat

Sides = tuple[tuple[str, ...], tuple[str, ...]]
_NAMES = ("A", "B")


def _run(argv: Sequence[str]) -> int:
    options = configuration.parse(argv)
    if options.multirun:
        raise UsageError("compare makes one comparison at a time: leave -m out and call it once for each.")
    asks = options.help or options.hydra_help or options.cfg or options.info
    # Hydra takes a key once: the two sides are read before it sees them.
    folders, rest = configuration.repeated(argv, "run")
    sides = ((), ()) if asks else _two_sides(folders)
    arguments = [configuration.quoted_path(each, ("out",)) for each in rest]
    return configuration.run_hydra("compare", arguments, partial(_compare, sides=sides, argv=list(argv)))


def _two_sides(folders: Sequence[Sequence[str]]) -> Sides:
    if len(folders) == 2 and all(folders):
        a, b = map(tuple, folders)
        return a, b
    if len(folders) < 2 or not all(folders):
        raise UsageError("Which two runs? Give two folders: python -m metalearn.compare run=A run=B.")
    raise UsageError(
        f"run= is given {len(folders)} times, expected twice: once for A and once for B. "
        "Several seeds of a side go into one, between commas: run=A1,A2 run=B1,B2."
    )


def _compare(composed: Composed, *, sides: Sides, argv: Sequence[str]) -> None:
    asked: CompareConfig = composed.config
    out = _output(asked, sides)
    try:
        _compare_into(out, composed, sides=sides, argv=argv)
    except BaseException:
        with suppress(OSError):  # neither a mistake nor a signal leaves an empty folder behind
            out.rmdir()
        raise


def _compare_into(out: Path, composed: Composed, *, sides: Sides, argv: Sequence[str]) -> None:
    asked: CompareConfig = composed.config
    built = [[_built(folder, asked, composed.config_dir) for folder in side] for side in sides]
    for name, side in zip(_NAMES, built, strict=True):
        _check_seeds(name, side)
    if asked.pair_seeds:
        _check_pairs(*built)
    together = _with_the_same_episodes([each for side in built for each in side], asked)
    count = len(sides[0])
    names = [_called(name, index, side) for name, side in zip(_NAMES, sides, strict=True) for index in range(len(side))]
    results = measure_together(
        [
            Contestant(name=name, experiment=run.experiment, checkpoint=run.checkpoint)
            for name, run in zip(names, together, strict=True)
        ],
        split=asked.split,
        progress=configuration.build_logger(together[0].config)[1],
    )
    a, b = Side.of("A", sides[0], results[:count]), Side.of("B", sides[1], results[count:])
    compared = Compared.of(a, b, split=asked.split, pair_seeds=asked.pair_seeds)
    _draw(compared, out / PICTURE)
    compared.save(out / JSON, command=shlex.join(["python", "-m", "metalearn.compare", *argv]))
    print(compared.summary())
    print(f"Written to {out / JSON} and {PICTURE}")


def _built(folder: str, asked: CompareConfig, config_dir: str | None) -> MeasuredRun:
    # One of the two may take no inner steps: they are given later, to those that do.
    without = replace(asked, eval=replace(asked.eval, num_inner_steps=None))
    return configuration.measured_run(Path(folder).expanduser(), without, config_dir=config_dir)


def _called(name: str, index: int, side: Sequence[str]) -> str:
    return name if len(side) == 1 else f"{name}{index + 1}"


def _check_seeds(name: str, side: Sequence[MeasuredRun]) -> None:
    """Refuses runs of a side that do not differ in their seed, and in their seed alone."""
    first, *others = side
    for other in others:
        different = [key for key in _different(first.config, other.config) if key != "seed"]
        if different:
            raise UsageError(
                f"{name}: {first.folder} and {other.folder} differ in {', '.join(different[:3])}, not in their seed "
                "alone. The runs of one side are one training with several seeds; compare others by run=A run=B."
            )
    seeds = [each.config.seed for each in side]
    again = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if again is not None:
        raise UsageError(f"{name}: two runs have the seed {again}, so that their spread says nothing. Give each once.")


def _check_pairs(a: Sequence[MeasuredRun], b: Sequence[MeasuredRun]) -> None:
    seeds = [[each.config.seed for each in side] for side in (a, b)]
    if seeds[0] != seeds[1]:
        raise UsageError(
            f"pair_seeds=true: A has the seeds {seeds[0]}, B {seeds[1]}. Give both the same seeds in the same order, "
            "or leave pair_seeds out."
        )


def _different(a: TrainConfig, b: TrainConfig) -> list[str]:
    """The keys in which two trainings differ."""
    kept = [flat(configuration.identity(each) | {"meta.num_steps": each.meta.num_steps}) for each in (a, b)]
    return [key for key in dict.fromkeys([*kept[0], *kept[1]]) if kept[0].get(key) != kept[1].get(key)]


def _with_the_same_episodes(runs: Sequence[MeasuredRun], asked: CompareConfig) -> list[MeasuredRun]:
    """The runs with one number of episodes, one seed of them, and the inner steps asked for, else their own."""
    given, steps = asked.eval.seed, asked.eval.num_inner_steps
    if steps and not any(has_inner_steps(run.experiment.algorithm) for run in runs):
        refuse_inner_steps(runs[0].experiment.algorithm, f"eval.num_inner_steps={steps}")
    seed = min(run.config.seed for run in runs) if given is None else given
    count = max(run.experiment.settings.test_episodes for run in runs)
    found = []
    for run in runs:
        settings = replace(run.experiment.settings, test_episodes=count, test_seed=seed)
        if steps is not None:  # an experiment without inner steps keeps to none
            settings = replace(settings, num_inner_steps_eval=steps)
        found.append(replace(run, experiment=replace(run.experiment, settings=settings)))
    return found


def _draw(compared: Compared, path: Path) -> None:
    metric = compared.metric
    a, b = (side.values[metric] for side in (compared.a, compared.b))
    draw_comparison(a, b, compared.differences[metric], metric=metric, title=compared.title(), path=path)


def _output(asked: CompareConfig, sides: Sides) -> Path:
    """The folder to write to, made before anything is measured."""
    if asked.out == "":
        raise UsageError("out= names no folder: give a folder, such as out=outputs/compare/mine.")
    if asked.out is None:
        # The same question has the same folder: its answer is written anew.
        digest = hashlib.sha256(repr((sides, asked)).encode()).hexdigest()[:8]
        names = [re.sub(r"[^\w.-]+", "_", "_".join(Path(side[0]).parts[-2:])) for side in sides]
        out = Path("outputs/compare") / f"{names[0]}-{names[1]}-{digest}"
    else:
        out = Path(asked.out).expanduser()
        if (out / JSON).exists():
            raise UsageError(f"out={out} already holds {JSON}. Choose another out=….")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out={out} can not be written ({error.strerror or error}). Choose another out=….") from None
    return out


main, command = configuration.command_line(_run)

if __name__ == "__main__":
    command()
