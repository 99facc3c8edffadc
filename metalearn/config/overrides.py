"""What a command line asks for, read and checked before Hydra sees it."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from metalearn.errors import UsageError

_MAY_BE_NULL = {"experiment", "sweep"}
_FOLDERS = {"hydra.run.dir", "hydra.sweep.dir", "run"}
_FOLDER_ARGUMENTS = {"root", "cache_dir"}
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

    Raises:
        UsageError: `test_task=` without a name.

    Example:
        >>> opened(["test_task=omniglot", "test_task.shots=5", "task.shots=1"])
        ['++test_task.name=omniglot', '++test_task.shots=5', 'task.shots=1']
    """
    return [_opened(text) for text in overrides]


def quoted_path(text: str, keys: Collection[str]) -> str:
    r"""`support=My photos (1)` in quotes, as Hydra's grammar gives a meaning to much that paths consist of.

    Brackets and commas, but also 1.10, 1e3, 2024_01, true and null, and ${…}. What is in quotes already is Hydra's.

    Example:
        >>> print(quoted_path("query=it's, here", ["query"]), quoted_path("query=1.10", ["query"]))
        query='it\'s, here' query='1.10'
    """
    key, _, value = text.partition("=")
    if key.lstrip("+") not in keys or not value or _IN_QUOTES.fullmatch(value):
        return text
    return f"{key}={_in_quotes(value)}"


def texts_kept(overrides: Sequence[str]) -> list[str]:
    """`overrides` in which folders that look like numbers or truth values stay the texts that they are.

    Example:
        >>> texts_kept(["run=1.10", "task.root=2024_01", "seed=1"])
        ["run='1.10'", "task.root='2024_01'", 'seed=1']
    """
    return [_text_kept(each) for each in overrides]


def _text_kept(text: str) -> str:
    key, _, given = text.partition("=")
    name = key.lstrip("+")
    if name not in _FOLDERS and name.rpartition(".")[2] not in _FOLDER_ARGUMENTS:
        return text
    override = _read(text)
    if override.is_sweep_override() or not isinstance(override.value(), (bool, int, float)):
        return text
    return f"{key}={_in_quotes(given)}"


def repeated(argv: Sequence[str], key: str) -> tuple[list[list[str]], list[str]]:
    r"""What a command line gives for a key that it may give several times, each a list between commas; and the rest.

    A value is a plain text: only quotes mean something in it, around one that has commas of its own.

    Example:
        >>> repeated(["run=a,b", "seed=1", "run='my run, 2'"], "run")
        ([['a', 'b'], ['my run, 2']], ['seed=1'])
    """
    found, rest = [], []
    for text in argv:
        name, equals, value = text.partition("=")
        if equals and name.lstrip("+") == key:
            found.append([each for each in map(_unquoted, _BETWEEN_COMMAS.findall(value)) if each])
        else:
            rest.append(text)
    return found, rest


def _unquoted(text: str) -> str:
    text = text.strip()
    return re.sub(r"\\(['\"\\])", r"\1", text[1:-1]) if _IN_QUOTES.fullmatch(text) else text


_BETWEEN_COMMAS = re.compile(r"\s*(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^,]+)\s*")
_IN_QUOTES = re.compile("'([^'\\\\]|\\\\.)*'|" + '"([^"\\\\]|\\\\.)*"')


def _in_quotes(value: str) -> str:
    # Backslashes count only before what they escape: OmegaConf's ${, a quote, and the end.
    value = re.sub(r"(\\*)\$\{", lambda found: f"{2 * found[1]}\\${{", value)
    value = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
    return f"'{value}'"


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
    if name == _OPEN and "=" in text and not value.strip():
        raise UsageError(f"{_OPEN}= names no task: give one, such as {_OPEN}=omniglot, or leave it out.")
    if name == _OPEN and value[:1] not in "{[" and value != "null":
        return f"++{_OPEN}.name={value}"
    return f"++{name}={value}" if name.startswith(f"{_OPEN}.") else text


def unreadable(text: str) -> str:
    """What is said of an override that Hydra's grammar has no reading for: a value with signs in it needs quotes."""
    key, _, value = text.partition("=")
    quoted = f'{key}="{value}"'
    if key and value and '"' not in value and _parsed(quoted):
        return f"{text!r} can not be read as an override. Put quotes around its value too: '{quoted}' for a shell."
    return f"{text!r} can not be read as an override. Expected key=value, or +key=value for a new key."


def _read(text: str) -> Override:
    override = _parsed(text)
    if override is None or not override.key_or_group:
        raise UsageError(unreadable(text))
    return override


def _parsed(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


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
