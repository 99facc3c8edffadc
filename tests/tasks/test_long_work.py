"""Progress on a terminal and in a log."""

import io
import sys
import time

import pytest

from metalearn.tasks.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("total", "told"), [(8, [0, 2, 4, 6]), (3, [0, 1, 2]), (1, [0]), (0, []), (1001, [0, 250, 500, 750, 1000])]
)
def test_a_line_each_quarter_in_a_log(total: int, told: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(total), "Decoding", total=total, unit="images")) == list(range(total))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"Decoding: {done:,} of {total:,} images" for done in told]


def test_a_bar_with_rate_and_time_left_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for _ in progress(iter(range(50)), "Decoding", total=50, unit="images"):
        time.sleep(0.01)  # a rate needs a moment
    shown = terminal.getvalue()
    assert "Decoding" in shown
    assert "50/50" in shown
    assert "images/s" in shown
    assert "0:00:00" in shown
