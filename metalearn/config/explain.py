"""Hydra's and OmegaConf's errors, told in a line: what was given, what was expected, the likely fix."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from metalearn.config.overrides import unreadable
from metalearn.errors import did_you_mean

Compose = Callable[[], DictConfig]
"""Composes the configuration without the overrides at fault, to find out which keys there are."""


def explain(error: Exception, *, compose: Compose, groups: Iterable[str]) -> str:
    """One or two lines for a user, from what Hydra raised while it parsed and composed."""
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    if isinstance(error, MissingConfigException):
        return _missing(error)
    text = str(error)
    if match := re.match(r"Could not override '([^']*)'", text):
        if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key != match[1]:
            return f"{match[1]}: {explain_value(cause)}"
        return _unknown_key(match[1], compose=compose, groups=groups)
    if match := re.match(r"Error merging override (\S.*)", text):
        given = match[1].strip()
        whole = given.lstrip("+~").partition("=")[0]
        if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key == whole:
            return _unknown_key(whole, compose=compose, groups=groups)
        return explain_override(given, cause) if isinstance(cause, Exception) else given
    if match := re.match(r"In '(.*?)': (Validation|ConfigKey|Key|.*?[Ee]rror)", text):
        return f"The configuration {match[1]} does not fit: {explain_value(cause or error)}"
    if match := re.search(r"Ambiguous value for argument '(.*?)'", text):
        key, _, values = match[1].partition("=")
        return f"{match[1]} gives several values: to run each of them add -m; for a list write {key}=[{values}]."
    if isinstance(cause, OmegaConfBaseException) and not text:
        return explain_value(cause)
    return _one_line(text) or type(error).__name__


def explain_override(given: str, error: BaseException) -> str:
    """What OmegaConf found wrong with an override such as "inner.lr=x", in a sentence."""
    whole, above = given.lstrip("+~").partition("=")[0], getattr(error, "full_key", None)
    if isinstance(error, ValidationError) and above and whole.startswith(f"{above}."):
        return f"Unknown key {whole!r}: {above!r} is a value, with no keys below it. Write {above}=…."
    return f"{given}: {explain_value(error)}"


def explain_value(error: BaseException) -> str:
    """What OmegaConf found wrong with a value or a key, in a sentence."""
    first = _one_line(str(error).split("\n")[0])
    if isinstance(error, ValidationError):
        if match := re.match(r"Value '(.*)' of type '.*' could not be converted to (\w+)", first):
            kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
            return f"expected {kinds.get(match[2], match[2])}, got {match[1]!r}."
        if match := re.match(r"Value '(.*)' is not a valid bool", first):
            return f"expected true or false, got {match[1]!r}."
        if match := re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", first):
            return f"there is no such choice. {did_you_mean(match[1], match[2].split(', '))}"
        if "is not Optional" in first or "not supported" in first:
            return f"it does not fit here ({first})."
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and error.full_key:
        known = error.parent_node if isinstance(error.parent_node, DictConfig) else {}
        name = str(error.key)
        return f"there is no {error.full_key!r}. {did_you_mean(name, map(str, known))}"
    return first


def _missing(error: MissingConfigException) -> str:
    name = error.missing_cfg_file or ""
    group, _, choice = name.rpartition("/")
    if error.options is None or not group:
        return _one_line(str(error).split("\n")[0])
    return f"{group}={choice}: there is no such {group}. {did_you_mean(choice, error.options)}"


def _unknown_key(key: str, *, compose: Compose, groups: Iterable[str]) -> str:
    if key.startswith("hydra."):
        return f"Unknown key {key!r} of Hydra itself. Its keys: --cfg hydra."
    config = compose()
    path, _, name = key.rpartition(".")
    # Walk down as far as the path is known: 'inne.lr' is a mistake in its first name.
    node: Any = config
    seen: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            path, name = ".".join(seen), part
            break
        seen.append(part)
        node = OmegaConf.select(config, ".".join(seen))
    known = [str(each) for each in node] if isinstance(node, DictConfig) else []
    if not path:
        known = [*known, *groups]
    where = f" in {path!r}" if path else ""
    open_node = path in ("task", "model", "algorithm", "metagrad", "logger")
    more = f" To pass a new argument on, write +{key}=…." if open_node else ""
    return f"Unknown key {key!r}: there is no {name!r}{where}. {did_you_mean(name, set(known) - {'hydra'})}{more}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
