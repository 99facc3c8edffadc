"""Data that changed under a run: told on resuming and on measuring, by the classes that moved."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metalearn.errors import UsageError
from metalearn.tasks import Arrays, ClassificationSource, Mixture, Sinusoid, Table
from metalearn.tasks.classes import Classes
from metalearn.training.data_identity import DATA, DataIdentity, check_data, write_data
from tests.tasks.pictures import noise, tree_files, write_folder

NAMES = {"train": ("c00", "c01"), "val": ("c02",), "test": ("c03",)}


def named(names: dict[str, tuple[str, ...]], **more: Any) -> Any:
    return SimpleNamespace(source=SimpleNamespace(class_names=names), **{"test_source": None, **more})


CHANGES = [
    ({**NAMES, "train": ("c01",), "test": ("c03", "c00")}, "'c00' of 'train' is now in 'test'"),
    ({**NAMES, "train": ("c00", "c01", "c09")}, "train: 2 -> 3 classes, 'c09' of 'train' is new"),
    ({**NAMES, "val": ("other",)}, "'c02' of 'val' is gone, 'other' of 'val' is new"),
    ({split: NAMES[split] for split in ("train", "test")}, "val: 1 -> 0 classes"),
]


@pytest.mark.parametrize(("names", "message"), CHANGES)
def test_other_classes_are_refused(names: dict[str, tuple[str, ...]], message: str, tmp_path: Path) -> None:
    write_data(named(NAMES), tmp_path)
    assert check_data(named(NAMES), tmp_path)
    with pytest.raises(UsageError, match="not those that this run was trained on") as raised:
        check_data(named(names), tmp_path)
    assert message in str(raised.value)


def test_the_test_task_is_compared_unless_it_is_another(tmp_path: Path) -> None:
    write_data(named(NAMES, test_source=named(NAMES).source), tmp_path)
    other = named(NAMES, test_source=named({"test": ("c00",)}).source)
    with pytest.raises(UsageError, match="not those that this run was to be tested on"):
        check_data(other, tmp_path)
    assert check_data(other, tmp_path, test_task=False)


def test_an_old_run_has_nothing_to_compare(tmp_path: Path) -> None:
    assert not check_data(named(NAMES), tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "metalearn-data", "version": 9}'])
def test_a_damaged_file_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / DATA).write_text(content)
    with pytest.raises(UsageError, match=r"data.json can not be read"):
        check_data(named(NAMES), tmp_path)


def images(names: tuple[str, ...] = ()) -> dict[str, Classes]:
    return {
        split: Classes.of(torch.zeros(2, 3, 1, 4, 4, dtype=torch.uint8), tuple(f"{split}-{name}" for name in names))
        for split in ("train", "test")
    }


def test_what_each_kind_of_source_is_known_by() -> None:
    small: dict[str, Any] = {"ways": 2, "shots": 1, "query_shots": 1}
    bare = ClassificationSource(name="bare", classes=images(), **small)
    assert DataIdentity.of(bare) == DataIdentity(names={}, counts={"train": 2, "test": 2})
    full = ClassificationSource(name="full", classes=images(("a", "b")), **small)
    assert DataIdentity.of(full).names == {"train": ("train-a", "train-b"), "test": ("test-a", "test-b")}
    mixed = DataIdentity.of(Mixture({"one": (full, 1), "two": (bare, 1)}))
    assert mixed.names["test"] == ("one/test-a", "one/test-b")
    table = Table(torch.randn(40, 2).numpy(), torch.randn(40).numpy(), torch.arange(40).numpy() // 4)
    shops = Arrays(table, kind="regression", shots=1, query_shots=2)
    assert DataIdentity.of(shops).names == shops.group_names
    assert DataIdentity.of(Sinusoid()) == DataIdentity(names={}, counts={})


RUN = ("task.ways=2", "task.shots=1", "task.query_shots=2", "model.filters=2", "meta.batch_size=2", "eval.every=2")
QUIET = ("eval.val_episodes=2", "eval.num_episodes=2", "eval.baseline=false", "device=cpu", "logger=none")


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    counts = {f"c{number:02d}": 4 for number in range(12)}
    return write_folder(tmp_path / "animals", tree_files(counts, width=16, height=16))


def grow(root: Path) -> None:
    """Two classes more, before all others by name: the same seed shuffles them into other splits."""
    for name in ("a00", "a01"):
        write_folder(root, {f"{name}/{i}.png": noise(900 + i, width=16, height=16) for i in range(4)})


@pytest.mark.parametrize("how", ["evaluate", "resume"])
def test_a_folder_that_grew_is_told_on_the_command_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    from metalearn import evaluate, train

    folder = tmp_path / "run"
    task = ("task=image_folder", f"task.root={pictures}", "task.image_size=16", *RUN, "meta.num_steps=2", *QUIET)
    assert train.main([*task, f"hydra.run.dir={folder}"]) == 0
    stored = json.loads((folder / DATA).read_text())
    assert {split: len(names) for split, names in stored["task"]["names"].items()} == {"train": 8, "val": 2, "test": 2}
    if how == "resume":  # as if it had been interrupted after its last step
        (folder / "results.json").unlink()
    command: Callable[[], int] = lambda: (evaluate if how == "evaluate" else train).main([f"run={folder}"])  # noqa: E731
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    grow(pictures)
    capsys.readouterr()
    assert command() == 2
    told = capsys.readouterr().err
    assert "the data are not those that this run was trained on" in told
    assert "is now in" in told
    assert (folder / DATA).read_bytes() == (kept / DATA).read_bytes()
    for name in ("a00", "a01"):
        shutil.rmtree(pictures / name)
    assert command() == 0
