"""How far a run is, how fast and how long it still takes: a live bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

_FIRST_LINE_AFTER = 2.0
_LONGEST_SILENCE = 60.0


class Phase(Protocol):
    """A part of a run with a known length."""

    def advance(self, count: int = 1, metrics: Mapping[str, float] | None = None) -> None:
        """`count` more are done; `metrics` are shown beside from now on."""


class Progress(Protocol):
    """Where a run reports to."""

    def phase(self, name: str, total: int, *, done: int = 0, unit: str = "steps") -> AbstractContextManager[Phase]:
        """Opens a phase of `total` units of which `done` were done before."""

    def message(self, text: str) -> None:
        """Says something that stays on the screen."""


def progress_for(stream: TextIO | None = None) -> Progress:
    """A live bar if `stream` (standard output) is a terminal, else plain lines."""
    stream = stream or sys.stdout
    return LiveProgress(stream) if stream.isatty() else LineProgress(stream)


class SilentProgress:
    """Reports nothing."""

    @contextmanager
    def phase(self, name: str, total: int, *, done: int = 0, unit: str = "steps") -> Iterator[Phase]:
        """Opens a phase that nobody hears of."""
        yield _SilentPhase()

    def message(self, text: str) -> None:
        """Says nothing."""


class _SilentPhase:
    def advance(self, count: int = 1, metrics: Mapping[str, float] | None = None) -> None:
        pass


@dataclass
class LineProgress:
    """A line after two seconds, then at growing intervals up to a minute, and one at the end of each phase.

    Attributes:
        stream: where the lines go.
        clock: seconds, for tests.
    """

    stream: TextIO = field(default_factory=lambda: sys.stdout)
    clock: Callable[[], float] = time.monotonic

    @contextmanager
    def phase(self, name: str, total: int, *, done: int = 0, unit: str = "steps") -> Iterator[Phase]:
        """Opens a phase; its last line is written when it ends without an error."""
        current = _LinePhase(self, name, total, done, unit)
        yield current
        current.close()

    def message(self, text: str) -> None:
        """Writes a line."""
        print(text, file=self.stream, flush=True)


class _LinePhase:
    def __init__(self, progress: LineProgress, name: str, total: int, done: int, unit: str) -> None:
        self._progress, self._name, self._total, self._unit = progress, name, total, unit
        self._done = self._start = done
        self._began = progress.clock()
        self._wait = _FIRST_LINE_AFTER
        self._next = self._began + self._wait
        self._said = done
        self._metrics: dict[str, float] = {}

    def advance(self, count: int = 1, metrics: Mapping[str, float] | None = None) -> None:
        self._done += count
        self._metrics.update(metrics or {})
        now = self._progress.clock()
        if now < self._next:
            return
        self._say(now)
        self._wait = min(2 * self._wait, _LONGEST_SILENCE)
        self._next = now + self._wait

    def close(self) -> None:
        # A short phase inside a long one (a validation) that never spoke stays silent: its result is a message.
        if self._said != self._done and (self._said != self._start or self._unit == "steps"):
            self._say(self._progress.clock())

    def _say(self, now: float) -> None:
        self._said = self._done
        rate = (self._done - self._start) / max(now - self._began, 1e-9)
        percent = 100 * self._done / max(self._total, 1)
        line = f"{self._name} {self._done}/{self._total} ({percent:.0f}%)  {_rate(rate, self._unit)}"
        if self._done < self._total:
            line += f"  {duration((self._total - self._done) / rate) if rate > 0 else '?'} left"
        self._progress.message("  ".join([line, *shown(self._metrics)]))


class LiveProgress:
    """A bar that is redrawn in place, by rich."""

    def __init__(self, stream: TextIO) -> None:
        """Bars on `stream`."""
        from rich import progress
        from rich.console import Console

        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            progress.TextColumn("{task.fields[metrics]}"),
            console=Console(file=stream),
            transient=True,
        )
        self._open = 0

    @contextmanager
    def phase(self, name: str, total: int, *, done: int = 0, unit: str = "steps") -> Iterator[Phase]:
        """Opens a bar, below those that are open."""
        if self._open == 0:
            self._bars.start()
        self._open += 1
        bar = self._bars.add_task(name, total=total, completed=done, rate="", metrics="")
        try:
            yield _LivePhase(self._bars, bar, unit)
        finally:
            self._bars.remove_task(bar)
            self._open -= 1
            if self._open == 0:
                self._bars.stop()

    def message(self, text: str) -> None:
        """Prints above the bars."""
        self._bars.console.print(text, markup=False, highlight=False)


class _LivePhase:
    def __init__(self, bars: Any, bar: Any, unit: str) -> None:
        self._bars, self._bar, self._unit = bars, bar, unit
        self._metrics: dict[str, float] = {}

    def advance(self, count: int = 1, metrics: Mapping[str, float] | None = None) -> None:
        fields: dict[str, str] = {}
        if metrics:
            self._metrics.update(metrics)
            fields["metrics"] = "  ".join(shown(self._metrics))
        speed = next((task.speed for task in self._bars.tasks if task.id == self._bar), None)
        if speed:
            fields["rate"] = _rate(speed, self._unit)
        self._bars.update(self._bar, advance=count, **fields)


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(42.4), duration(167), duration(7505)
        ('42s', '2m47s', '2h05m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def shown(metrics: Mapping[str, float], prefix: str = "") -> list[str]:
    """Metrics for people, one string each: accuracies in percent, the rest in four digits."""
    return [
        f"{prefix}{name} {value:.1%}" if name == "accuracy" else f"{prefix}{name} {value:.4g}"
        for name, value in metrics.items()
    ]


def _rate(rate: float, unit: str) -> str:
    return f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s"
