"""Schemas, where the YAML is found, and building what it names: the only room that imports hydra or omegaconf."""

from metalearn.config.build import build_experiment, build_logger, build_source, without_foreign_defaults
from metalearn.config.hydra_app import (
    Composed,
    as_process,
    config_directory,
    group_choice,
    guarded,
    importable_folder,
    parse,
    run_hydra,
)
from metalearn.config.overrides import changes, check_folders, without_nulls
from metalearn.config.schema import EvaluateConfig, TrainConfig
from metalearn.config.stored import read_config, write_config

__all__ = [
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
    "group_choice",
    "guarded",
    "importable_folder",
    "parse",
    "read_config",
    "run_hydra",
    "without_foreign_defaults",
    "without_nulls",
    "write_config",
]
