"""`python -m metalearn.evaluate run=DIR [overrides]`: a run's numbers again, on more episodes or after other steps."""

import os
import signal
from collections.abc import Sequence
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
from metalearn.config import Composed, EvaluateConfig
from metalearn.errors import UsageError
from metalearn.training import Results, TaskCard, evaluate
from metalearn.training.experiment import has_inner_steps
from metalearn.training.results import describe


def _run(argv: Sequence[str]) -> int:
    if configuration.parse(argv).multirun:
        raise UsageError("evaluate measures one run at a time: leave -m out and call it once for each value.")
    return configuration.run_hydra("evaluate", argv, _evaluate)


def _evaluate(composed: Composed) -> None:
    asked: EvaluateConfig = composed.config
    if asked.run is None:
        raise UsageError("Which run? Give its folder: python -m metalearn.evaluate run=outputs/glyphs/….")
    folder = Path(asked.run)
    measured = configuration.measured_run(folder, asked, config_dir=composed.config_dir)
    settings = measured.experiment.settings
    num_episodes, num_inner_steps = settings.test_episodes, settings.num_inner_steps_eval
    results = evaluate(
        measured.experiment,
        measured.checkpoint,
        num_episodes=num_episodes,
        num_inner_steps=num_inner_steps,
        split=asked.split,
        baseline=settings.baseline,
        progress=configuration.build_logger(measured.config)[1],
    )
    parts = [asked.split, measured.checkpoint.name, f"{num_episodes}-episodes"]
    has_steps = has_inner_steps(measured.experiment.algorithm)
    parts += [f"{num_inner_steps}-steps"] if has_steps else []
    parts += measured.called
    path = folder / "evaluations" / f"{'-'.join(parts)}.json"
    results.save(path)
    print(_table(results) if has_steps else results.summary())
    print(f"Written to {path}")
    if TaskCard.read(folder) is None:  # a run of an older version, which `metalearn.load` can not use without data
        TaskCard.of(measured.experiment.source).write(folder)


def _table(results: Results) -> str:
    by_step = results.data[f"{results.split}_by_step"]
    lines = [results.summary(), "", "inner steps  " + "".join(f"{name:<22}" for name in by_step)]
    for step, row in enumerate(zip(*by_step.values(), strict=True)):
        cells = [describe(cell, percent=name == "accuracy") for name, cell in zip(by_step, row, strict=True)]
        lines.append(f"{step:>11}  " + "".join(f"{cell:<22}" for cell in cells).rstrip())
    return "\n".join(lines)


main, command = configuration.command_line(_run)

if __name__ == "__main__":
    command()
