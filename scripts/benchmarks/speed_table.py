"""The table and the picture of the speed benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed_cases import CASES, group_of
from benchmarks.speed_ways import PLAIN, WAYS, whose

_MARKERS = {"torch": "x", "peer": "s", "jax": "^", "ours": "o"}


def lines(name: str, measured: dict[str, Any]) -> str:
    return "\n".join(
        _slopes(measured) if name == "slopes" else (line for case in measured for line in _case(case, measured[case]))
    )


def _case(name: str, measured: dict[str, Any]) -> list[str]:
    roofs = measured["roofs"]
    found = [
        f"{name}: {measured['tasks']} tasks, {measured['steps']} steps, {measured['parameters']:,} parameters,"
        f" {measured['flops'] / 1e9:.3g} GFLOP; GEMM {roofs['gemm_gflops_per_second']:.0f} GFLOP/s,"
        f" copy {roofs['copy_gigabytes_per_second']:.1f} GB/s"
    ]
    return found + [f"  {way:<30} {_row(row)}" for way, row in measured["ways"].items()]


def _row(row: dict[str, Any]) -> str:
    if "seconds" not in row:
        return str(row.get("wrong") or row.get("reason"))
    cells = [f"{1e3 * row['seconds']['median']:9.2f} ms"]
    for key, called in (("times_ours", "ours"), ("times_plain", "plain")):
        if key in row:
            ratio = row[key]
            cells.append(f"{ratio['median']:6.2f} x {called} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})")
    cells.append(f"{row['share_of_gemm']:6.1%} of GEMM")
    if row.get("first_step"):
        cells.append(f"{row['peak_megabytes']:7.1f} MB")
        cells.append(
            "first " + ", ".join(f"{key} {each['wall_seconds']:.2f} s" for key, each in row["first_step"].items())
        )
    return "  ".join([*cells, f"differs by {max(row['relative_error'].values()):.0e}"])


def _slopes(measured: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"time grows with {series} to the power of: " + ", ".join(f"{way} {power:.2f}" for way, power in ways.items())
        for series, ways in measured.items()
    ]


_COLUMNS = {
    "higher": ("higher",), "TorchOpt": ("TorchOpt",), "learn2learn": ("learn2learn",),
    "parallel-metalearn": ("parallel-metalearn vmap", "parallel-metalearn sequential"),
    "JAX": ("JAX jit(vmap)", "JAX jit(map)"), "ours, eager": ("Loop", "Vmap"),
    "ours, compiled": ("Loop pieces", "Vmap pieces", "Loop whole", "Vmap whole"),
}  # fmt: skip


def page(cases: dict[str, Any], ways: Sequence[str] | None = None) -> str:
    """The cases as a table in Markdown: times in multiples of the fastest of ours, medians; a column for each way."""
    columns = _COLUMNS if ways is None else {way: (way,) for way in ways}
    rows = [["case", "plain loop", *columns], ["---"] * (2 + len(columns))]
    for name, measured in cases.items():
        times = {way: row["times_ours"]["median"] for way, row in measured["ways"].items() if "times_ours" in row}
        rows.append([f"`{name}`", f"{times[PLAIN]:.2f}", *(_fastest(times, each) for each in columns.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _fastest(times: dict[str, float], ways: tuple[str, ...]) -> str:
    there = {way: times[way] for way in ways if way in times}
    if not there:
        return "-"
    best = min(there, key=there.__getitem__)
    return f"{there[best]:.2f}" + (f" ({best})" if len(ways) > 1 else "")


def picture(found: dict[str, Any], path: Path) -> None:
    """Above, every case's times relative to the fastest of ours; below, the series."""
    from matplotlib import pyplot

    cases, series = _split(found["cases"])
    rows = 1 + bool(series)
    figure = pyplot.figure(figsize=(14, 5.5 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, max(1, len(series)))
    _relative(figure.add_subplot(grid[0, :]), cases)
    for column, (group, members) in enumerate(series.items()):
        _scaling(figure.add_subplot(grid[1, column]), group, members)
    handles = {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _split(cases: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[int, Any]]]:
    """The single cases, and the series by size."""
    single, series = {}, {}
    for name, measured in cases.items():
        size = CASES[name].size
        if size is None:
            single[name] = measured["ways"]
        else:
            series.setdefault(group_of(name), {})[size] = measured["ways"]
    return single, series


def _style(way: str) -> dict[str, Any]:
    return {"marker": _MARKERS.get(whose(way), "d"), "color": f"C{list(WAYS).index(way) % 10}", "label": way}


def _relative(axis: Any, cases: dict[str, Any]) -> None:
    for way in WAYS:
        rows = {
            place: ways[way]["times_ours"]
            for place, ways in enumerate(cases.values())
            if "times_ours" in ways.get(way, {})
        }
        if rows:
            axis.plot(list(rows), [row["median"] for row in rows.values()], linestyle="", **_style(way))
            axis.vlines(
                list(rows), *([row[end] for row in rows.values()] for end in ("lowest", "highest")), "grey", lw=0.8
            )
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set(title="time relative to the fastest of ours (above 1 is slower)", yscale="log", ylabel="times ours")
    axis.set_xticks(range(len(cases)), list(cases), rotation=30, ha="right")


def _scaling(axis: Any, group: str, members: dict[int, Any]) -> None:
    for way in WAYS:
        rows = {
            size: ways[way]["seconds"]["median"] for size, ways in members.items() if "seconds" in ways.get(way, {})
        }
        if rows:
            axis.plot(
                list(rows), list(rows.values()), linestyle=":" if way == PLAIN else "-", linewidth=0.8, **_style(way)
            )
    axis.set(title=f"sinusoid, by {group}", xlabel=group, ylabel="seconds", xscale="log", yscale="log")
