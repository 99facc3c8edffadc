"""A run as it was stored, built again with what `evaluate` and `compare` were asked to do otherwise."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from metalearn.config.build import build_experiment
from metalearn.config.resolve import full_test_task
from metalearn.config.schema import EvaluateConfig, TrainConfig
from metalearn.config.stored import read_config
from metalearn.training import Experiment, find_checkpoint
from metalearn.training.data_identity import check_data
from metalearn.training.experiment import refuse_inner_steps

_SIZES = ("shots", "query_shots")


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """What is about to be measured.

    Attributes:
        folder: the run directory.
        config: the run's own, with the changes.
        experiment: built of it.
        checkpoint: the folder of the one to measure.
        called: what a file's name says of the changes to the task and the episodes.
    """

    folder: Path
    config: TrainConfig
    experiment: Experiment
    checkpoint: Path
    called: tuple[str, ...]


def measured_run(folder: Path, asked: EvaluateConfig, *, config_dir: str | None = None) -> MeasuredRun:
    """The run in `folder`, to be measured as it was asked for.

    Args:
        folder: the run directory.
        asked: with None for what stays as the run was configured.
        config_dir: the folder of `--config-dir`, which may hold the test task that was asked for.

    Raises:
        UsageError: there is no run or checkpoint, its data are others than it was trained on, or a change does not fit.
    """
    changes = _changes(asked)
    sizes = {name: changes.pop(f"task.{name}") for name in _SIZES if f"task.{name}" in changes}
    config = read_config(folder, changes.items())
    asked_task = _asked_task(asked, config_dir)
    config = replace(config, test_task=_measured(config, asked_task, sizes, split=asked.split))
    # A run without validation has no best checkpoint: its results are the last one's too.
    checkpoint = find_checkpoint(folder if asked.checkpoint.value == "best" else folder / "checkpoints" / "last")
    experiment = build_experiment(config)
    if asked.eval.num_inner_steps:
        refuse_inner_steps(experiment.algorithm, f"eval.num_inner_steps={asked.eval.num_inner_steps}")
    if asked_task is None:
        # Other sizes of an episode can leave other groups of a test task out.
        check_data(experiment, folder, test_task=not sizes)
    called = [f"{value}-{name.replace('_', '-')}" for name, value in sizes.items()] + _called(asked.test_task)
    called += [] if asked.eval.seed is None else [f"seed-{asked.eval.seed}"]
    return MeasuredRun(folder=folder, config=config, experiment=experiment, checkpoint=checkpoint, called=tuple(called))


def _asked_task(asked: EvaluateConfig, config_dir: str | None) -> dict[str, Any] | None:
    """The node of a test task that was asked for by its name or class, or only the keys that should differ."""
    node = asked.test_task or None
    if node is None or not (node.get("name") or "_target_" in node):
        return node
    return full_test_task(node, task={}, config_dir=config_dir)


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
