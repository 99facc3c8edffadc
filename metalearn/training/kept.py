"""What a run decided once, in a file of its folder: written whole, read back on resuming."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from metalearn.errors import UsageError
from metalearn.files import write_atomically

Read = TypeVar("Read")


def write_kept(path: Path, record: dict[str, Any]) -> None:
    """Writes a record as JSON; a reader, or a crash, meets a whole file."""
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def read_kept(path: Path, parse: Callable[[dict[str, Any]], Read], *, holds: str, fix: str) -> Read:
    """What `parse` makes of a record.

    Args:
        path: of the file.
        parse: may raise KeyError, TypeError or ValueError for what is none of ours.
        holds: what is in the file, in words.
        fix: what the user can do where it can not be read.

    Raises:
        UsageError: it can not be read.
    """
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} can not be read ({error}): it holds {holds}. {fix}") from None
