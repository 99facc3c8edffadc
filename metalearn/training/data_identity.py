"""data.json: which classes, groups and counts each split had, so that a run is never tested on what it was trained on.

A split by a seed depends on all the names there are: two folders more, and classes that a run was trained on are test
classes. So the names are kept with the run, and are compared when it goes on and when it is measured on its own task.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError
from metalearn.files import write_atomically
from metalearn.training.experiment import Experiment
from metalearn.training.guard import blamed

DATA = "data.json"
_FORMAT = "metalearn-data"
_VERSION = 1
_MOST_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """What tells a source's data from others; pictures added to a class change nothing here.

    Attributes:
        names: of the classes, or of a table's groups, by split; of a mixture as `component/name`. Empty for a source
            that names none.
        counts: for a source without names, how many classes or groups each split has, where its protocol says so.
    """

    names: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, int]

    @classmethod
    def of(cls, source: Any) -> "DataIdentity":
        """That of a task source; nothing at all where the source says nothing."""
        names = {split: tuple(map(str, listed)) for split, listed in _names(source).items()}
        return cls(names=names, counts={} if names else _counts(source))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "DataIdentity":
        """From what `to_dict` gave."""
        names = {str(split): tuple(map(str, listed)) for split, listed in data["names"].items()}
        return cls(names=names, counts={str(split): int(count) for split, count in data["counts"].items()})

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"names": {split: list(listed) for split, listed in self.names.items()}, "counts": dict(self.counts)}

    def differences(self, now: "DataIdentity") -> list[str]:
        """How `now` differs from this one, in words, the worst first; empty for the same."""
        if bool(self.names) != bool(now.names):
            return [] if not (self.names or self.counts) else ["the classes have names in one of them alone"]
        if not self.names:
            return _changed_counts(self.counts, now.counts)
        here = {name: split for split, listed in now.names.items() for name in listed}
        there = {name: split for split, listed in self.names.items() for name in listed}
        moved = [
            f"{name!r} of {split!r} is now in {here[name]!r}"
            for name, split in there.items()
            if here.get(name, split) != split
        ]
        gone = [f"{name!r} of {split!r} is gone" for name, split in there.items() if name not in here]
        added = [f"{name!r} of {split!r} is new" for name, split in here.items() if name not in there]
        sizes = _changed_counts(*({split: len(x) for split, x in each.names.items()} for each in (self, now)))
        return [*sizes, *moved, *gone, *added]


def write_data(experiment: Experiment, folder: Path) -> None:
    """Writes data.json of a run's training task, and of its test's where that is another one.

    Raises:
        UsageError: the folder can not be written.
    """
    parts = {"task": experiment.source, "test_task": experiment.test_source}
    found = {name: None if source is None else DataIdentity.of(source).to_dict() for name, source in parts.items()}
    content = {"format": _FORMAT, "version": _VERSION, **found}
    try:
        text = json.dumps(content, indent=1, ensure_ascii=True)
        write_atomically(folder / DATA, (text + "\n").encode())
    except OSError as error:
        raise UsageError(f"{folder / DATA} can not be written ({error.strerror or error}).") from None


def check_data(experiment: Experiment, folder: Path, *, test_task: bool = True) -> bool:
    """Refuses an experiment whose data are not those that the run in `folder` was trained on.

    Args:
        experiment: what is about to go on, or to be measured.
        folder: the run directory.
        test_task: whether to compare the data of the run's own test task too.

    Returns:
        Whether there was anything to compare with: runs of older versions have no data.json.

    Raises:
        UsageError: a split has other classes or groups than it had then, or the file can not be read.
    """
    path = folder / DATA
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != _FORMAT or data["version"] != _VERSION:
            raise ValueError(f"expected {_FORMAT} {_VERSION}, got {data['format']} {data['version']}")
        then = {name: DataIdentity.from_dict(data[name]) for name in ("task", "test_task") if data[name] is not None}
    except FileNotFoundError:
        return False
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} can not be read ({type(error).__name__}: {' '.join(str(error).split())}). It says which classes"
            " the run was trained on; where you know that they are the same, remove it."
        ) from None
    _compare("trained on", then.get("task"), experiment.source)
    if test_task:
        _compare("to be tested on", then.get("test_task"), experiment.test_source)
    return True


def _compare(what: str, then: DataIdentity | None, source: Any) -> None:
    found = [] if then is None or source is None else then.differences(DataIdentity.of(source))
    if found:
        more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
        raise UsageError(
            f"the data are not those that this run was {what} ({', '.join(islice(found, _MOST_SHOWN))}{more}); a split"
            " by a seed depends on all names there are. Put the data back as they were, or list the classes of each"
            " split for a new run (task.splits)."
        )


def _names(source: Any) -> dict[str, list[str]]:
    parts = getattr(source, "components", None)
    if isinstance(parts, Mapping):
        found: dict[str, list[str]] = {}
        for name, part in parts.items():
            for split, listed in _names(part).items():
                found.setdefault(str(split), []).extend(f"{name}/{each}" for each in listed)
        return found
    for attribute in ("class_names", "group_names"):
        names = getattr(source, attribute, None)
        if isinstance(names, Mapping) and names:
            return {str(split): [str(each) for each in listed] for split, listed in names.items()}
    return {}


def _counts(source: Any) -> dict[str, int]:
    if not hasattr(source, "protocol"):
        return {}
    with blamed(f"{type(source).__name__}.protocol()", plugin=source):
        card = source.protocol()
    for key in ("classes", "groups"):
        counts = card.get(key) if isinstance(card, Mapping) else None
        if isinstance(counts, Mapping) and all(isinstance(each, int) for each in counts.values()):
            return {str(split): count for split, count in counts.items()}
    return {}


def _changed_counts(then: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    changed = [
        f"{split}: {then.get(split, 0)} -> {now.get(split, 0)} classes"
        for split in dict.fromkeys([*then, *now])
        if then.get(split, 0) != now.get(split, 0)
    ]
    return [", ".join(changed)] if changed else []
