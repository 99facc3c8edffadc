"""The cost of an optimizer: a step without history, and a differentiable inner loop; ours against other libraries'."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import adam_loops, updates
from benchmarks.common import Case, interleaved, rows_of_a_process
from metalearn import tree

LOOP = "five inner steps of Adam and the gradient through them"


def update_rows(
    sizes: Sequence[str], names: Sequence[str], *, repeats: int, with_peers: bool, with_compiled: bool
) -> Iterator[dict[str, Any]]:
    """One row a size, optimizer and way."""
    for name in names:
        ways = updates.ways_of(name, with_peers=with_peers, with_compiled=with_compiled)
        errors = {way: updates.errors(name, make) for way, make in ways.items()}
        updates.require_equal(name, errors)
        for size in sizes:
            params, grads = updates.work(updates.SIZES[size], torch.float32)
            own = tree.map_tensors(torch.clone, grads)  # what one of them writes into
            works = {way: make(name, params, own if way == updates.IN_PLACE else grads) for way, make in ways.items()}
            times = interleaved(works, repeats, {updates.IN_PLACE: updates.restored(own)})
            for way in ways:
                yield {"work": size, "of": name, "way": way, "relative_error": errors[way], **times[way]}


def loop_rows(models: Sequence[str], *, repeats: int, with_peers: bool) -> Iterator[dict[str, Any]]:
    """One row a model and way; how far each gradient is from the plain loop's is told."""
    ways = {**adam_loops.WAYS, **(adam_loops.PEERS if with_peers else {})}
    for model in models:
        errors = {way: adam_loops.error(make, model) for way, make in ways.items()}
        ours = errors[updates.OURS]
        if not ours <= adam_loops.MOST_ERROR:
            raise SystemExit(f"bench: our meta-gradient is not the plain loop's (relative error {ours})")
        times = interleaved({way: make(model, torch.float32) for way, make in ways.items()}, repeats)
        for way in ways:
            error = {"float64": errors[way]}
            yield {"work": LOOP, "of": model, "way": way, "relative_error": error, **times[way]}


def measure(options: Namespace) -> dict[str, Any]:
    """By work, optimizer or model, and way: all of it in one process, of the peers' environment where there is one."""
    found: dict[str, Any] = {}
    arguments = [str(options.repeats), *(["peers"] if options.peers else [])]
    for row in _rows(str(options.peers or sys.executable), arguments):
        rows = found.setdefault(row.pop("work"), {}).setdefault(row.pop("of"), {})
        rows[row.pop("way")] = row
    return found


def _rows(interpreter: str, arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    return rows_of_a_process(interpreter, "optimizers", arguments, called="the measurement")


def _part(arguments: list[str]) -> None:
    repeats, with_peers = int(arguments[0]), "peers" in arguments
    everything = {"repeats": repeats, "with_peers": with_peers, "with_compiled": True}
    for row in update_rows(list(updates.SIZES), list(updates.HYPERS), **everything):
        print(json.dumps(row), flush=True)
    for row in loop_rows(list(adam_loops.MODELS), repeats=repeats, with_peers=with_peers):
        print(json.dumps(row), flush=True)


def _lines(name: str, measured: dict[str, Any]) -> str:
    lines = [f"{name}:"]
    for of, ways in measured.items():
        for way, row in ways.items():
            ratio, error = row["times_ours"], max(row["relative_error"].values())
            lines.append(
                f"  {of:<18} {way:<24} {1e6 * row['seconds']['median']:8.0f} us  {ratio['median']:6.2f} x ours"
                f" ({ratio['lowest']:.2f} to {ratio['highest']:.2f}), differs by {error:.0e}"
            )
    return "\n".join(lines)


def _picture(found: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(found), 1, figsize=(10, 2.3 * len(found)), squeeze=False, layout="constrained")
    for axis, (work, measured) in zip(axes[:, 0], found.items(), strict=True):
        ways = _ways({work: measured})[1:]
        width = 0.8 / len(ways)
        for index, way in enumerate(ways):
            rows = {place: of[way]["times_ours"] for place, of in enumerate(measured.values()) if way in of}
            places = [place + width * (index - (len(ways) - 1) / 2) for place in rows]
            # From 1, where the time is ours, up or down.
            axis.bar(places, [row["median"] - 1 for row in rows.values()], width, bottom=1.0, label=way)
            axis.vlines(
                places, *([row[end] for row in rows.values()] for end in ("lowest", "highest")), "black", lw=0.8
            )
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set(title=work, ylabel="times ours", yscale="log")
        axis.set_yticks((marks := [0.1, 0.2, 0.5, 1, 2, 5, 10]), [str(mark) for mark in marks], minor=False)
        axis.minorticks_off()
        axis.set_xticks(range(len(measured)), list(measured))
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("process time in multiples of ours, and the lowest and highest repetition: above 1 is slower")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _ways(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(way for measured in found.values() for of in measured.values() for way in of))


CASE = Case(measure, _lines, _picture, _part)
