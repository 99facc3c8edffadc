"""The file of a study: Optuna's journal, under locks that a killed process does not leave behind."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metalearn.errors import UsageError

JOURNAL = "study.journal"
WHERE = "hydra.sweep.dir for a new study"
_LOCK = "study.lock"
_LOCK_SECONDS = 5.0
_WAIT = "Wait for its end, or choose another hydra.sweep.dir."


def storage(directory: Path) -> Any:
    """The study's storage, in the folder of its sweep.

    Raises:
        UsageError: another program has the file, or it can not be written.
    """
    path = directory / JOURNAL
    _refuse_locked(path)
    try:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        lock: Any = _Lock(directory / _LOCK)  # not of Optuna's class, which can not be named without importing it
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from None


class _Lock:
    """What Optuna asks of a lock. Its own are files, which a killed process leaves; the system takes this one back."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, FileLock(path, timeout=_LOCK_SECONDS)

    def acquire(self) -> bool:
        try:
            self._lock.acquire()
        except Timeout:
            raise UsageError(f"The study {self._path.parent / JOURNAL} is locked by another process. {_WAIT}") from None
        return True

    def release(self) -> None:
        self._lock.release()


def _refuse_locked(path: Path) -> None:
    """Refuses a file that another program (Optuna's dashboard, say) keeps locked in one of the usual ways."""
    foreign = Path(f"{path}.lock")
    deadline = time.monotonic() + _LOCK_SECONDS
    while os.path.lexists(foreign) or _is_locked(path):
        if time.monotonic() > deadline:
            more = f" (or delete {foreign}, if nothing uses it)" if os.path.lexists(foreign) else ""
            raise UsageError(f"The study {path} is locked by another program. Close it{more}. {_WAIT}")
        time.sleep(0.05)


def _is_locked(path: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: a file that another program keeps can not be opened, which is told as such
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def mend(path: Path) -> None:
    """Cuts off the half line that a killed process may have left; Optuna can not read on behind one.

    Raises:
        UsageError: the file can not be read or written, or is damaged elsewhere.
    """
    if not path.exists():
        return
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            json.loads(line)
        if len(whole) != len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from None
    except ValueError:
        raise _unusable(path, "it is damaged") from None


@contextmanager
def told_shortly(directory: Path) -> Iterator[None]:
    """What Optuna raises about a study's file, as a `UsageError`."""
    try:
        yield
    except UsageError:
        raise
    except OSError as error:
        raise _unusable(directory / JOURNAL, error.strerror or str(error)) from None
    except (ValueError, KeyError) as error:
        raise _unusable(directory / JOURNAL, " ".join(str(error).split())) from None


def _unusable(path: Path, reason: str) -> UsageError:
    return UsageError(f"The study {path} can not be used: {reason}. Choose another {WHERE}.")
