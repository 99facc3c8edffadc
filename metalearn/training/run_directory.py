"""The folder of a run: where its files are, and whether a run may start or go on there."""

import itertools
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from metalearn.errors import UsageError

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
CURVES = "curves.png"
FIT = "fit.png"
LOCK = ".lock"


class Taken(UsageError):  # noqa: N818 - says what happened
    """The folder is, or was, another run's."""


_FREE_TO_CHANGE = ("logger", "run", "resume", "hydra", "meta.num_steps", "execution.profile")
"""Parts of a configuration that a resumed run may have others of: they change no number, or let it go on for longer."""


def run_status(run_directory: str | os.PathLike[str]) -> Literal["empty", "interrupted", "finished"]:
    """Whether a folder holds no run, one that can go on, or one that reached its results."""
    folder = Path(run_directory)
    if (folder / RESULTS).exists():
        return "finished"
    started = (folder / CHECKPOINTS / "last" / "state.json").exists()
    return "interrupted" if started else "empty"


def run_argument(folder: Path) -> str:
    """`run=…` for a folder, as a shell in the current one passes it to the command lines.

    Example:
        >>> run_argument(Path("outputs/glyphs/1"))
        'run=outputs/glyphs/1'
    """
    shown = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
    # Hydra's grammar wants quotes around whatever is not a plain word, and the shell quotes around these.
    quoted = shown if re.fullmatch(r"[\w./:-]+", shown) else "'" + shown.replace("'", "\\'") + "'"
    return shlex.quote(f"run={quoted}")


@contextmanager
def claimed(folder: Path, *, resume: bool) -> Iterator[Path]:
    """Keeps a folder for one run while the block lasts, once `prepare` has let it in; blocks of one thread may nest.

    Raises:
        UsageError: another process has it, or what `prepare` refuses.
    """
    if resume and not folder.exists():
        prepare(folder, resume=resume)
    check_writable(folder)
    # One object for each path, so that the command line and `train` can both claim it.
    lock = FileLock(folder.resolve() / LOCK, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        other = "" if resume else ", or choose another hydra.run.dir"
        raise Taken(f"{folder} is in use by another run. Wait for its end{other}.") from None
    try:
        prepare(folder, resume=resume)
        yield folder
    finally:
        if lock.lock_counter == 1:
            # Before the release: whoever opened the file in between holds the lock of no name, and is told so.
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def claimed_beside(folder: Path) -> Iterator[Path]:
    """Keeps `folder`, or the first of folder-2, folder-3 … that is free, for a new run; gives the one that it is.

    For a folder named by the second: two runs that start in the same one are to have one each.

    Raises:
        UsageError: it can not be written.
    """
    with ExitStack() as stack:
        for number in itertools.count(1):
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            try:
                free = stack.enter_context(claimed(candidate, resume=False))
            except Taken:
                continue
            break
        yield free


def prepare(folder: Path, *, resume: bool) -> None:
    """Makes the folder and checks that a run may start, or go on, in it.

    Raises:
        UsageError: it can not be written, holds another run, or holds none to go on with.
    """
    status = run_status(folder)
    if status == "finished":
        fix = (
            "Only a run that was interrupted can be gone on with, or be given more meta steps"
            if resume
            else "Choose another hydra.run.dir for a new one"
        )
        raise Taken(
            f"{folder} already holds a finished run ({RESULTS}). {fix}; "
            f"to measure this one again: python -m metalearn.evaluate {run_argument(folder)}"
        )
    if resume and status == "empty":
        raise UsageError(f"{folder} holds no checkpoint to go on from ({CHECKPOINTS}/last). Start it without run=….")
    if not resume and status == "interrupted":
        raise Taken(
            f"{folder} already holds an unfinished run. Go on with it "
            f"(python -m metalearn.train {run_argument(folder)}), or choose another hydra.run.dir."
        )
    if not resume and (folder / METRICS).exists() and (folder / METRICS).stat().st_size:
        raise Taken(f"{folder} already has a {METRICS}, of no run that can go on. Choose another hydra.run.dir.")
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Makes `folder` and writes an empty file there and back, so that a run does not fail after its first hour."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"the run directory {folder} can not be written ({error.strerror or error}). Choose another with "
            "hydra.run.dir=…."
        ) from None


def compare_configs(then: Mapping[str, Any], now: Mapping[str, Any], *, folder: Path) -> None:
    """Refuses to go on with a configuration that would change the numbers of the run in `folder`."""
    before, after = flat(then), flat(_as_json(now))
    names = sorted(name for name in before.keys() | after.keys() if not _is_free(name))
    absent = "nothing"
    changed = [name for name in names if before.get(name, absent) != after.get(name, absent)]
    if not changed:
        return
    shown = ", ".join(
        f"{name}: {before.get(name, absent)!r} then, {after.get(name, absent)!r} now" for name in changed[:3]
    )
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise UsageError(
        f"the run in {folder} was started with another configuration ({shown}{more}). Resume it without overrides, "
        "or start a new run."
    )


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in _FREE_TO_CHANGE)


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    # What was stored went through JSON (tuples became lists, keys strings): compare like with like.
    plain: dict[str, Any] = json.loads(json.dumps(dict(config)))
    return plain


def flat(nest: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nest of mappings as one, with dotted keys.

    Example:
        >>> flat({"inner": {"lr": 0.1, "options": {}}, "seed": 0})
        {'inner.lr': 0.1, 'inner.options': {}, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for name, value in nest.items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found
