"""Tables of every format, and what is said about those that are not in order."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest

from metalearn.errors import UsageError
from metalearn.tasks.tables.reading import Table, chunks, read_table

FEATURES = np.arange(12.0).reshape(6, 2)
LABELS = np.array(["b", "a", "b", "c", "a", "c"])
SHOPS = np.array([3, 3, 1, 1, 2, 2])
FRAME = polars.DataFrame({"u": FEATURES[:, 0], "label": LABELS, "v": FEATURES[:, 1], "shop": SHOPS})


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"table{suffix}"
    if suffix in (".csv", ".tsv"):
        FRAME.write_csv(path, separator="," if suffix == ".csv" else "\t")
    elif suffix == ".parquet":
        FRAME.write_parquet(path)
    elif suffix == ".npz":
        np.savez(path, features=FEATURES, labels=LABELS, groups=SHOPS)
    else:
        path.mkdir()
        for name, values in (("features", FEATURES), ("labels", LABELS), ("groups", SHOPS)):
            np.save(path / f"{name}.npy", values)
    return path


def read(path: Path, **options: object) -> Table:
    return read_table(path, **({"features": None, "label": None, "group": None} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".npz", ".folder"])
def test_every_format_gives_the_same_table(tmp_path: Path, suffix: str) -> None:
    frame = suffix in (".csv", ".tsv", ".parquet")
    table = read(written(tmp_path, suffix), **({"group": "shop"} if frame else {}))
    assert np.array_equal(table.features, FEATURES)
    assert table.labels.tolist() == LABELS.tolist()
    assert table.groups is not None
    assert table.groups.tolist() == SHOPS.tolist()
    assert table.columns == (("u", "v") if frame else ())


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    table = read(written(tmp_path, ".csv"), features=["v"], label="shop")
    assert table.features.tolist() == FEATURES[:, 1:].tolist()
    assert table.labels.tolist() == SHOPS.tolist()
    several = read(written(tmp_path, ".csv"), features="u", label=["v", "shop"])
    assert several.labels.tolist() == np.stack([FEATURES[:, 1], SHOPS], axis=1).tolist()
    path = tmp_path / "other.npz"
    np.savez(path, X=FEATURES, y=LABELS, g=SHOPS)
    assert read(path, features="X", label="y").groups is None
    assert read(path, features="X", label="y", group="g").groups is not None


def test_a_folder_of_npy_is_mapped_and_never_written_to(tmp_path: Path) -> None:
    folder = written(tmp_path, ".folder")
    table = read(folder / "features.npy")
    assert isinstance(table.features, np.memmap)
    table.features[0, 0] = 99
    assert np.load(folder / "features.npy")[0, 0] == 0


def test_a_table_takes_what_numpy_takes() -> None:
    table = Table([[1, 2], [3, 4]], np.array(["a", "b"], dtype=object), (7, 8))  # type: ignore[arg-type]
    assert (table.features.shape, table.labels.dtype.kind, table.groups.tolist()) == ((2, 2), "U", [7, 8])


def test_chunks_are_the_whole() -> None:
    values = np.arange(10)
    pieces = list(chunks(values, width=1 << 21))
    assert [start for start, _ in pieces] == [0, 2, 4, 6, 8]
    assert np.array_equal(np.concatenate([piece for _, piece in pieces]), values)


CSV = {
    "an empty cell": ("a,label\n1,x\n,y\n", r"no value in row 1 of column 'a' \(rows count from 0, after the header\)"),
    "NaN": ("a,b,label\n1,2,x\n2,NaN,y\n", r"has nan in row 1 of column 'b' \(rows count from 0\)"),
    "infinity": ("a,label\n1.5,x\ninf,y\n", "has inf in row 1 of column 'a'"),
    "a missing label": ("a,label\n1,x\n2,\n", "no value in row 1 of column 'label'"),
    "text": (
        "a,b,label\n1,2,x\n2,two,y\n",
        r"column 'b' of .* is no number \(String: 'two' in row 1\).*task.features=",
    ),
    "a date": ("a,label\n1,x\n", None),
    "a misspelt label": ("a,labels\n1,x\n", "no column 'label' for task.label. Did you mean 'labels'"),
    "only a label": ("label\nx\n", "no feature column beside 'label'"),
    "only a header": ("a,label\n", "is empty: it has columns, but no row"),
    "nothing": ("", "is empty"),
    "rows of several lengths": ("a,label\n1,x\n2,y,z\n", "can not be read"),
}


@pytest.mark.parametrize(
    ("content", "message"), [each for each in CSV.values() if each[1]], ids=[n for n in CSV if CSV[n][1]]
)
def test_a_csv_that_is_not_in_order_is_told(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        read(path)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "shopp"}, "no column 'shopp' for task.group. Did you mean 'shop'"),
        ({"features": ["u", "w"]}, "no column 'w' for task.features"),
        ({"features": ["u", "label"]}, "task.features has 'label', which is the label or the group"),
    ],
)
def test_unknown_columns_are_told(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(written(tmp_path, ".csv"), **options)


def test_dates_and_lists_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    dates = polars.Series("day", ["2024-01-01", "2024-01-02"]).str.to_date()
    polars.DataFrame({"day": dates, "label": ["x", "y"]}).write_parquet(path)
    with pytest.raises(UsageError, match=r"column 'day' of .* is no number \(Date\)"):
        read(path)


def test_truth_values_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    polars.DataFrame({"open": [True, False], "label": [True, False]}).write_parquet(path)
    table = read(path)
    assert table.features.tolist() == [[1.0], [0.0]]
    assert table.labels.tolist() == ["True", "False"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": FEATURES, "labels": LABELS}, r"has no array 'features' of features.*np\.savez"),
        ({"features": FEATURES}, "has no array 'labels' of labels"),
        ({"features": FEATURES, "labels": LABELS[:5]}, "has 6 features, 5 labels: rows must match"),
        (
            {"features": FEATURES[:, 0], "labels": LABELS},
            r"must be numbers \[row, feature\], got float64 of shape \[6\]",
        ),
        ({"features": LABELS[:, None], "labels": LABELS}, "must be numbers"),
        ({"features": FEATURES[:0], "labels": LABELS[:0]}, r"is empty: it has \[0, 2\] features"),
        ({"features": FEATURES[:, :0], "labels": LABELS}, "is empty"),
        ({"features": FEATURES, "labels": np.array(["a", None] * 3, dtype=object)}, "holds Python objects"),
        ({"features": FEATURES, "labels": np.array([0, 1, np.nan] * 2)}, "has nan in row 2 of the labels"),
        ({"features": np.where(FEATURES == 7, np.nan, FEATURES), "labels": LABELS}, "has nan in row 3 of column 1"),
    ],
)
def test_an_npz_that_is_not_in_order_is_told(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "table.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "table.npz")


def test_files_that_are_not_there_or_damaged_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file .*none\.csv"):
        read(tmp_path / "none.csv")
    with pytest.raises(UsageError, match=r"table\.txt is not a table that can be read: expected \.npz, \.csv"):
        read(tmp_path / "table.txt")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UsageError, match="not an intact NumPy file"):
        read(tmp_path / "bad.npz")
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="can not be read"):
        read(tmp_path / "bad.parquet")
    folder = written(tmp_path, ".folder")
    with pytest.raises(UsageError, match=r"task\.label=x: the files of .* are features\.npy"):
        read(folder, label="x")
    (folder / "labels.npy").unlink()
    with pytest.raises(UsageError, match=r"has no labels\.npy"):
        read(folder)
    (folder / "labels.npy").write_bytes(b"")
    with pytest.raises(UsageError, match=r"labels\.npy is not an intact NumPy file"):
        read(folder)


def test_without_polars_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, ".csv")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UsageError, match=r'pip install "metalearn-torch\[tables\]"'):
        read(path)


def csv(folder: Path, text: str) -> Path:
    path = folder / "own.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("003", "3", "12"), ["003", "3", "12"]),
        (("3", "-4", "12"), [3, -4, 12]),
        (("1.5", "2", "1e3"), [1.5, 2.0, 1000.0]),
        ((f"{10**20}", "3", "4"), [f"{10**20}", "3", "4"]),
        (("a", "3", "true"), ["a", "3", "true"]),
    ],
)
def test_labels_and_groups_stay_what_they_are(tmp_path: Path, labels: tuple[str, ...], expected: list[Any]) -> None:
    path = csv(tmp_path, "u,label,shop\n" + "".join(f"{row},{each},{each}\n" for row, each in enumerate(labels)))
    table = read(path, group="shop")
    assert table.groups is not None
    assert table.labels.tolist() == table.groups.tolist() == expected


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_separator_is_seen_in_the_header(tmp_path: Path, mark: str) -> None:
    table = read(csv(tmp_path, "u,v,label\n1,2.5,a\n3,4,b\n".replace(",", mark)))
    assert table.features.tolist() == [[1.0, 2.5], [3.0, 4.0]]
    assert table.labels.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("u,v,label\n1,2,a\n3,nan,b\n", {}, "has nan in row 1 of column 'v'"),
        ("u;label\n1,5;a\n2,5;b\n", {}, "'1,5' in row 0, with a decimal comma"),
        (",u,label\n0,1,a\n1,2,b\n", {}, "has the column '', which is how pandas writes its index"),
        ("Unnamed: 0,u,label\n0,1,a\n1,2,b\n", {}, "has the column 'Unnamed: 0', which is how pandas"),
        ("u,v,label\n1,2,a\n", {"features": ["u", "v", "u"]}, "task.features has the column 'u' twice"),
        ("u,v,label\n1,2,a\n", {"features": 3}, "task.features must be the name of a column.*got 3"),
        ("u,v,label\n1,2,a\n", {"label": 3}, "task.label must be the name of a column.*got 3"),
    ],
)
def test_what_is_odd_in_a_csv_is_told(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(csv(tmp_path, text), **options)


def test_the_index_of_pandas_can_be_named_as_a_feature(tmp_path: Path) -> None:
    assert read(csv(tmp_path, ",u,label\n0,1,a\n1,2,b\n"), features=["u"]).features.tolist() == [[1.0], [2.0]]
