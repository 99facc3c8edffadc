"""Episodes out of a table: rows that say which class, group and row they are."""

from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.tasks import Arrays, Table
from metalearn.tasks.checks import attribute_findings, batch_findings
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.tables.grouped import GroupedSource
from metalearn.tasks.tables.reading import read_table

NUM_CLASSES, EACH = 20, 9


def plain_table(*, shuffled: bool = True, dtype: type = np.float64) -> Table:
    """Column 0 is the class, column 1 the row within it."""
    labels = np.repeat(np.arange(NUM_CLASSES), EACH)
    features = np.stack([labels, np.tile(np.arange(EACH), NUM_CLASSES)], axis=1).astype(dtype)
    order = np.random.default_rng(0).permutation(len(labels)) if shuffled else np.arange(len(labels))
    return Table(features[order], labels[order], name="somewhere/plain.npz")


def grouped_table() -> Table:
    """10 groups of 12 rows; column 0 is the group, column 1 the row, label (group + row) % 2."""
    groups, rows = np.repeat(np.arange(10), 12), np.arange(120)
    return Table(np.stack([groups, rows], axis=1).astype(np.float64), (groups + rows) % 2, groups)


def test_rows_of_a_class_stay_together_and_splits_apart() -> None:
    source = Arrays(plain_table(), ways=3, shots=2, query_shots=4, standardise=False)
    assert isinstance(source.source, ClassificationSource)
    assert attribute_findings(source) == []
    seen: dict[str, set[str]] = {}
    for split in source.splits:
        episodes = source.episodes(split, range(60))
        assert batch_findings(source, episodes, num_tasks=60) == []
        (x, y), (query_x, query_y) = episodes.support, episodes.query
        classes = x[:, ::2, 0]
        assert torch.equal(x[..., 0], classes.gather(1, y))
        assert torch.equal(query_x[..., 0], classes.gather(1, query_y))
        seen[split] = {str(int(name)) for name in classes.unique()}
        assert seen[split] <= set(source.class_names[split])
        assert len(seen[split]) == len(source.class_names[split]), "every class is drawn"
    assert {split: len(names) for split, names in seen.items()} == {"train": 13, "val": 3, "test": 4}


