"""Progress of work that takes seconds to minutes: a bar on a terminal, a line each quarter in a log file."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], text: str, *, total: int, unit: str) -> Iterator[Item]:
    """`items` one by one, with what is done of `total` shown on standard error.

    Args:
        items: what is worked on; each counts as one `unit`.
        text: what is done, `"Decoding Omniglot"`.
        total: how many items there are.
        unit: what an item is, in the plural.
    """
    if sys.stderr.isatty():
        yield from _bar(items, text, total=total, unit=unit)
        return
    step = max(1, total // 4)
    for done, item in enumerate(items):
        if done % step == 0:
            print(f"{text}: {done:,} of {total:,} {unit}", file=sys.stderr)
        yield item


def _bar(items: Iterable[Item], text: str, *, total: int, unit: str) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units a second over the last seconds."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "", style="progress.data.speed")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items, total=total, description=text)
