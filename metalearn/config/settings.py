"""A composed configuration as the schema's dataclass, checked."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from metalearn.config.explain import HYDRA_ERRORS
from metalearn.config.schema import check_bounds, check_keys
from metalearn.errors import UsageError


def settings_of(config: DictConfig) -> Any:
    """The schema's dataclass of a composed configuration.

    Raises:
        UsageError: a value is missing or out of its bounds, or a key has no place in the schema.
    """
    try:
        settings = OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise UsageError(f"{error.full_key} has no value: give it as {error.full_key}=….") from None
    except HYDRA_ERRORS as error:
        raise UsageError(" ".join(str(error).split("\n")[0].split())) from None
    check_keys(config, settings)
    check_bounds(settings)
    return settings
