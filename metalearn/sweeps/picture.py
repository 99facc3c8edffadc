"""sweep.png: a line over one key, a heat map over two, parallel coordinates over more."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from metalearn.sweeps.points import shown
from metalearn.sweeps.summary import Row, Summary
from metalearn.training.plots import save

PICTURE = "sweep.png"
_COLOURS = "viridis"
_LOG_FROM = 20.0
_MOST_CELLS = 400
_FARTHEST = 4.0


def draw_sweep(summary: Summary, path: Path) -> bool:
    """Draws the validation of every setting (the test, where nothing was validated).

    Returns:
        Whether there was anything to draw.
    """
    split = "val" if any("val" in row.means for row in summary.settings) else "test"
    rows = [row for row in summary.settings if split in row.means]
    keys = [key for key in summary.shown_keys if len({repr(row.values.get(key)) for row in summary.settings}) > 1]
    keys = keys or list(summary.shown_keys[:1])
    if not rows or not keys:
        return False
    figure = Figure(figsize=(max(6.0, 2.2 * len(keys)), 4.5), layout="constrained")
    axes = figure.subplots()
    if len(keys) == 1:
        _line(axes, rows, keys[0], split)
        axes.set_ylabel(_name(summary, split))
    elif len(keys) == 2 and _is_grid(summary.settings, keys):
        _heat_map(figure, axes, summary, keys, split)
    else:
        _parallel(figure, axes, summary, rows, keys, split)
    spread = ", mean ± deviation over seeds" if summary.over_seeds else ""
    axes.set_title(f"{_name(summary, split)}{spread}")
    save(figure, path)
    return True


def _name(summary: Summary, split: str) -> str:
    return f"{'validation' if split == 'val' else 'test'} {summary.metric}"


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _LOG_FROM


def _in_order(values: Sequence[Any]) -> list[Any]:
    distinct = list({repr(value): value for value in values}.values())
    return sorted(distinct) if _is_numeric(distinct) else distinct


def _line(axes: Axes, rows: Sequence[Row], key: str, split: str) -> None:
    values = [row.values.get(key) for row in rows]
    heights = [row.means[split] for row in rows]
    spreads = [row.spreads.get(split, 0.0) for row in rows]
    if _is_numeric(values):
        order = sorted(range(len(rows)), key=lambda index: values[index])  # type: ignore[arg-type, return-value]
        x: list[Any] = [values[index] for index in order]
        heights, spreads = [heights[index] for index in order], [spreads[index] for index in order]
        if _is_wide(x):
            axes.set_xscale("log")
        # Seeds have no order that a line could mean.
        style = "o" if key == "seed" else "o-"
    else:
        x, style = [shown(value) for value in values], "o"
    axes.errorbar(x, heights, spreads, fmt=style, capsize=3)
    axes.set_xlabel(key)
    axes.grid(alpha=0.3)


def _is_grid(rows: Sequence[Row], keys: Sequence[str]) -> bool:
    """Whether most of the cells of a table over two keys are points; the points of a study are scattered."""
    cells = math.prod(len(_in_order([row.values.get(key) for row in rows])) for key in keys)
    return cells <= min(2 * len(rows), _MOST_CELLS)


def _heat_map(figure: Figure, axes: Axes, summary: Summary, keys: Sequence[str], split: str) -> None:
    across, down = (_in_order([row.values.get(key) for row in summary.settings]) for key in keys)
    grid = np.full((len(down), len(across)), np.nan)
    texts: dict[tuple[int, int], str] = {}
    for row in summary.settings:
        cell = down.index(row.values.get(keys[1])), across.index(row.values.get(keys[0]))
        if split in row.means:
            grid[cell] = row.means[split]
        texts[cell] = _cell(row, split, summary.metric)
    figure.set_size_inches(max(5.0, 1.2 * len(across) + 2), max(3.2, 0.7 * len(down) + 1.6))
    measured = [row.means[split] for row in summary.settings if split in row.means]
    image = axes.imshow(grid, cmap=_colours(summary), norm=_norm(measured, summary), aspect="auto", origin="lower")
    for (y, x), text in texts.items():
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color=_ink(image.norm, image.cmap, grid[y, x]))
    axes.set_xticks(range(len(across)), [shown(value) for value in across])
    axes.set_yticks(range(len(down)), [shown(value) for value in down])
    axes.set(xlabel=keys[0], ylabel=keys[1])
    figure.colorbar(image, ax=axes)


def _cell(row: Row, split: str, metric: str) -> str:
    if split not in row.means:
        return row.status
    scale, digits = (100.0, ".1f") if metric == "accuracy" else (1.0, ".3g")
    text = f"{scale * row.means[split]:{digits}}"
    if row.spreads.get(split):
        text += f"\n± {scale * row.spreads[split]:{digits}}"
    return text + (f"\n({row.status})" if row.status == "pruned" else "")


def _colours(summary: Summary) -> str:
    return _COLOURS if summary.metric == "accuracy" else f"{_COLOURS}_r"  # bright is good


def _norm(scores: Sequence[float], summary: Summary) -> Normalize:
    """From the best to the worst, but for those so much worse that the rest would be of one colour."""
    sign = 1 if summary.metric == "accuracy" else -1
    best, middle, worst = (sign * value for value in np.quantile(sign * np.asarray(scores), (1, 0.5, 0)))
    limit = best + _FARTHEST * (middle - best)
    ends = sorted((best, limit if middle != best and sign * worst < sign * limit else worst))
    return Normalize(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1e-9, clip=True)


def _ink(norm: Any, colours: Any, value: float) -> str:
    if math.isnan(value):
        return "black"
    red, green, blue, _ = colours(norm(value))
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"


def _parallel(
    figure: Figure, axes: Axes, summary: Summary, rows: Sequence[Row], keys: Sequence[str], split: str
) -> None:
    heights = np.stack(
        [_axis(axes, place, key, [row.values.get(key) for row in rows]) for place, key in enumerate(keys)]
    )
    scores = [row.means[split] for row in rows]
    norm = _norm(scores, summary)
    colours = colormaps[_colours(summary)]
    sign = 1 if summary.metric == "accuracy" else -1
    for index in sorted(range(len(rows)), key=lambda index: sign * scores[index]):  # the best on top
        style = ":" if rows[index].status == "pruned" else "-"
        axes.plot(range(len(keys)), heights[:, index], style, color=colours(norm(scores[index])), linewidth=1.5)
    axes.set_xticks(range(len(keys)), keys)
    axes.set(yticks=[], ylim=(-0.05, 1.05), xlim=(-0.2, len(keys) - 0.6))
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=_name(summary, split))


def _axis(axes: Axes, place: int, key: str, values: Sequence[Any]) -> "np.ndarray[Any, Any]":
    """Draws a key's axis with its labels, and returns the places of `values` on it, from 0 to 1."""
    distinct = _in_order(values)
    if _is_numeric(values) and len(distinct) > 1:
        scale = np.log if _is_wide(values) else np.asarray
        low, high = scale(min(values)), scale(max(values))
        places = (scale(np.asarray(values, dtype=float)) - low) / (high - low)
        labels = distinct if len(distinct) <= 6 else [distinct[0], distinct[-1]]
        heights = (scale(np.asarray(labels, dtype=float)) - low) / (high - low)
    else:
        labels = distinct
        heights = np.linspace(0, 1, len(labels)) if len(labels) > 1 else np.array([0.5])
        places = np.array([heights[[repr(each) for each in labels].index(repr(value))] for value in values])
    axes.axvline(place, color="tab:gray", linewidth=0.8)
    for label, height in zip(labels, heights, strict=True):
        axes.annotate(shown(label), (place, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center")
    return np.asarray(places)
