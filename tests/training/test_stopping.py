"""The two ways in which a caller ends a run: a word after a validation, and a flag that another thread sets."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from metalearn.training import Experiment, Interrupted, StopFlag, Stopped, run_status, train
from metalearn.training.records import read_records


def test_every_validation_is_told_with_its_means(tmp_path: Path, make_experiment: Callable[..., Experiment]) -> None:
    told: list[tuple[int, Mapping[str, float]]] = []
    train(make_experiment(), tmp_path, on_validation=lambda step, means: told.append((step, means)))
    logged = [record for record in read_records(tmp_path / "metrics.jsonl") if record["split"] == "val"]
    assert [(step, means["loss"]) for step, means in told] == [(record["step"], record["loss"]) for record in logged]
    assert [step for step, _ in told] == [2, 4, 6]


def stop_at(wanted: int) -> Callable[[int, Mapping[str, float]], None]:
    def on_validation(step: int, means: Mapping[str, float]) -> None:
        if step == wanted:
            raise Stopped(step)

    return on_validation


def test_a_stopped_run_is_saved_and_can_go_on(tmp_path: Path, make_experiment: Callable[..., Experiment]) -> None:
    with pytest.raises(Stopped) as caught:
        train(make_experiment(), tmp_path / "parts", on_validation=stop_at(4))
    assert caught.value.step == 4
    assert run_status(tmp_path / "parts") == "interrupted"
    parts = train(make_experiment(), tmp_path / "parts", resume=True)
    whole = train(make_experiment(), tmp_path / "whole")
    assert parts.data["test"] == whole.data["test"]
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_a_flag_stops_the_run_as_a_signal_does(tmp_path: Path, make_experiment: Callable[..., Experiment]) -> None:
    flag = StopFlag()

    def on_validation(step: int, means: Mapping[str, float]) -> None:
        flag.requested = step == 2

    with pytest.raises(Interrupted, match="after meta step 2"):
        train(make_experiment(), tmp_path, on_validation=on_validation, stop=flag)
    assert run_status(tmp_path) == "interrupted"
