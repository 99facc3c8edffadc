"""What a sweep found: its points in order, the best on validation, and the means over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metalearn.sweeps.points import Outcome, Point

SEED = "seed"
SPLITS = ("val", "test")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a point, or the points that differ in their seed alone.

    Attributes:
        values: the swept keys and values that the line stands for.
        status: of the point; "3 of 3" finished ones for several.
        means: split -> the mean of the sweep's metric.
        spreads: split -> the half-width of its 95% interval for a point; the standard deviation over seeds for several.
        count: the finished points in it.
    """

    values: Mapping[str, Any]
    status: str
    means: Mapping[str, float] = field(default_factory=dict)
    spreads: Mapping[str, float] = field(default_factory=dict)
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A sweep's results.

    Attributes:
        keys: what was swept, in the order of the command.
        metric: "accuracy" where there is one, else "loss".
        points: every point with its outcome.
        rows: one a point.
        over_seeds: one for every setting, where the seed was swept beside others; else empty.
        seeds_alone: the one over all points, where nothing but the seed was swept; else None.
        best: the index of the best on validation in `over_seeds`, or in `rows` where that is empty. The test plays no
            part; `None` where nothing was validated.
    """

    keys: tuple[str, ...]
    metric: str
    points: tuple[tuple[Point, Outcome], ...]
    rows: tuple[Row, ...]
    over_seeds: tuple[Row, ...]
    best: int | None
    seeds_alone: Row | None = None

    @property
    def settings(self) -> tuple[Row, ...]:
        """The lines that are compared: over seeds where there are several."""
        return self.over_seeds or self.rows

    @property
    def shown_keys(self) -> tuple[str, ...]:
        """The keys of `settings`."""
        return tuple(key for key in self.keys if key != SEED) if self.over_seeds else self.keys


def summarise(points: Sequence[tuple[Point, Outcome]], keys: Sequence[str]) -> Summary:
    """The summary of points and their outcomes."""
    metric = _metric([outcome for _, outcome in points])
    rows = tuple(_row(point, outcome, metric, keys) for point, outcome in points)
    beside = [key for key in keys if key != SEED]
    over_seeds = _over_seeds(rows, beside) if SEED in keys and beside else ()
    return Summary(
        keys=tuple(keys),
        metric=metric,
        points=tuple(points),
        rows=rows,
        over_seeds=over_seeds,
        best=_best(over_seeds or rows, metric),
        seeds_alone=_together(rows, ()) if SEED in keys and not beside and len(rows) > 1 else None,
    )


def _metric(outcomes: Sequence[Outcome]) -> str:
    return "accuracy" if any("accuracy" in found for each in outcomes for found in (each.val, each.test)) else "loss"


def _row(point: Point, outcome: Outcome, metric: str, keys: Sequence[str]) -> Row:
    means, spreads = {}, {}
    for split in SPLITS:
        measured = getattr(outcome, split).get(metric, {})
        if measured.get("mean") is not None:
            means[split] = float(measured["mean"])
        if measured.get("ci95") is not None:
            spreads[split] = float(measured["ci95"])
    values = {key: point.values[key] for key in keys if key in point.values}
    count = int(outcome.status == "finished")
    return Row(values=values, status=outcome.status, means=means, spreads=spreads, count=count)


def _over_seeds(rows: Sequence[Row], keys: Sequence[str]) -> tuple[Row, ...]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr([row.values.get(key) for key in keys]), []).append(row)
    return tuple(_together(group, keys) for group in groups.values())


def _together(group: Sequence[Row], keys: Sequence[str]) -> Row:
    finished = [row for row in group if row.status == "finished"]
    means, spreads = {}, {}
    for split in SPLITS:
        found = [row.means[split] for row in finished if split in row.means]
        # Of all the seeds or of none: a mean without its failures would be compared with one of all.
        if found and len(found) == len(group):
            means[split] = statistics.fmean(found)
            if len(found) > 1:
                spreads[split] = statistics.stdev(found)
    return Row(
        values={key: group[0].values.get(key) for key in keys},
        status=f"{len(finished)} of {len(group)}",
        means=means,
        spreads=spreads,
        count=len(finished),
    )


def _best(rows: Sequence[Row], metric: str) -> int | None:
    sign = 1.0 if metric == "accuracy" else -1.0
    scores = [sign * row.means["val"] if row.count and "val" in row.means else -math.inf for row in rows]
    best = max(range(len(scores)), key=scores.__getitem__, default=None)
    return None if best is None or scores[best] == -math.inf else best
