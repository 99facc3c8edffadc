"""Where the YAML lies: ours, that of `--config-dir` and that of installed packages; and reading a choice of a group.

A package offers choices by an entry point of the group `metalearn.configs` whose value is a package, or a folder in
one, with a folder for every group: `my_pkg = "my_pkg.configs"` makes `my_pkg/configs/task/my_task.yaml` into
`task=my_task`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metalearn.config.explain import HYDRA_ERRORS, explain
from metalearn.config.schema import AdaptConfig, CompareConfig, EvaluateConfig, SweeperConfig, TrainConfig
from metalearn.errors import UsageError

GROUP = "metalearn.configs"


def config_directory() -> Path:
    """The folder of our YAML files: in an installed wheel inside the package, in a checkout beside it."""
    package = Path(__file__).resolve().parent.parent
    candidates = (package / "configs", package.parent / "configs")
    for candidate in candidates:
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"metalearn is installed without its configuration files (looked in {candidates})")


@dataclass(frozen=True)
class PackageConfigs:
    """The YAML of an installed package.

    Attributes:
        package: the distribution's name.
        folder: where its groups are; `None` where the entry point names none.
        problem: in that case, what is wrong, in a line.
    """

    package: str
    folder: Path | None = None
    problem: str = ""


def package_configs() -> list[PackageConfigs]:
    """What installed packages offer. None of their code is run."""
    found = sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))
    return [_package_configs(entry) for entry in dict.fromkeys(found)]


def warn_of_broken_packages() -> None:
    """Says on stderr, a line each, which packages' entry points name no folder of YAML; they are left out."""
    for package in package_configs():
        if package.problem:
            print(f"metalearn: {package.problem}", file=sys.stderr, flush=True)


def config_folders(config_dir: str | None) -> list[Path]:
    """Every folder that holds groups: ours, that of `--config-dir`, those of packages."""
    extra = [] if config_dir is None else [Path(config_dir).resolve()]
    return [config_directory(), *extra, *(each.folder for each in package_configs() if each.folder is not None)]


def register_schemas() -> None:
    """Tells Hydra the types, which train.yaml, evaluate.yaml … name, and where packages' YAML lies."""
    store = ConfigStore.instance()
    train = OmegaConf.structured(TrainConfig)
    OmegaConf.set_struct(train.inner.options, False)  # what it takes depends on the optimizer, which checks it
    store.store(name="train_schema", node=train)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="compare_schema", node=CompareConfig)
    store.store(group="hydra/sweeper", name="metalearn", node=SweeperConfig)
    store.store(name="adapt_schema", node=AdaptConfig)
    Plugins.instance().register(_PackagesOnTheSearchPath)


def group_choice(group: str, choice: str, *, config_dir: str | None = None) -> Any:
    """The content of one choice of a group, as plain data.

    Raises:
        UsageError: there is no such choice, or its YAML can not be read.
    """
    register_schemas()
    search_path = create_config_search_path(str(config_directory()))
    if config_dir is not None:
        search_path.append("command-line", f"file://{Path(config_dir).resolve()}")
    try:
        # Not `hydra.compose`: that needs Hydra's global state, which belongs to the job that may be running.
        config = ConfigLoaderImpl(config_search_path=search_path).load_configuration(
            config_name="train", overrides=[f"{group}={choice}"], run_mode=RunMode.RUN
        )
        return OmegaConf.to_container(config[group], resolve=True)
    except HYDRA_ERRORS as error:
        raise UsageError(explain(error, compose=_nothing, groups=())) from None
    except yaml.YAMLError as error:
        raise UsageError(unreadable(error)) from None


def unreadable(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML file, in a line."""
    return f"A configuration file can not be read: {' '.join(str(error).split())}."


class _PackagesOnTheSearchPath(SearchPathPlugin):
    """Hydra's seam for it: group listings, help, error messages and sweeps then know the choices too."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the folders of packages: of two choices of one name, ours is taken."""
        for each in package_configs():
            if each.folder is not None:
                search_path.append(provider=each.package, path=f"file://{each.folder}")


def _package_configs(entry: EntryPoint) -> PackageConfigs:
    package = entry.dist.name if entry.dist is not None else entry.name
    module, *below = entry.value.split(".")
    for location in _locations(module):
        folder = Path(location, *below)
        if any(folder.glob("*/*.yaml")):
            return PackageConfigs(package, folder.resolve())
    return PackageConfigs(
        package,
        problem=f"the package {package} offers configurations at {entry.value!r}, where there is no folder of "
        f"<group>/<choice>.yaml files; left out. Mend its entry point {entry.name!r} of the group {GROUP!r}.",
    )


def _locations(module: str) -> Sequence[str]:
    # The top package alone is looked up, and what lies below it found as folders: that imports nothing.
    if not module.isidentifier():
        return []
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return []
    return [] if spec is None or spec.submodule_search_locations is None else list(spec.submodule_search_locations)


def _nothing() -> DictConfig:
    return OmegaConf.create()
