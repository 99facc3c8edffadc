"""Schemas, where the YAML is found, and building what it names: the only room that imports hydra or omegaconf."""

from metalearn.config.build import build_experiment, build_logger, build_source, without_foreign_defaults
from metalearn.config.choices import config_directory, group_choice
from metalearn.config.hydra_app import (
    Composed,
    as_process,
    guarded,
    importable_folder,
    parse,
    run_hydra,
)
from metalearn.config.overrides import changes, check_folders, quoted_path, without_nulls
from metalearn.config.resolve import full_test_task, resolved
from metalearn.config.schema import AdaptConfig, EvaluateConfig, TrainConfig
from metalearn.config.stored import CONFIG, read_config, write_config

__all__ = [
    "CONFIG",
    "AdaptConfig",
    "Composed",
    "EvaluateConfig",
    "TrainConfig",
    "as_process",
    "build_experiment",
    "build_logger",
    "build_source",
    "changes",
    "check_folders",
    "config_directory",
    "full_test_task",
    "group_choice",
    "guarded",
    "importable_folder",
    "parse",
    "quoted_path",
    "read_config",
    "resolved",
    "run_hydra",
    "without_foreign_defaults",
    "without_nulls",
    "write_config",
]