def test_standardisation_is_by_the_training_rows_alone() -> None:
    table = plain_table()
    source = Arrays(table, ways=3, shots=2, query_shots=4)
    rows = np.isin(table.labels, [int(name) for name in source.class_names["train"]])
    mean, deviation = (torch.from_numpy(each) for each in (table.features[rows].mean(0), table.features[rows].std(0)))
    raw = Arrays(table, ways=3, shots=2, query_shots=4, standardise=False)
    for split in ("train", "test"):
        got = source.episodes(split, range(9)).query[0].double()
        expected = (raw.episodes(split, range(9)).query[0].double() - mean) / deviation
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    train = source.source.classes["train"].examples.double()
    assert float(train.mean(0).abs().max()) < 1e-6
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(2, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert "training split" in source.protocol()["standardised"]
    assert raw.protocol()["standardised"] is False


def test_a_constant_column_becomes_zero() -> None:
    table = plain_table()
    constant = Table(np.concatenate([table.features, np.full((len(table.labels), 1), 0.1)], axis=1), table.labels)
    inputs = Arrays(constant, ways=3, shots=2, query_shots=4).episodes("train", [0]).support[0]
    assert float(inputs[..., 2].abs().max()) < 1e-6


def test_texts_and_negative_numbers_are_names_of_classes() -> None:
    table = plain_table()
    texts = Arrays(Table(table.features, np.array([f"kind {n}" for n in table.labels])), ways=3, shots=1, query_shots=1)
    assert "kind 0" in sum(texts.class_names.values(), ())
    negative = Arrays(Table(table.features, table.labels - 10), ways=3, shots=1, query_shots=1)
    names = sum(negative.class_names.values(), ())
    assert sorted(map(int, names)) == list(range(-10, 10))


def test_a_mapped_file_stays_mapped_where_nothing_changes_in_it(tmp_path: Path) -> None:
    table = plain_table(shuffled=False, dtype=np.float32)
    np.save(tmp_path / "features.npy", table.features)
    np.save(tmp_path / "labels.npy", table.labels)
    lists = {"train": list(range(12)), "val": list(range(12, 16)), "test": list(range(16, 20))}
    mapped = read_table(tmp_path, features=None, label=None, group=None)
    assert isinstance(mapped.features, np.memmap)
    source = Arrays(mapped, ways=3, shots=1, query_shots=1, splits=lists, standardise=False)
    for split, first in (("train", 0), ("test", 16)):
        view = source.source.classes[split].examples.numpy()
        assert np.shares_memory(view, mapped.features), "the rows were copied"
        assert view[0, 0] == first


def test_groups_are_tasks_and_labels_mean_the_same_in_each() -> None:
    source = Arrays(grouped_table(), shots=2, query_shots=4, standardise=False)
    assert isinstance(source.source, GroupedSource)
    groups = {}
    for split in source.splits:
        episodes = source.episodes(split, range(80))
        assert batch_findings(source, episodes, num_tasks=80) == []
        x, y = (torch.cat(pair, dim=1) for pair in zip(episodes.support, episodes.query, strict=True))
        assert (x[..., 0] == x[:, :1, 0]).all(), "an episode is of one group"
        assert torch.equal(x.sum(-1).long() % 2, y)
        assert all(len(set(row)) == 12 for row in x[..., 1].tolist()), "no row is drawn twice"
        groups[split] = {str(int(group)) for group in x[:, 0, 0]}
        assert groups[split] == set(source.group_names[split])
    assert len(set.union(*groups.values())) == 10
    assert (source.num_outputs, source.kind) == (2, "classification")


def test_a_regression_by_groups_standardises_its_targets_too() -> None:
    table = grouped_table()
    values = table.features[:, 1] * 3 + 7
    source = Arrays(Table(table.features, values, table.groups), kind="regression", shots=4, query_shots=8)
    assert batch_findings(source, source.episodes("train", range(9)), num_tasks=9) == []
    rows = np.isin(table.groups, [int(name) for name in source.group_names["train"]])
    card = source.protocol()
    assert card["target_mean"] == pytest.approx([values[rows].mean()])
    assert card["target_standard_deviation"] == pytest.approx([values[rows].std()])
    raw = Arrays(
        Table(table.features, values, table.groups), kind="regression", shots=4, query_shots=8, standardise=False
    )
    for split in ("train", "test"):
        (x, y), (raw_x, raw_y) = (each.episodes(split, range(20)).query for each in (source, raw))
        torch.testing.assert_close(y, (raw_y - values[rows].mean()) / values[rows].std(), rtol=1e-4, atol=1e-4)
        expected = (raw_x.numpy() - table.features[rows].mean(0)) / table.features[rows].std(0)
        np.testing.assert_allclose(x.numpy(), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(raw_y, raw_x[..., 1:] * 3 + 7)
    scaling = source.standardisation
    assert scaling["targets"] == {"mean": card["target_mean"], "std": card["target_standard_deviation"]}
    np.testing.assert_allclose(scaling["inputs"]["mean"], table.features[rows].mean(0))
    assert raw.standardisation is None
    two = Table(table.features, np.stack([values, -values], axis=1), table.groups)
    assert Arrays(two, kind="regression", shots=4, query_shots=8).num_outputs == 2


def test_a_csv_from_the_file_to_an_episode(tmp_path: Path) -> None:
    table = plain_table()
    frame = {"x": table.features[:, 0], "y": table.features[:, 1], "species": [f"s{n}" for n in table.labels]}
    polars.DataFrame(frame).write_csv(tmp_path / "flowers.csv")
    source = Arrays(
        tmp_path / "flowers.csv", label="species", ways=(2, 3), shots=(1, 2), query_shots=2, imbalanced=True
    )
    assert batch_findings(source, source.episodes("val", range(30)), num_tasks=30) == []
    card = source.protocol()
    assert (card["dataset"], card["table"], card["label"]) == ("arrays", "flowers.csv", "species")
    assert (card["features"], card["rows"], card["split_seed"]) == (["x", "y"], 180, 0)
    assert card["classes"] == {"train": 13, "val": 3, "test": 4}


@pytest.mark.parametrize("grouped", [False, True])
def test_to_moves_every_tensor_and_leaves_the_original(grouped: bool) -> None:
    source = (
        Arrays(grouped_table(), shots=2, query_shots=2) if grouped else Arrays(plain_table(), ways=3, query_shots=2)
    )
    moved = source.to("meta").episodes("train", [0, 1])
    assert {tensor.device.type for tensor in (*moved.support[:2], *moved.query[:2], moved.key)} == {"meta"}
    assert source.episodes("train", [0]).support[0].device.type == "cpu"


BAD_LABELS = Table(plain_table().features, plain_table().labels + 0.5, name="t")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, r"`root` is missing: set task\.root=my_table\.csv"),
        (
            {"root": BAD_LABELS},
            r"labels of t are real numbers \(.*5 in row 0\): write whole numbers or texts; values are",
        ),
        ({"kind": "regression"}, r"A regression needs groups.*task\.group=COLUMN"),
        ({"ways": 6}, r"ways=6 is more than the 3 classes of split 'val' of arrays"),
        ({"ways": 3, "shots": 9}, r"need 11 examples a class, and class '\d+' of arrays has 9 in split 'train'"),
        ({"splits": {"train": [0, 1, 2], "test": [2, 3]}}, "class '2' is in the splits 'train' and 'test'"),
        ({"splits": {"train": [0, 1, 99]}}, "class '99', which is not there"),
        ({"splits": {"val": [0, 1], "test": [2, 3]}}, "takes the mean of the split 'train', which is not there"),
        ({"root": Table(np.ones((4, 1)), np.array([0, 0, 1, 1]))}, "There are 2 classes, too few for the splits"),
        ({"root": Table(np.ones((4, 1)), np.zeros((4, 2), dtype=int))}, r"must be one a row, got shape \[4, 2\]"),
        ({"root": grouped_table(), "ways": 5}, "ways=5: with groups, an episode has the classes that its group has"),
        ({"root": grouped_table(), "imbalanced": True}, "imbalanced=true: with groups"),
        ({"root": grouped_table(), "ways": None, "shots": 9}, r"need 11 rows, and class '0' of group '\d' of arrays"),
        (
            {"root": Table(np.ones((6, 1)), np.array(["a"] * 6), np.arange(6)), "kind": "regression", "ways": None},
            r"are texts \(.*'a'.* in row 0\): kind=regression needs numbers",
        ),
    ],
)
def test_bad_tables_and_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Arrays(**({"root": plain_table(), "ways": 3, "shots": 1, "query_shots": 2} | options))  # type: ignore[arg-type]


