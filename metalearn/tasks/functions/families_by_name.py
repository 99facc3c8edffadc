"""The families of functions that a configuration chooses by name, and which parameters belong to which."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from metalearn.errors import UsageError, did_you_mean
from metalearn.tasks.functions.families import FamilyMixture, FunctionFamily, SineWaves
from metalearn.tasks.functions.gaussian_process import GaussianProcess
from metalearn.tasks.functions.user_function import UserFunction

FAMILIES: dict[str, Callable[..., FunctionFamily]] = {
    "sinusoid": SineWaves,
    "gaussian_process": GaussianProcess,
    "function": UserFunction,
    "mixture": FamilyMixture,
}
_OF_THE_SOURCE = ("x_range", "input_dim")  # options of the source that a family may need too


def build_family(name: str, given: Mapping[str, Any], *, common: Mapping[str, Any]) -> FunctionFamily:
    """The family of that name.

    Args:
        name: one of `FAMILIES`.
        given: its parameters by name.
        common: `x_range` and `input_dim`, for the families that need them.

    Raises:
        UsageError: there is no such family, a parameter belongs to another one, or one is missing.
    """
    if name not in FAMILIES:
        raise UsageError(f"Unknown family {name!r} of functions. {did_you_mean(str(name), FAMILIES)}")
    takes = _parameters(name)
    for option in given:
        if option not in takes:
            owner = next((each for each in FAMILIES if option in _parameters(each)), None)
            text = f"`{option}` belongs to family={owner}" if owner else f"There is no parameter `{option}`"
            raise UsageError(f"{text}, and this family is {name}, with the parameters {', '.join(takes)}.")
    if name == "mixture":
        return _mixture(given.get("families"), common=common)
    if name == "function" and "function" not in given:
        raise UsageError("family=function needs `function`, a Python function f(x, **parameters): my_module.wave.")
    known = {each.name for each in fields(FAMILIES[name])}  # type: ignore[arg-type]
    return FAMILIES[name](**given, **{option: value for option, value in common.items() if option in known})


def _parameters(name: str) -> list[str]:
    if name == "mixture":
        return ["families"]
    return [each.name for each in fields(FAMILIES[name]) if each.name not in _OF_THE_SOURCE]  # type: ignore[arg-type]


def _mixture(entries: Any, *, common: Mapping[str, Any]) -> FamilyMixture:
    if not entries or isinstance(entries, (str, Mapping)) or not isinstance(entries, Sequence):
        raise UsageError(
            "family=mixture needs `families`, a list such as [sinusoid, {family: gaussian_process, weight: 2}], got"
            f" {entries!r}."
        )
    families, weights = [], []
    for entry in entries:
        if isinstance(entry, (str, FunctionFamily)):
            entry = {"family": entry}
        if not isinstance(entry, Mapping) or "family" not in entry:
            raise UsageError(f"An entry of `families` must be a name or a mapping with `family`, got {entry!r}.")
        given = {name: value for name, value in entry.items() if name not in ("family", "weight")}
        family = entry["family"]
        families.append(build_family(family, given, common=common) if isinstance(family, str) else family)
        weights.append(entry.get("weight", 1))
    return FamilyMixture(tuple(families), tuple(weights))
