"""Pictures of a run. The object-oriented interface of matplotlib: no window, no global state."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metalearn.errors import UsageError
from metalearn.files import write_atomically

_COLOURS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green", "baseline": "tab:gray"}


def draw_curves(records: Sequence[Mapping[str, Any]], results: Mapping[str, Any], path: Path) -> None:
    """The course of the training, and the test after every inner step beside the same from a random initialisation."""
    metrics = [name for name in ("loss", "accuracy") if name in results["test"]]
    figure = Figure(figsize=(5.5 * len(metrics), 8), layout="constrained")
    grid = figure.subplots(2, len(metrics), squeeze=False)
    for column, metric in enumerate(metrics):
        _draw_course(grid[0][column], records, metric)
        _draw_by_step(grid[1][column], results, metric)
    protocol = results["protocol"]
    figure.suptitle(f"{protocol.get('dataset', 'task')}, {protocol['algorithm']}, {protocol['meta_steps']} meta steps")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG.

    Raises:
        UsageError: the file can not be written.
    """
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    try:
        write_atomically(path, picture.getvalue())
    except OSError as error:
        raise UsageError(f"{path} can not be written ({error.strerror or error}).") from None


def _draw_course(axes: Axes, records: Sequence[Mapping[str, Any]], metric: str) -> None:
    for split, style in (("train", "-"), ("val", "o-"), ("test", "*")):
        points = [(record["step"], record[metric]) for record in records if _holds(record, split, metric)]
        if points:
            style = style if len(points) > 1 or split == "test" else "o"  # a line through one point can not be seen
            axes.plot(*zip(*points, strict=True), style, color=_COLOURS[split], label=split, markersize=5, linewidth=1)
    axes.set(xlabel="meta step", ylabel=metric, title=f"{metric} on query sets")
    if metric == "loss":
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    _legend_below(axes)


def _holds(record: Mapping[str, Any], split: str, metric: str) -> bool:
    return record["split"] == split and record.get(metric) is not None


def _draw_by_step(axes: Axes, results: Mapping[str, Any], metric: str) -> None:
    for key, label in (("test", "meta-learned"), ("baseline", "random initialisation")):
        rows = results.get(f"{key}_by_step", {}).get(metric, [])
        points = [(step, row["mean"], row["ci95"] or 0.0) for step, row in enumerate(rows) if row["mean"] is not None]
        if points:
            steps, means, intervals = zip(*points, strict=True)
            axes.errorbar(steps, means, intervals, fmt="o-", capsize=3, color=_COLOURS[key], label=label)
    axes.set(xlabel="inner steps at test", ylabel=metric, title="test, with 95% intervals")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    # Outside the axes: inside, there is no corner that no run's curves pass through.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
