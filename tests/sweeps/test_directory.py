"""The folder of a sweep: one process at a time, and who is asked to stop."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from metalearn.errors import UsageError
from metalearn.sweeps import Point, ask_to_stop, asked_to_stop, claimed, digest_of, known_points, stopping


def test_a_folder_is_for_one_sweep_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "sweep"):
        with pytest.raises(UsageError, match="the same sweep is running"), claimed(tmp_path / "sweep"):
            pass
        assert (tmp_path / "sweep" / ".lock").exists()
    assert list((tmp_path / "sweep").iterdir()) == []
    with claimed(tmp_path / "sweep"):
        pass


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"hydra\.sweep\.dir"), claimed(tmp_path / "file" / "sweep"):
        pass


def test_a_request_to_stop_does_not_outlive_its_sweep(tmp_path: Path) -> None:
    ask_to_stop(tmp_path)  # left by a process that was killed
    with claimed(tmp_path):
        assert not asked_to_stop(tmp_path)
        ask_to_stop(tmp_path)
        assert asked_to_stop(tmp_path)
    assert not asked_to_stop(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stopping(tmp_path):
        os.kill(os.getpid(), number)
        assert asked_to_stop(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_points_are_known_by_their_digests(point: Point, tmp_path: Path) -> None:
    nested = replace(point, folder=tmp_path / "a" / "b", digest="def", number=7)
    for each in (point, nested):
        each.write()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "point.json").write_text("{")
    assert known_points(tmp_path) == {"abc": point, "def": nested}
    assert known_points(tmp_path / "nowhere") == {}


def test_a_digest_follows_the_content_alone() -> None:
    assert digest_of({"a": 1, "b": {"c": [1, 2]}}) == digest_of({"b": {"c": [1, 2]}, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