def test_groups_are_read_from_the_mapped_file_by_the_row(tmp_path: Path) -> None:
    table = grouped_table()
    for name, values in (("features", table.features), ("labels", table.labels), ("groups", table.groups)):
        np.save(tmp_path / f"{name}.npy", values)
    mapped = read_table(tmp_path, features=None, label=None, group=None)
    source = Arrays(mapped, shots=2, query_shots=4)  # standardised, which happens as rows are drawn
    assert np.shares_memory(source.source.features.numpy(), mapped.features)
    assert torch.equal(
        source.episodes("test", [3]).query[0], Arrays(table, shots=2, query_shots=4).episodes("test", [3]).query[0]
    )


def column_table(values: np.ndarray, *, groups: bool) -> Table:
    """20 classes (or 20 groups) of 9 rows, with a column of one's own beside the row's number."""
    marks = np.arange(180) // 9
    features = np.stack([values, np.arange(180.0)], axis=1)
    if groups:
        return Table(features, np.arange(180.0), marks, columns=("mine", "row"))
    return Table(features, marks, columns=("mine", "row"))


def standardised(values: np.ndarray, *, groups: bool) -> torch.Tensor:
    """The column in 2000 training episodes."""
    options = {"kind": "regression"} if groups else {"ways": 3}
    source = Arrays(column_table(values, groups=groups), shots=2, query_shots=4, **options)
    return source.episodes("train", range(2000)).query[0][..., 0].double()


ROWS = np.random.default_rng(0).normal(size=180)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize(
    "values",
    [1.6e9 + 1e-4 * ROWS, 1e-15 * ROWS, 1e-200 * ROWS, 1e200 * ROWS, 1e12 + 1e-2 * ROWS],
    ids=["looks constant", "small", "tiny", "huge", "far"],
)
def test_a_column_of_any_size_is_standardised(values: np.ndarray, groups: bool) -> None:
    found = standardised(values, groups=groups)
    assert abs(float(found.mean())) < 0.1
    assert 0.9 < float(found.std()) < 1.1


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("value", [0.1, 1e9 + 0.1, -3e200])
def test_a_constant_column_is_exactly_0(value: float, groups: bool) -> None:
    assert bool((standardised(np.full(180, value), groups=groups) == 0).all())


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("standardise", [False, True])
def test_what_float32_can_not_hold_is_told_with_its_column(groups: bool, standardise: bool) -> None:
    values = np.full(180, 0.5)
    table = column_table(values, groups=groups)
    options: dict[str, Any] = {"kind": "regression"} if groups else {"ways": 3}
    options |= {"shots": 2, "query_shots": 4, "standardise": standardise}
    source = Arrays(table, **options)
    names = (source.group_names if groups else source.class_names)["test"]
    values[int(names[0]) * 9] = 1e60
    with pytest.raises(UsageError, match=r"has 1e\+60 in column 'mine', which.* is too large for float32"):
        Arrays(column_table(values, groups=groups), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 3}, "task.features must be the name of a column"),
        ({"label": 3}, "task.label must be the name of a column"),
        ({"group": 3}, "task.group must be the name of a column"),
        ({"root": 5}, "`root` must be the path"),
        ({"split_seed": 2**70}, r"`split_seed` must be a whole number below 2\*\*63"),
        ({"splits": []}, "`splits` must give a list"),
        ({"splits": {"train": 5.0}}, "splits.train must be a list"),
    ],
)
def test_options_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Arrays(**({"root": plain_table()} | options))


def test_zero_padded_values_are_values(tmp_path: Path) -> None:
    lines = "".join(f"{row},{row:03d},{row // 10}\n" for row in range(60))
    (tmp_path / "t.csv").write_text("u,label,shop\n" + lines)
    source = Arrays(tmp_path / "t.csv", kind="regression", group="shop", shots=2, query_shots=3, standardise=False)
    inputs, targets = source.episodes("train", range(5)).query
    assert torch.equal(inputs, targets)
