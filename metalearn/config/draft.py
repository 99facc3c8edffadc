"""A point of a sweep before it has a folder: its overrides composed, checked and given a name."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import HydraContext
from omegaconf import DictConfig, flag_override, open_dict

from metalearn import sweeps
from metalearn.config.grid import Swept, value_of
from metalearn.config.schema import TrainConfig
from metalearn.config.settings import settings_of
from metalearn.config.stored import plain
from metalearn.errors import UsageError

_CHANGES_NO_NUMBER = ("logger", "device", "run", "task.root", "meta.log_every", "meta.checkpoint_every")


@dataclass(frozen=True)
class Draft:
    """What a point is.

    Attributes:
        overrides: what composes it.
        values: the swept keys and their values.
        settings: its configuration.
        digest: of what makes its numbers.
    """

    overrides: tuple[str, ...]
    values: Mapping[str, Any]
    settings: TrainConfig
    digest: str


@dataclass(frozen=True)
class Drawer:
    """Makes drafts of one sweep."""

    context: HydraContext
    config: DictConfig
    swept: Swept

    def draft(self, texts: Mapping[str, str], *, number: int) -> Draft:
        """The draft with these values.

        Raises:
            HydraException: it can not be composed.
            UsageError: its configuration has a value out of bounds; the text says which point's.
        """
        overrides = self.swept.overrides(texts)
        values = {key: value_of(text) for key, text in texts.items()}
        config = self._composed(overrides, number=number)
        with _current(config):
            bare = copy.deepcopy(config)
            with flag_override(bare, ["struct", "readonly"], [False, False]):
                del bare["hydra"]
            try:
                settings = settings_of(bare)
            except UsageError as error:
                swept = " ".join(f"{key}={text}" for key, text in texts.items())
                raise UsageError(f"point {number} ({swept}): {error}") from None
        return Draft(tuple(overrides), values, settings, _digest(settings, values))

    def folder(self, draft: Draft, directory: Path, *, number: int) -> Path:
        """Where the point goes, by hydra.sweep.subdir."""
        config = self._composed(draft.overrides, number=number)
        with _current(config):
            return directory / str(config.hydra.sweep.subdir)

    def job(self, draft: Draft, directory: Path, folder: Path) -> list[str]:
        """The overrides that a launcher is given: the draft's own, and where it goes."""
        places = {"hydra.sweep.dir": directory, "hydra.sweep.subdir": folder.relative_to(directory)}
        return [*draft.overrides, *(f"{key}={_quoted(str(place))}" for key, place in places.items())]

    def _composed(self, overrides: list[str] | tuple[str, ...], *, number: int) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with flag_override(config, "readonly", False), open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        return config


def _digest(settings: TrainConfig, values: Mapping[str, Any]) -> str:
    data = plain(settings)
    for path in _CHANGES_NO_NUMBER:
        *parents, name = path.split(".")
        node = data
        for parent in parents:
            node = node[parent]
        node.pop(name, None)
    # Whoever sweeps over one of these wants a run for each.
    free = {key: value for key, value in values.items() if key.split(".")[0] in ("logger", "device", "hydra")}
    return sweeps.digest_of([data, free, *[values.get(key) for key in _CHANGES_NO_NUMBER]])


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


@contextmanager
def _current(config: DictConfig) -> Iterator[None]:
    # Interpolations of ${hydra:…} look at the one current configuration.
    current = HydraConfig.instance()
    before = current.cfg
    current.set_config(config)
    try:
        yield
    finally:
        current.cfg = before
