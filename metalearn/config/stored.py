"""A run directory's config.yaml: writing it, and reading it back with a few overrides on top."""

import os
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metalearn.config.explain import explain_override, explain_value
from metalearn.config.schema import TrainConfig, check_bounds
from metalearn.errors import UsageError

CONFIG = "config.yaml"

_LATER = (
    ("nonfinite", "stop"), ("task_clip", None), ("precision", "float32"), ("profile", False), ("compile", False),
    ("switch_at", None), ("measure", False), ("convolutions", "grouped"), ("cuda_graphs", False),
)  # fmt: skip
"""Settings that runs from before them go on without: their defaults change nothing."""


def plain(node: Any) -> Any:
    """A config as dicts, lists and scalars, fit for YAML and JSON."""
    if is_dataclass(node):
        return {entry.name: plain(getattr(node, entry.name)) for entry in fields(node)}
    if isinstance(node, dict):
        return {str(name): plain(value) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [plain(value) for value in node]
    return node.value if isinstance(node, Enum) else node


def identity(config: TrainConfig) -> dict[str, Any]:
    """The part of a config that a run keeps for life, compared when it goes on.

    The number of meta steps, validation and test, where the data lie, the device and the logger may differ afterwards.
    """
    kept = plain(config)
    for name in ("eval", "logger", "device", "run", "test_task"):
        del kept[name]
    for name in ("num_steps", "log_every", "checkpoint_every"):
        del kept["meta"][name]
    _forget_root(kept["task"])
    for name, default in _LATER:
        if kept["execution"].get(name) == default:
            del kept["execution"][name]
    return dict(kept)


def _forget_root(task: dict[str, Any]) -> None:
    task.pop("root", None)
    for source in task.get("sources", ()):
        if isinstance(source, dict):
            _forget_root(source)


def write_config(config: TrainConfig, run_directory: Path) -> None:
    """Writes config.yaml.

    Raises:
        UsageError: the folder can not be written.
    """
    try:
        run_directory.mkdir(parents=True, exist_ok=True)
        temporary = run_directory / f".{CONFIG}.tmp"
        temporary.write_text(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
        os.replace(temporary, run_directory / CONFIG)
    except OSError as error:
        raise UsageError(
            f"The run directory {run_directory} can not be written ({error.strerror or error}). Choose another with "
            "hydra.run.dir=…."
        ) from None


def read_config(run_directory: Path, changes: Iterable[tuple[str, Any]] = ()) -> TrainConfig:
    """Reads config.yaml back, and applies `changes`: pairs of a dotted key and a value.

    Raises:
        UsageError: there is none, it is not ours, or a change does not fit the schema.
    """
    path = run_directory / CONFIG
    if run_directory.is_file():
        raise UsageError(f"run={run_directory} is a file: give the folder of the run, such as {run_directory.parent}.")
    if not run_directory.exists():
        raise UsageError(f"run={run_directory} is not there. Give the folder of a run, such as outputs/glyphs/….")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"run={run_directory} is not a run directory: it has no {CONFIG}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} can not be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not the configuration of a run.")
    try:
        config = OmegaConf.merge(OmegaConf.structured(TrainConfig), found)
    except OmegaConfBaseException as error:
        raise UsageError(f"{path} does not fit this version of metalearn: {explain_value(error)}") from None
    for key, value in changes:
        try:
            OmegaConf.update(config, key, value)
        except OmegaConfBaseException as error:
            raise UsageError(explain_override(f"{key}={value}", error)) from None
    result = OmegaConf.to_object(config)
    assert isinstance(result, TrainConfig)
    check_bounds(result)
    return result
