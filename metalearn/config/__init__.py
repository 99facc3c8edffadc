"""Schemas, where the YAML is found, and building what it names: the only room that imports hydra or omegaconf."""

from metalearn.config.build import build_experiment, build_logger, build_source, without_foreign_defaults
from metalearn.config.choices import config_directory, group_choice
from metalearn.config.hydra_app import (
    Composed,
    command_line,
    importable_folder,
    parse,
    run_hydra,
)
from metalearn.config.measured import MeasuredRun, measured_run
from metalearn.config.overrides import changes, check_folders, quoted_path, repeated, without_nulls
from metalearn.config.resolve import full_test_task, resolved
from metalearn.config.schema import AdaptConfig, CompareConfig, EvaluateConfig, TrainConfig
from metalearn.config.stored import CONFIG, identity, read_config, write_config

__all__ = [
    "CONFIG",
    "AdaptConfig",
    "CompareConfig",
    "Composed",
    "EvaluateConfig",
    "MeasuredRun",
    "TrainConfig",
    "build_experiment",
    "build_logger",
    "build_source",
    "changes",
    "check_folders",
    "command_line",
    "config_directory",
    "full_test_task",
    "group_choice",
    "identity",
    "importable_folder",
    "measured_run",
    "parse",
    "quoted_path",
    "read_config",
    "repeated",
    "resolved",
    "run_hydra",
    "without_foreign_defaults",
    "without_nulls",
    "write_config",
]
