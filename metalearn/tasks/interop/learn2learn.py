"""learn2learn's Tasksets as task sources, and its benchmark sets by name."""

import importlib
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metalearn.errors import UsageError, did_you_mean
from metalearn.tasks.base import check_count
from metalearn.tasks.interop.taskset_source import TasksetSource
from metalearn.tasks.seeded import seeded
from metalearn.torchvision_import import torchvision_module

_SPLIT_NAMES = {"validation": "val"}  # what learn2learn calls the split that is `val` here
_BENCHMARK_OPTIONS = {"mini-imagenet": {"data_augmentation": "normalize"}}  # its inputs would be 0 … 255
_DATA_ERRORS = (OSError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError)


def from_taskset(taskset: Any, *, shots: int, query_shots: int | None = None, name: str | None = None) -> TasksetSource:
    """A task source out of learn2learn's Tasksets.

    Args:
        taskset: a `learn2learn.data.Taskset` (its tasks are the split `train`), a mapping of split names to them, or
            what `learn2learn.vision.benchmarks.get_tasksets` returns.
        shots: support examples a class.
        query_shots: query examples a class; by default all the others of a task.
        name: of the data set, for the protocol card.

    Returns:
        A source whose episodes are a function of (split, index, seed), whatever was drawn from the taskset before.

    Raises:
        UsageError: for anything else, and for tasks whose classes are of unequal size or too small.

    Example:
        `from_taskset(learn2learn.vision.benchmarks.get_tasksets("omniglot", train_samples=6, …), shots=1)`
    """
    if hasattr(taskset, "_asdict"):
        taskset = taskset._asdict()
    by_split = dict(taskset) if isinstance(taskset, Mapping) else {"train": taskset}
    renamed = {_SPLIT_NAMES.get(str(split), str(split)): each for split, each in by_split.items()}
    return TasksetSource(renamed, shots=shots, query_shots=query_shots, name=name or "taskset")


class Learn2Learn(TasksetSource):
    """A benchmark set of learn2learn by its name, with the splits and task transforms that it has there.

    Its omniglot shuffles the characters into splits anew at every start; here a seed does. All classes of an episode of
    it are turned by one angle, which is what its code does (0.2.0), not what its documentation says.

    Reference:
        Arnold et al. 2020, "learn2learn: A Library for Meta-Learning Research", arXiv:2008.12284.
    """

    def __init__(
        self,
        *,
        name: str = "omniglot",
        root: str | Path | None = None,
        ways: int = 5,
        shots: int = 1,
        query_shots: int = 5,
        split_seed: int = 0,
    ) -> None:
        """Loads the data set, which learn2learn downloads where it is not in `root`.

        Args:
            name: one of `learn2learn.vision.benchmarks.list_tasksets()`: omniglot, mini-imagenet, cifarfs, fc100 …
            root: the folder where learn2learn keeps its data; None is `$METALEARN_DATA/learn2learn` where there is one,
                and `~/data`, learn2learn's own default, elsewhere.
            ways: classes in an episode.
            shots: support examples a class.
            query_shots: query examples a class.
            split_seed: what a benchmark that draws its splits at random draws them by.

        Raises:
            UsageError: learn2learn is not installed, has no set of this name, or can not load it.
        """
        benchmarks = learn2learn_module("vision.benchmarks")
        if name not in benchmarks.list_tasksets():
            raise UsageError(f"learn2learn has no tasksets {name!r}. {did_you_mean(name, benchmarks.list_tasksets())}")
        check_count("ways", ways, minimum=2)
        samples = check_count("shots", shots) + check_count("query_shots", query_shots)
        folder = _root(root)
        with seeded(split_seed), _told(name, folder):
            folder.mkdir(parents=True, exist_ok=True)
            tasksets = benchmarks.get_tasksets(
                name,
                train_ways=ways,
                train_samples=samples,
                test_ways=ways,
                test_samples=samples,
                root=str(folder),
                **_BENCHMARK_OPTIONS.get(name, {}),
            )
        super().__init__(
            {"train": tasksets.train, "val": tasksets.validation, "test": tasksets.test},
            shots=shots,
            query_shots=query_shots,
            name=name,
        )
        self._details = {"split_seed": split_seed} if name == "omniglot" else {}


def learn2learn_module(name: str) -> Any:
    """The module `learn2learn.<name>`.

    Raises:
        UsageError: it is not installed.
    """
    torchvision_module("datasets")  # learn2learn imports torchvision, which needs help beside some builds of torch
    try:
        return importlib.import_module(f"learn2learn.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "learn2learn":
            raise UsageError(
                f"learn2learn can not be imported: {error}. Install what it needs with"
                ' `pip install "metalearn-torch[learn2learn]"`.'
            ) from error
    raise UsageError(
        "learn2learn is not installed, and pip can not build its sdist on Python 3.11 and later. From a checkout of"
        " metalearn, run `bash scripts/install_learn2learn.sh`.\nBy hand: install metalearn-torch[learn2learn], cython,"
        " setuptools; in its unpacked sdist `python setup.py build_ext bdist_wheel`; `pip install --no-deps dist/*`."
    )


def _root(root: str | Path | None) -> Path:
    if root is not None:
        return Path(root).expanduser()
    data = os.environ.get("METALEARN_DATA")
    own = Path(data).expanduser() / "learn2learn" if data else None
    return own if own is not None and own.is_dir() else Path("~/data").expanduser()


@contextmanager
def _told(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except _DATA_ERRORS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"learn2learn could not load or download {name!r} in {folder} ({reason[:300]}).\nPut its files there, or"
            " set task.root to the folder that has them; `task=cifar_fs` and `task=omniglot` read plain images instead."
        ) from error
