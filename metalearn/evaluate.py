"""`python -m metalearn.evaluate run=DIR [overrides]`: a run's numbers again, on more episodes or after other steps."""

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    # The imports below take seconds; a signal during them is no traceback. `as_process` installs what follows.
    def _stop(number: int, frame: object) -> NoReturn:
        os.write(2, b"metalearn: stopped before anything was started.\n")
        os._exit(130)

    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _stop)

from metalearn import config as configuration
from metalearn.config import Composed, EvaluateConfig, TrainConfig
from metalearn.errors import UsageError
from metalearn.training import Results, TaskCard, evaluate, find_checkpoint
from metalearn.training.data_identity import check_data
from metalearn.training.results import describe


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments after the command's name; `None` for the process's own.

    Returns:
        The exit code: 0 done, 2 the user's mistake, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with configuration.importable_folder():
        return configuration.guarded(lambda: _run(arguments))


def command() -> NoReturn:
    """The process `metalearn-evaluate`."""
    configuration.as_process(main)


def _run(argv: Sequence[str]) -> int:
    if configuration.parse(argv).multirun:
        raise UsageError("evaluate measures one run at a time: leave -m out and call it once for each value.")
    return configuration.run_hydra("evaluate", argv, _evaluate)


def _evaluate(composed: Composed) -> None:
    asked: EvaluateConfig = composed.config
    if asked.run is None:
        raise UsageError("Which run? Give its folder: python -m metalearn.evaluate run=outputs/glyphs/….")
    folder = Path(asked.run)
    changes = _changes(asked)
    sizes = {name: changes.pop(f"task.{name}") for name in _SIZES if f"task.{name}" in changes}
    config = configuration.read_config(folder, changes.items())
    asked_task = _asked_task(asked, composed.config_dir)
    config = replace(config, test_task=_measured(config, asked_task, sizes, split=asked.split))
    # A run without validation has no best checkpoint: its results are the last one's too.
    checkpoint = find_checkpoint(folder if asked.checkpoint.value == "best" else folder / "checkpoints" / "last")
    experiment = configuration.build_experiment(config)
    if asked_task is None:
        # Other sizes of an episode can leave other groups of a test task out.
        check_data(experiment, folder, test_task=not sizes)
    settings = experiment.settings
    num_episodes, num_inner_steps = settings.test_episodes, settings.num_inner_steps_eval
    results = evaluate(
        experiment,
        checkpoint,
        num_episodes=num_episodes,
        num_inner_steps=num_inner_steps,
        split=asked.split,
        baseline=settings.baseline,
        progress=configuration.build_logger(config)[1],
    )
    parts = [asked.split, checkpoint.name, f"{num_episodes}-episodes", f"{num_inner_steps}-steps"]
    parts += [f"{value}-{name.replace('_', '-')}" for name, value in sizes.items()] + _called(asked.test_task)
    path = folder / "evaluations" / f"{'-'.join(parts)}.json"
    results.save(path)
    print(_table(results))
    print(f"Written to {path}")
    if TaskCard.read(folder) is None:  # a run of an older version, which `metalearn.load` can not use without data
        TaskCard.of(experiment.source).write(folder)


_SIZES = ("shots", "query_shots")


def _asked_task(asked: EvaluateConfig, config_dir: str | None) -> dict[str, Any] | None:
    """The node of a test task that was asked for by its name or class, or only the keys that should differ."""
    node = asked.test_task or None
    if node is None or not (node.get("name") or "_target_" in node):
        return node
    return configuration.full_test_task(node, task={}, config_dir=config_dir)


def _measured(
    config: TrainConfig, asked: Mapping[str, Any] | None, sizes: Mapping[str, Any], *, split: str
) -> dict[str, Any] | None:
    """The node of the task to measure on; `None` for the one that the run was trained on.

    A run's own test task is for its final test: other splits are those of the training task, unless one is asked for.
    """
    base = config.test_task if config.test_task is not None and (split == "test" or asked is not None) else None
    if asked is None and not sizes:
        return base
    if asked is not None and "_target_" in asked:
        return {**asked, **sizes}
    return {**(base or config.task), **(asked or {}), **sizes}


def _called(test_task: Mapping[str, Any] | None) -> list[str]:
    """What the name of the file says of a test task that was asked for."""
    if not test_task:
        return []
    name = test_task.get("name") or str(test_task.get("_target_", "")).rpartition(".")[2]
    rest = [f"{value}-{key.replace('_', '-')}" for key, value in test_task.items() if key not in ("name", "_target_")]
    return [re.sub(r"[^\w.-]+", "_", part) for part in ([f"on-{name}"] if name else []) + rest]


def _changes(asked: EvaluateConfig) -> dict[str, Any]:
    """What was asked for, by the names of the run's own config."""
    found: dict[str, Any] = {} if asked.device is None else {"device": asked.device}
    for group in ("eval", "execution", "task"):
        node = getattr(asked, group)
        for entry in fields(node):
            value = getattr(node, entry.name)
            if value is not None:
                found[f"{group}.{entry.name}"] = value.value if isinstance(value, Enum) else value
    return found


def _table(results: Results) -> str:
    by_step = results.data[f"{results.split}_by_step"]
    lines = [results.summary(), "", "inner steps  " + "".join(f"{name:<22}" for name in by_step)]
    for step, row in enumerate(zip(*by_step.values(), strict=True)):
        cells = [describe(cell, percent=name == "accuracy") for name, cell in zip(by_step, row, strict=True)]
        lines.append(f"{step:>11}  " + "".join(f"{cell:<22}" for cell in cells).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    command()
