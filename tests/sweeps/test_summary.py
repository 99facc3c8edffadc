"""What a sweep says of its points: the best by validation alone, means over seeds, the files and the table."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from metalearn.sweeps import Outcome, Point, finish, summarise
from metalearn.sweeps.picture import draw_sweep
from metalearn.sweeps.summary import Summary
from metalearn.sweeps.table import print_table
from tests.sweeps.finished import measured


def swept(*rows: dict[str, Any], folder: Path = Path("sweep"), metric: str = "accuracy") -> Summary:
    """A summary of points given as `{key: value, ..., "val": mean, "test": mean, "status": ...}`."""
    points = []
    for number, row in enumerate(rows):
        values = {key: value for key, value in row.items() if key not in ("val", "test", "status", "message")}
        splits = {split: {metric: measured(row[split])} for split in ("val", "test") if split in row}
        outcome = Outcome(status=row.get("status", "finished"), message=row.get("message", ""), seconds=2.0, **splits)
        points.append((Point(folder=folder / str(number), number=number, digest=str(number), values=values), outcome))
    keys = list(dict.fromkeys(key for point, _ in points for key in point.values))
    return summarise(points, keys)


def test_the_best_is_the_best_on_validation() -> None:
    rows = [{"x": 1, "val": 0.5, "test": 0.9}, {"x": 2, "val": 0.7, "test": 0.1}, {"x": 3, "test": 0.99}]
    assert swept(*rows).best == 1
    assert swept(*rows, metric="loss").best == 0


@pytest.mark.parametrize("status", ["pruned", "failed", "interrupted"])
def test_a_point_without_results_is_never_the_best(status: str) -> None:
    assert swept({"x": 1, "val": 0.5, "test": 0.5}, {"x": 2, "val": 0.9, "status": status}).best == 0


def test_without_validation_there_is_no_best() -> None:
    assert swept({"x": 1, "test": 0.5}, {"x": 2, "test": 0.6}).best is None
    assert summarise([], ["x"]).best is None


def test_a_value_that_is_no_number_is_left_out() -> None:
    found = swept({"x": 1, "val": None, "test": 0.5}, {"x": 2, "val": 0.1, "test": 0.5})
    assert found.best == 1
    assert "val" not in found.rows[0].means


def test_seeds_are_averaged_where_something_else_is_swept() -> None:
    rows = [{"x": x, "seed": seed, "val": x + seed / 10, "test": 0.5} for x in (0, 1) for seed in (0, 1, 2)]
    found = swept(*rows)
    assert [row.values for row in found.over_seeds] == [{"x": 0}, {"x": 1}]
    assert found.over_seeds[1].means["val"] == pytest.approx(1.1)
    assert found.over_seeds[1].spreads["val"] == pytest.approx(0.1)  # the deviation with n - 1
    assert (found.best, found.shown_keys) == (1, ("x",))
    assert swept(*[row | {"x": 0} for row in rows[:1]], {"x": 0, "seed": 1, "val": 1}).over_seeds[0].status == "2 of 2"


def test_seeds_alone_are_not_averaged_away() -> None:
    found = swept({"seed": 0, "val": 0.1}, {"seed": 1, "val": 0.2})
    assert found.over_seeds == ()
    assert found.shown_keys == ("seed",)
    assert len(found.settings) == 2


def test_seeds_alone_have_their_mean_and_deviation_too(tmp_path: Path) -> None:
    rows = [{"seed": seed, "val": val, "test": 0.5} for seed, val in enumerate((0.1, 0.2, 0.6))]
    found = swept(*rows, folder=tmp_path)
    assert found.seeds_alone is not None
    assert found.seeds_alone.means["val"] == pytest.approx(0.3)
    assert found.seeds_alone.spreads["val"] == pytest.approx(math.sqrt(0.07))  # (0.04 + 0.01 + 0.09) / 2
    text = io.StringIO()
    print_table(found, text)
    last = text.getvalue().splitlines()[-1]
    assert last.startswith("over 3 seeds: validation accuracy 30.00% ± 26.46%, test accuracy 50.00% ± 0.00%")
    finish(found, tmp_path, command="seed=0,1,2")
    assert json.loads((tmp_path / "sweep.json").read_text())["over_seeds"][0]["count"] == 3
    failed = swept(rows[0], {"seed": 1, "status": "failed"})
    assert failed.seeds_alone is not None
    assert failed.seeds_alone.means == {}
    assert swept({"x": 1, "val": 0.5}, {"x": 2, "val": 0.5}).seeds_alone is None


def test_a_mean_over_seeds_needs_all_of_them() -> None:
    found = swept(
        {"x": 0, "seed": 0, "val": 0.9}, {"x": 0, "seed": 1, "status": "failed"}, {"x": 1, "seed": 0, "val": 0.1}
    )
    assert found.over_seeds[0].status == "1 of 2"
    assert found.over_seeds[0].means == {}
    assert found.best == 1


def test_the_files_hold_every_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = swept(
        {"inner.lr": 0.1, "algorithm": "maml", "val": 0.5, "test": 0.4},
        {"inner.lr": 0.2, "algorithm": "maml", "status": "failed", "message": "no, really"},
        folder=tmp_path,
    )
    finish(summary, tmp_path, command="inner.lr=0.1,0.2")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "sweep.csv").read_text())))
    assert [row["status"] for row in rows] == ["finished", "failed"]
    assert float(rows[0]["val_accuracy_mean"]) == 0.5
    assert float(rows[0]["test_accuracy_ci95"]) == 0.01
    assert (rows[0]["inner.lr"], rows[0]["folder"], rows[0]["seconds"]) == ("0.1", "0", "2.0")
    assert (rows[1]["val_accuracy_mean"], rows[1]["message"]) == ("", "no, really")
    data = json.loads((tmp_path / "sweep.json").read_text())
    assert data["best_on_validation"]["values"] == {"inner.lr": 0.1, "algorithm": "maml"}
    assert data["points"][1]["status"] == "failed"
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "point 1 (inner.lr=0.2 algorithm=maml) failed: no, really" in said
    assert "50.00% ± 1.00% *" in said


def test_the_table_has_one_star() -> None:
    text = io.StringIO()
    print_table(swept({"x": 1, "val": 0.5, "test": 0.9}, {"x": 2, "val": 0.7, "test": 0.1}), text)
    *lines, legend = text.getvalue().splitlines()
    starred = [line for line in lines if "*" in line]
    assert "best on validation" in legend
    assert len(starred) == 1
    assert "70.00%" in starred[0]


GRID = [{"x": x, "y": y, "val": math.sin(x + ord(y)), "test": 0.5} for x in (1, 2, 300) for y in ("a", "b")]
CUBE = [row | {"z": z} for row in GRID for z in (0, 1)]


@pytest.mark.parametrize(
    ("rows", "axes", "says"),
    [
        ([{"x": x, "val": 0.1 * x} for x in (1, 2, 3)], "x", []),
        ([{"x": x, "val": 0.1} for x in ("maml", "fomaml")], "x", []),
        (GRID, "x", ["a", "b", "300"]),
        ([*GRID[:-1], {"x": 300, "y": "b", "status": "failed"}], "x", ["failed"]),
        (CUBE, None, ["x", "y", "z"]),
        ([{"x": 0.1 + i / 7, "y": i / 3, "val": i} for i in range(5)], None, ["x", "y"]),
        ([{"x": 1, "y": "a", "val": 0.5}], "x", []),
        ([{"x": i, "seed": s, "val": i + s} for i in (0, 1) for s in (0, 1)], "x", []),
        ([{"x": 10.0**-i, "y": 0, "val": 10.0**i} for i in range(9)], "x", []),
    ],
    ids=["line", "names", "heat map", "a hole", "parallel", "scattered", "one point", "seeds", "wide"],
)
def test_every_kind_of_sweep_has_its_picture(
    rows: list[dict[str, Any]], axes: str | None, says: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr("metalearn.sweeps.picture.save", lambda figure, path: figures.append(figure))
    assert draw_sweep(swept(*rows), tmp_path / "sweep.png")
    (figure,) = figures
    drawn = figure.axes[0]
    assert drawn.get_xlabel() == (axes or "")
    labels = {each.get_text() for each in (*drawn.get_xticklabels(), *drawn.get_yticklabels(), *drawn.texts)}
    assert set(says) <= labels


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert not draw_sweep(swept({"x": 1, "status": "failed"}), tmp_path / "sweep.png")
    assert not (tmp_path / "sweep.png").exists()
