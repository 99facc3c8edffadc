"""A point on the disk: written and read back, and what its files say of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from metalearn.errors import UsageError
from metalearn.sweeps import Outcome, Point, Trial, read_outcome, read_point
from tests.sweeps.finished import write_results

TRIAL = Trial(identifier=3, metric="loss", last_step=8, settings={"seed": 1})


@pytest.mark.parametrize("trial", [None, TRIAL])
def test_a_point_is_read_as_it_was_written(point: Point, trial: Trial | None) -> None:
    whole = replace(point, trial=trial, workers=2)
    whole.write()
    assert read_point(point.folder) == whole


@pytest.mark.parametrize("content", ["", "[]", "{", '{"number": 1}', '{"foo": 1}'])
def test_what_is_no_point_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "point.json").write_text(content)
    assert read_point(tmp_path) is None
    assert read_point(tmp_path / "nowhere") is None


def test_a_label_says_what_was_swept(point: Point) -> None:
    assert point.label == "point 0 (inner.lr=0.1 seed=2)"
    assert replace(point, values={}).label == "point 0"


def test_the_outcome_of_a_folder(point: Point) -> None:
    assert read_outcome(point.folder).status == "missing"
    failed = Outcome(status="failed", message="no data", seconds=0.5)
    failed.write(point.folder)
    assert read_outcome(point.folder) == failed
    write_results(point.folder, val=0.5, test=0.4)
    found = read_outcome(point.folder)
    assert (found.status, found.val["accuracy"]["mean"], found.test["accuracy"]["mean"]) == ("finished", 0.5, 0.4)
    assert found.seconds == 1.5


def test_a_checkpoint_without_results_is_an_interrupted_point(point: Point) -> None:
    state = point.folder / "checkpoints" / "last" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    assert read_outcome(point.folder).status == "interrupted"


def test_results_that_are_none_are_a_failure(point: Point) -> None:
    (point.folder / "results.json").write_text(json.dumps({"test": 3}))
    assert read_outcome(point.folder).status == "failed"


def test_a_folder_that_can_not_be_written_is_told(point: Point) -> None:
    (point.folder / "file").write_text("")
    with pytest.raises(UsageError, match=r"hydra\.sweep\.dir"):
        replace(point, folder=point.folder / "file").write()
