"""sweep.csv and sweep.json, and the table on the terminal."""

import csv
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from metalearn.errors import UsageError
from metalearn.files import write_atomically
from metalearn.sweeps.points import shown
from metalearn.sweeps.summary import SPLITS, Row, Summary
from metalearn.training.results import describe

CSV = "sweep.csv"
JSON = "sweep.json"
_WIDTH = 140
_HEADINGS = {"val": "validation", "test": "test"}


def write_csv(summary: Summary, directory: Path) -> None:
    """Writes sweep.csv: a line a point, with every metric's mean and the half-width of its 95% interval.

    Raises:
        UsageError: it can not be written.
    """
    metrics = _metrics(summary)
    measures = [f"{split}_{name}_{what}" for split, name in metrics for what in ("mean", "ci95")]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["point", *summary.keys, "status", *measures, "seconds", "folder", "message"])
    for point, outcome in summary.points:
        measured: list[Any] = []
        for split, name in metrics:
            found = getattr(outcome, split).get(name, {})
            measured += [found.get("mean"), found.get("ci95")]
        values = [point.values.get(key) for key in summary.keys]
        folder = _relative(point.folder, directory)
        lines.writerow([point.number, *values, outcome.status, *measured, outcome.seconds, folder, outcome.message])
    _write(directory / CSV, text.getvalue())


def write_json(summary: Summary, directory: Path, *, command: str) -> None:
    """Writes sweep.json: the same with the means over seeds and the best setting.

    Raises:
        UsageError: it can not be written.
    """
    points = [
        {"point": point.number, "folder": _relative(point.folder, directory), "values": dict(point.values)}
        | vars(outcome)
        for point, outcome in summary.points
    ]
    data: dict[str, Any] = {"command": command, "keys": list(summary.keys), "metric": summary.metric}
    data["best_on_validation"] = None if summary.best is None else _as_data(summary.settings[summary.best])
    over_seeds = summary.over_seeds or ((summary.seeds_alone,) if summary.seeds_alone is not None else ())
    data |= {"over_seeds": [_as_data(row) for row in over_seeds], "points": points}
    _write(directory / JSON, json.dumps(data, indent=1, default=dict) + "\n")


def print_table(summary: Summary, stream: TextIO | None = None) -> None:
    """Prints the settings with their validation and test; the best on validation has a star."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    stream = stream or sys.stdout
    # A file or a pipe has no width; a terminal has its own.
    console = Console(file=stream, width=None if stream.isatty() else _WIDTH, highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    over_seeds = bool(summary.over_seeds)
    for key in summary.shown_keys:
        table.add_column(key)
    for split in SPLITS:
        table.add_column(f"{_HEADINGS[split]} {summary.metric}", justify="right")
    table.add_column("seeds" if over_seeds else "", justify="right" if over_seeds else "left")
    for index, row in enumerate(summary.settings):
        best = index == summary.best
        cells = [_shown(row.values.get(key)) for key in summary.shown_keys]
        cells += [_measured(row, split, summary.metric) + (" *" if best and split == "val" else "") for split in SPLITS]
        table.add_row(*cells, _said(row), style="bold" if best else None)
    console.print(table)
    spread = "mean ± standard deviation over seeds" if over_seeds else "mean ± 95% interval over episodes"
    star = "; * best on validation" if summary.best is not None else "; no validation, so no best"
    print(f"{spread}{star}", file=stream)
    if summary.seeds_alone is not None:
        print(_over_the_seeds(summary.seeds_alone, summary.metric), file=stream)


def _over_the_seeds(row: Row, metric: str) -> str:
    if not row.means:
        return f"over the seeds: no mean, as {row.status} are finished"
    found = [f"{_HEADINGS[split]} {metric} {_measured(row, split, metric)}" for split in SPLITS if split in row.means]
    return f"over {row.count} seeds: {', '.join(found)} (mean ± standard deviation over seeds)"


def _measured(row: Row, split: str, metric: str) -> str:
    if split not in row.means:
        return "-"
    return describe({"mean": row.means[split], "ci95": row.spreads.get(split)}, percent=metric == "accuracy")


def _said(row: Row) -> str:
    return "" if row.status == "finished" else row.status


def _shown(value: Any) -> str:
    return "" if value is None else shown(value)


def _as_data(row: Row) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(row).items()}


def _metrics(summary: Summary) -> list[tuple[str, str]]:
    found = [(split, name) for _, each in summary.points for split in SPLITS for name in getattr(each, split)]
    return sorted(set(found), key=lambda pair: (SPLITS.index(pair[0]), pair[1]))


def _relative(folder: Path, directory: Path) -> str:
    return folder.relative_to(directory).as_posix() if folder.is_relative_to(directory) else str(folder)


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UsageError(f"{path} can not be written ({error.strerror or error}).") from None
