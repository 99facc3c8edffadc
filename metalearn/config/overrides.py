"""What a command line asks for, read and checked before Hydra sees it."""

from collections.abc import Collection, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from metalearn.errors import UsageError

_MAY_BE_NULL = {"experiment", "sweep"}
_FOLDERS = {"hydra.run.dir", "hydra.sweep.dir", "run"}
_OPEN = "test_task"


def changes(overrides: Sequence[str]) -> dict[str, Any]:
    """The keys and values that overrides set, in Hydra's grammar.

    Raises:
        UsageError: one can not be read.
    """
    result: dict[str, Any] = {}
    for text in overrides:
        override = _read(text)
        swept = override.is_sweep_override()
        result[override.key_or_group] = text.partition("=")[2] if swept else override.value()
    return result


def without_nulls(overrides: Sequence[str], *, groups: Collection[str]) -> list[str]:
    """`overrides` less those that choose nothing where nothing is the default, which Hydra does not take.

    Raises:
        UsageError: one can not be read, a group is given what is no choice, or a folder is given no name.
    """
    return [text for text in overrides if not _chooses_nothing(_read(text), groups=groups)]


def opened(overrides: Sequence[str]) -> list[str]:
    """`overrides` in which those of `test_task` may bring keys that it has not: by default it is empty.

    `test_task=omniglot` is short for `test_task.name=omniglot`.

    Example:
        >>> opened(["test_task=omniglot", "test_task.shots=5", "task.shots=1"])
        ['++test_task.name=omniglot', '++test_task.shots=5', 'task.shots=1']
    """
    return [_opened(text) for text in overrides]


def check_folders(overrides: Sequence[str]) -> None:
    """Refuses an empty name of a folder, which would be the current one.

    Raises:
        UsageError: naming the key.
    """
    for key, value in changes(overrides).items():
        if key in _FOLDERS and (value == "" or (value is None and key != "run")):
            raise UsageError(
                f"{key}={'' if value is None else value} names no folder: give a folder, such as {key}=outputs/my_run."
            )


def _opened(text: str) -> str:
    key, _, value = text.partition("=")
    name = key.lstrip("+")
    if name == _OPEN and value[:1] not in "{[" and value != "null":
        return f"++{_OPEN}.name={value}"
    return f"++{name}={value}" if name.startswith(f"{_OPEN}.") else text


def _read(text: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        override = None
    if override is None or not override.key_or_group:
        raise UsageError(f"{text!r} can not be read as an override. Expected key=value, or +key=value for a new key.")
    return override


def _chooses_nothing(override: Override, *, groups: Collection[str]) -> bool:
    key = override.key_or_group
    if key not in groups:
        return False
    value = override.value()
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        _check_choice(key, choice)
    return value is None and not override.is_delete()


def _check_choice(group: str, choice: Any) -> None:
    if choice is None and group not in _MAY_BE_NULL:
        raise UsageError(f"{group}=null: a run needs one. Leave it out for the default, or see --help.")
    if isinstance(choice, list):
        raise UsageError(
            f"{group} takes one choice, not a list. To run each of several add -m and "
            f"write {group}=a,b without brackets."
        )
    if isinstance(choice, (bool, int, float)):
        raise UsageError(
            f"{group}={choice}: {group} is a group, and takes the name of a choice (see --help) or {group}.key=value."
        )
