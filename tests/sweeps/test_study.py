"""A study: it goes on where it stopped, proposes what an uninterrupted one would, prunes, and tells what is wrong."""

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from metalearn.errors import UsageError
from metalearn.sweeps import Choices, Interval, Outcome, Settings, Study
from metalearn.sweeps.study import Proposal, reporter
from metalearn.training import Stopped
from tests.sweeps.finished import measured

SPACE = {"inner.lr": Interval(0.01, 1.0, log=True), "inner.num_steps": Interval(1, 5), "algorithm": Choices(("a", "b"))}
SETTINGS = Settings(num_startup_trials=2)


def opened(folder: Path, **changes: Any) -> Study:
    return Study(folder, **({"space": SPACE, "settings": SETTINGS, "metric": "accuracy"} | changes))


def finished(value: float) -> Outcome:
    return Outcome(status="finished", val={"accuracy": measured(value), "loss": measured(value)})


def score(proposal: Proposal) -> float:
    return float(proposal.values["inner.lr"]) + 0.1 * int(proposal.values["inner.num_steps"])


def run(study: Study, count: int) -> list[dict[str, Any]]:
    proposals = []
    for _ in range(count):
        proposal = study.ask()
        study.tell(proposal, finished(score(proposal)))
        proposals.append(dict(proposal.values))
    return proposals


def test_proposals_lie_in_the_space(tmp_path: Path) -> None:
    for values in run(opened(tmp_path), 8):
        assert 0.01 <= values["inner.lr"] <= 1
        assert values["inner.num_steps"] in range(1, 6)
        assert values["algorithm"] in ("a", "b")


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_resumed_study_proposes_what_an_uninterrupted_one_does(tmp_path: Path, sampler: str) -> None:
    settings = Settings(num_startup_trials=2, sampler=sampler)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = run(opened(tmp_path / "whole", settings=settings), 7)
    parts = run(opened(tmp_path / "parts", settings=settings), 3) + run(
        opened(tmp_path / "parts", settings=settings), 4
    )
    assert parts == whole
    assert len({repr(values) for values in whole}) == 7
    assert opened(tmp_path / "parts", settings=settings).num_done == 7


def test_another_seed_searches_elsewhere(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = run(opened(tmp_path / "one"), 3)
    assert one != run(opened(tmp_path / "two", settings=Settings(seed=1)), 3)


def test_an_interrupted_trial_is_the_next_one(tmp_path: Path) -> None:
    study = opened(tmp_path)
    run(study, 1)
    interrupted, killed = study.ask(), study.ask()
    study.tell(interrupted, Outcome(status="interrupted"))
    again = opened(tmp_path)
    assert again.num_done == 1
    assert [again.ask(), again.ask()] == [interrupted, killed]
    assert again.ask().identifier not in (interrupted.identifier, killed.identifier)


def test_a_failed_trial_is_tried_again_once_a_run(tmp_path: Path) -> None:
    study = opened(tmp_path)
    failed = study.ask()
    study.tell(failed, Outcome(status="failed", message="no data"))
    run(study, 1)
    for _ in range(2):  # it fails again, and is tried again by the next command
        study = opened(tmp_path)
        retried = study.ask()
        assert retried.values == failed.values
        study.tell(retried, Outcome(status="failed", message="still no data"))
        assert run(study, 1) != [failed.values]
    assert [each.values for each in study.past()].count(failed.values) == 1


def test_a_validation_that_is_no_number_fails_its_trial(tmp_path: Path) -> None:
    study = opened(tmp_path)
    study.tell(study.ask(), Outcome(status="finished", val={"accuracy": measured(None)}))
    assert opened(tmp_path).num_done == 0


@pytest.mark.parametrize(("metric", "values"), [("accuracy", (0.9, 0.8, 0.1)), ("loss", (0.1, 0.2, 0.9))])
def test_a_hopeless_trial_is_pruned(tmp_path: Path, metric: str, values: Sequence[float]) -> None:
    study = opened(tmp_path, metric=metric)

    def reported(value: float, last_step: int = 20) -> Proposal:
        proposal = study.ask()
        trial = study.trial(proposal)
        report = reporter(tmp_path, type(trial)(**(vars(trial) | {"last_step": last_step})))
        report(10, {metric: value})
        return proposal

    for value in values[:2]:
        study.tell(reported(value), finished(value))
    with pytest.raises(Stopped, match="10"):
        reported(values[2])
    reported(values[0])  # a good one goes on
    reported(values[2], last_step=10)  # and at the last validation nothing is gained by giving up


def test_pruned_trials_count_as_done(tmp_path: Path) -> None:
    study = opened(tmp_path)
    study.tell(study.ask(), Outcome(status="pruned"))
    assert opened(tmp_path).num_done == 1


def test_a_resumed_point_may_report_a_step_twice(tmp_path: Path) -> None:
    study = opened(tmp_path)
    trial = study.trial(study.ask())
    for _ in range(2):
        reporter(tmp_path, trial)(10, {"accuracy": 0.5})


def test_a_half_line_of_a_killed_process_is_cut_off(tmp_path: Path) -> None:
    run(opened(tmp_path), 2)
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    assert opened(tmp_path).num_done == 2
    run(opened(tmp_path), 1)
    assert opened(tmp_path).num_done == 3


def told(folder: Path, **changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        opened(folder, **changes)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalearn.sweeps.study_file._LOCK_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_locked_study_is_told(tmp_path: Path) -> None:
    run(opened(tmp_path), 1)
    with FileLock(tmp_path / "study.lock"):
        assert "locked by another process" in told(tmp_path)
    with (tmp_path / "study.journal").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "locked by another program" in told(tmp_path)
    (tmp_path / "study.journal.lock").symlink_to("study.journal")  # Optuna's own, of its dashboard say
    assert f"delete {tmp_path / 'study.journal.lock'}" in told(tmp_path)
    (tmp_path / "study.journal.lock").unlink()
    assert opened(tmp_path).num_done == 1


def test_a_damaged_study_is_told(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text("foreign\nlines\n")
    assert "damaged" in told(tmp_path)
    assert (tmp_path / "study.journal").read_text() == "foreign\nlines\n"


def test_a_study_of_something_else_is_told(tmp_path: Path) -> None:
    run(opened(tmp_path), 1)
    assert "another metric" in told(tmp_path, metric="loss")
    assert "inner.num_steps" in told(tmp_path, space=SPACE | {"inner.num_steps": Choices((1, 2))})
    assert "meta.lr" in told(tmp_path, space=SPACE | {"meta.lr": Interval(0.1, 1.0)})
    wider = SPACE | {"inner.lr": Interval(0.001, 2.0, log=True)}
    assert opened(tmp_path, space=wider).num_done == 1  # an interval may grow


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sampler": "tpee"}, "Did you mean 'tpe'"),
        ({"pruner": "mean"}, "hydra.sweeper.pruner=mean"),
        ({"seed": -1}, "hydra.sweeper.seed=-1"),
        ({"num_startup_trials": -1}, "num_startup_trials"),
    ],
)
def test_settings_out_of_bounds_are_told(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        Settings(**settings)


def test_without_optuna_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert "metalearn-torch[sweep]" in told(tmp_path)
    assert list(tmp_path.iterdir()) == []
