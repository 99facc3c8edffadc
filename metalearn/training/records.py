"""metrics.jsonl: one JSON object a logged step, and nothing in it that differs between two runs of one command."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from metalearn.errors import UsageError
from metalearn.training.results import finite_or_none


class Records:
    """The file of records, open for appending.

    A checkpoint stores `count`; a resumed run cuts the file to that many lines and so ends with the file of a run that
    was never interrupted.
    """

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        """Opens `path` with its first `keep` lines kept.

        Raises:
            UsageError: the file is not writable, has fewer lines than that, or one that is no record.
        """
        self.path = path
        self.count = keep
        try:
            kept = _first_lines(path, keep)
            self._file: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(len(kept))
            self._file.seek(0, 2)
        except OSError as error:
            raise UsageError(f"{path} can not be written ({error.strerror or error}).") from None

    def log(self, step: int, metrics: Mapping[str, float], *, split: str) -> None:
        """Appends `{"step", "split", **metrics}`; a value that is no number becomes null."""
        record = {"step": step, "split": split} | {name: finite_or_none(value) for name, value in metrics.items()}
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()
        self.count += 1

    def sync(self) -> None:
        """Forces what was logged to the disk, so that no checkpoint counts records that a power cut may take."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """All the records of a file; empty if there is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _first_lines(path: Path, count: int) -> bytes:
    if count == 0:
        return b""
    whole = (
        [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if path.exists() else []
    )
    if len(whole) < count:
        raise UsageError(
            f"{path} has {len(whole)} records, the checkpoint was written after {count}: something else changed it. "
            "Put it back, or start a new run."
        )
    for number, line in enumerate(whole[:count], start=1):
        if not _is_record(line):
            raise UsageError(
                f"{path} is damaged: line {number} is no record of a run. Put the file back, or start a new run."
            )
    return b"".join(whole[:count])


def _is_record(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(found, dict)
        and isinstance(found.pop("step", None), int)
        and isinstance(found.pop("split", None), str)
        and all(value is None or isinstance(value, (int, float)) for value in found.values())
    )
