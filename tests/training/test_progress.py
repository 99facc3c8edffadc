import io
import itertools
import re

from metalearn.training import LineProgress, LiveProgress, progress_for
from metalearn.training.progress import duration, shown


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_at_growing_intervals_with_rate_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with LineProgress(stream, clock).phase("train", 1000) as phase:
        for _ in range(1000):
            clock.now += 0.5
            phase.advance(1, {"loss": 0.25})
    lines = stream.getvalue().splitlines()
    steps = [int(re.search(r"train (\d+)/1000", line)[1]) for line in lines]
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert steps[0] == 4  # after two seconds
    assert gaps[:5] == [8, 16, 32, 64, 120]
    assert max(gaps) == 120  # a line a minute
    assert steps[-1] == 1000
    assert "2 steps/s" in lines[0]
    assert "8m18s left" in lines[0]
    assert "loss 0.25" in lines[0]
    assert "left" not in lines[-1]


def test_rate_of_a_resumed_run_counts_what_it_did_itself() -> None:
    stream, clock = io.StringIO(), Clock()
    with LineProgress(stream, clock).phase("train", 1000, done=900) as phase:
        clock.now = 10.0
        phase.advance(50)
    assert "950/1000 (95%)  5 steps/s  10s left" in stream.getvalue()


def test_a_log_file_gets_lines_without_control_characters() -> None:
    stream = io.StringIO()
    progress = progress_for(stream)
    assert isinstance(progress, LineProgress)
    progress.message("step 10: validation")
    assert stream.getvalue() == "step 10: validation\n"


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = progress_for(stream)
    assert isinstance(progress, LiveProgress)
    with progress.phase("train", 10, done=2) as outer:
        outer.advance(1, {"loss": 0.5})
        with progress.phase("validation", 5, unit="episodes") as phase:
            phase.advance(5)
        progress.message("kept [line]")
        outer.advance(7)
    assert "kept [line]" in stream.getvalue()


def test_metrics_for_people() -> None:
    assert shown({"loss": 1.23456, "accuracy": 0.987}) == ["loss 1.235", "accuracy 98.7%"]
    assert [duration(value) for value in (0, 59.4, 60, 3599, 3600)] == ["0s", "59s", "1m00s", "59m59s", "1h00m"]
