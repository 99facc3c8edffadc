"""Sweeps: many runs of one command, what became of each, and what they show together. Knows nothing of Hydra.

    with claimed(directory):                       # one process at a time
        outcome = run_point(point, action, directory=directory)      # in whatever process; raises nothing
        summary = summarise([(point, outcome), ...], keys)
        finish(summary, directory, command="...")  # sweep.csv, sweep.json, sweep.png and the table

`Study` proposes points by Optuna, and goes on where it stopped.
"""

import os
from pathlib import Path

from metalearn.sweeps.directory import ask_to_stop, asked_to_stop, claimed, digest_of, known_points, stopping
from metalearn.sweeps.picture import PICTURE, draw_sweep
from metalearn.sweeps.points import DONE, Outcome, Point, Trial, read_outcome, read_point
from metalearn.sweeps.study import Choices, Interval, Proposal, Settings, Space, Study, check_installed
from metalearn.sweeps.summary import Summary, summarise
from metalearn.sweeps.table import CSV, JSON, print_table, write_csv, write_json
from metalearn.sweeps.worker import PointRun, run_point

__all__ = [
    "DONE",
    "Choices",
    "Interval",
    "Outcome",
    "Point",
    "PointRun",
    "Proposal",
    "Settings",
    "Space",
    "Study",
    "Summary",
    "Trial",
    "ask_to_stop",
    "asked_to_stop",
    "check_installed",
    "claimed",
    "digest_of",
    "finish",
    "known_points",
    "read_outcome",
    "read_point",
    "run_point",
    "stopping",
    "summarise",
]


def finish(summary: Summary, directory: Path, *, command: str) -> None:
    """Writes sweep.csv, sweep.json and sweep.png, and prints the table.

    Args:
        summary: what was found.
        directory: of the sweep.
        command: what made it, for sweep.json.

    Raises:
        UsageError: a file can not be written.
    """
    write_csv(summary, directory)
    write_json(summary, directory, command=command)
    drawn = draw_sweep(summary, directory / PICTURE)
    print_table(summary)
    for point, outcome in summary.points:
        if outcome.status == "failed":
            print(f"{point.label} failed: {outcome.message}")
    shown = Path(os.path.relpath(directory)) if directory.is_relative_to(Path.cwd()) else directory
    print(f"Sweep: {', '.join(str(shown / name) for name in (CSV, JSON, *([PICTURE] if drawn else [])))}")
