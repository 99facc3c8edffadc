"""Running a point: whatever happens in it is an outcome, written and told, and never ends the sweep."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metalearn.errors import PluginError, UsageError
from metalearn.sweeps import Outcome, Point, PointRun, ask_to_stop, asked_to_stop, read_outcome, run_point
from metalearn.training import Interrupted, LineProgress, SilentProgress, Stopped
from tests.sweeps.finished import write_results


def raising(error: BaseException) -> Callable[[PointRun], None]:
    def action(run: PointRun) -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UsageError("no such data"), "failed", "no such data"),
        (PluginError("my_task raised", "its traceback"), "failed", "my_task raised"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero (traceback in "),
        (FileNotFoundError(2, "No such file", "data.zip"), "failed", "data.zip: No such file."),
        (SystemExit(3), "failed", "SystemExit: 3"),
        (Stopped(40), "pruned", "pruned at meta step 40"),
        (Interrupted(Path("run"), step=7), "interrupted", "saved at meta step 7"),
        (KeyboardInterrupt(), "interrupted", "stopped before it was saved"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_end_is_an_outcome(
    error: BaseException, status: str, message: str, point: Point, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_point(point, raising(error), directory=point.folder.parent)
    assert (outcome.status, outcome.message[: len(message)]) == (status, message)
    assert read_outcome(point.folder) == outcome
    assert asked_to_stop(point.folder.parent) == (status == "interrupted")
    said = capsys.readouterr()
    told = said.err if status == "failed" else said.out
    assert told.count("\n") == 1
    assert point.label in told
    kept = (point.folder / "error.txt").exists() and (point.folder / "error.txt").read_text()
    expected = {"ZeroDivisionError": "by zero", "PluginError": "its traceback"}.get(type(error).__name__)
    assert kept is False if expected is None and status != "failed" else not expected or expected in kept


def test_a_finished_point_is_told_with_its_numbers(point: Point, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_point(
        point, lambda run: write_results(point.folder, val=0.5, test=0.4), directory=point.folder.parent
    )
    assert outcome.status == "finished"
    said = capsys.readouterr().out
    assert "finished, validation accuracy 50.00% ± 1.00%, test accuracy 40.00% ± 1.00%" in said


def test_a_point_that_ended_early_keeps_its_best_validation(point: Point) -> None:
    records: list[dict[str, Any]] = [
        {"step": 1, "split": "val", "loss": 0.5},
        {"step": 2, "split": "val", "loss": 0.2},
        {"step": 3, "split": "val", "loss": 0.9},
        {"step": 3, "split": "train", "loss": 0.01},
    ]

    def stops_early(run: PointRun) -> None:
        (point.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        raise Stopped(3)

    outcome = run_point(point, stops_early, directory=point.folder.parent)
    assert outcome.val["loss"]["mean"] == 0.2


def test_no_point_begins_after_the_request_to_stop(point: Point) -> None:
    before = Outcome(status="failed", message="last time")
    before.write(point.folder)
    ask_to_stop(point.folder.parent)
    assert run_point(point, raising(AssertionError("began")), directory=point.folder.parent) == before


def test_an_interrupted_point_goes_on(point: Point) -> None:
    found: list[bool] = []
    run_point(point, lambda run: found.append(run.resume), directory=point.folder.parent)
    (point.folder / "checkpoints" / "last").mkdir(parents=True)
    (point.folder / "checkpoints" / "last" / "state.json").write_text("{}")
    run_point(point, lambda run: found.append(run.resume), directory=point.folder.parent)
    assert found == [False, True]


def test_in_a_process_of_its_own_the_request_to_stop_reaches_the_run(point: Point) -> None:
    import signal

    def action(run: PointRun) -> None:
        ask_to_stop(point.folder.parent)
        deadline = time.monotonic() + 20
        while not run.stop.requested:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    before = signal.getsignal(signal.SIGINT)
    try:
        assert run_point(replace(point, workers=2), action, directory=point.folder.parent).status == "missing"
    finally:
        signal.signal(signal.SIGINT, before)


def test_several_at_once_report_in_whole_lines_with_their_number(
    point: Point, capfd: pytest.CaptureFixture[str]
) -> None:
    import signal

    before = signal.getsignal(signal.SIGINT)
    try:
        run_point(
            replace(point, workers=2),
            lambda run: run.reports_to(LineProgress()).message("step 3\nstep 4"),
            directory=point.folder.parent,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "[0] step 3\n[0] step 4\n"


def test_silence_stays_silence(point: Point) -> None:
    silent = SilentProgress()
    run = PointRun(resume=False, stop=None, progress=LineProgress(), on_validation=None)  # type: ignore[arg-type]
    assert run.reports_to(silent) is silent
    assert run.reports_to(LineProgress()) is run.progress
