"""compare.png: two sides episode by episode, the differences, and their mean with its interval."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.training.comparison import Difference
from metalearn.training.plots import save

_MOST_BARS = 80
_LARGEST_POINT = 120.0
_SMALLEST_POINT = 8.0
_LOG_FROM = 20.0


def draw_comparison(
    a: Tensor, b: Tensor, found: Difference, *, metric: str, title: str, path: Path, names: tuple[str, str] = ("A", "B")
) -> None:
    """Draws the picture.

    Args:
        a: of every run of A on every episode, `[run, episode]`.
        b: of B, on the same episodes.
        found: their difference.
        metric: its name.
        title: what was compared.
        path: of the PNG.
        names: of the two sides.
    """
    scale = 100.0 if metric == "accuracy" else 1.0
    of_a, of_b = (scale * side.double().mean(0) for side in (a, b))
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    episodes, differences, intervals = figure.subplots(1, 3, width_ratios=(1, 1.2, 1))
    unit = f"{metric} (%)" if metric == "accuracy" else metric
    finite = of_a.isfinite() & of_b.isfinite()
    if finite.any():
        _scatter(episodes, of_a[finite], of_b[finite])
        _histogram(differences, (of_a - of_b)[finite], found, scale)
    _intervals(intervals, found, scale)
    between = f"{names[0]} − {names[1]}, {unit}"  # noqa: RUF001 - a minus
    episodes.set(xlabel=f"{names[1]}, {unit}", ylabel=f"{names[0]}, {unit}", title=f"{int(finite.sum())} episodes")
    differences.set(xlabel=between, ylabel="episodes", title="the same episodes: differences")
    intervals.set(xlabel=between, title="mean difference, 95% interval")
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def _scatter(axes: Axes, a: Tensor, b: Tensor) -> None:
    # Accuracies of a few queries fall on a grid: a point stands for all of its episodes, by its area.
    points, counts = torch.unique(torch.stack([b, a]).round(decimals=4), dim=1, return_counts=True)
    areas = _LARGEST_POINT * counts / counts.max()
    across, up = points.numpy()
    axes.scatter(across, up, s=areas.clamp(min=_SMALLEST_POINT).numpy(), alpha=0.5, linewidths=0)
    values = torch.cat([a, b])
    low, high = values.min().item(), values.max().item()
    if low > 0 and high / low >= _LOG_FROM:
        axes.set(xscale="log", yscale="log")
    axes.plot([low, high], [low, high], "--", color="tab:gray", linewidth=1)
    axes.grid(alpha=0.3)


def _histogram(axes: Axes, differences: Tensor, found: Difference, scale: float) -> None:
    # float32 accuracies: 0.6 - 0.4 and 0.4 - 0.2 are one bar.
    values, counts = np.unique(np.round(differences.numpy(), 4), return_counts=True)
    if len(values) <= _MOST_BARS:
        width = 0.9 * float(np.diff(values).min()) if len(values) > 1 else 1.0
        axes.bar(values, counts, width=width, alpha=0.6)
    else:
        axes.hist(differences.numpy(), bins=_MOST_BARS // 2, alpha=0.6)
    axes.axvline(0, color="black", linewidth=1)
    if found.mean is not None:
        axes.axvline(scale * found.mean, color="tab:red", linewidth=1, label="mean")
    if found.mean is not None and found.ci95 is not None:
        low, high = (scale * (found.mean + sign * found.ci95) for sign in (-1, 1))
        axes.axvspan(low, high, color="tab:red", alpha=0.25, label="95% interval of the mean")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    axes.grid(alpha=0.3)


def _intervals(axes: Axes, found: Difference, scale: float) -> None:
    rows = {
        f"on the same episodes\n(over {' and '.join(found.includes)})": (found.ci95, "tab:red"),
        "had they been\ndifferent episodes": (found.unpaired_ci95, "tab:gray"),
    }
    for place, (width, colour) in enumerate(rows.values()):
        if found.mean is not None and width is not None:
            axes.errorbar(scale * found.mean, -place, xerr=scale * width, fmt="o", capsize=4, color=colour)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks([-place for place in range(len(rows))], list(rows))
    axes.set_ylim(-1.6, 0.6)
    axes.grid(alpha=0.3)
