"""Runs on tables: rows go in as they stand in the table; classes that all tasks have in common keep their outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metalearn
from metalearn import algorithms, functionalize, losses, train
from metalearn.errors import UsageError
from metalearn.models import MLP
from metalearn.tasks import Arrays, Table
from metalearn.training import TaskCard
from metalearn.use import Learner

ROWS, GROUPS = 16, 8


def table(kind: str) -> Table:
    """Groups of rows in units far from 0 and 1; column 0 tells the row."""
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(GROUPS), ROWS)
    features = np.stack([np.arange(len(groups)) * 1e4, draw.normal(5, 3, len(groups))], axis=1)
    labels = np.array(["no", "yes", "don't know"])[np.arange(len(groups)) % 3]
    return Table(features, labels if kind == "classification" else features[:, 1] * 100 + 1e5, groups)


def learner_for(source: Arrays) -> Learner:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MLP(input_shape=source.input_shape, num_outputs=source.num_outputs, hidden=(8,))
    model = functionalize(module).eval()
    loss = losses.cross_entropy if source.kind == "classification" else losses.mean_squared_error
    maml = algorithms.MAML(loss=loss, inner_lr=0.1, num_inner_steps=2)
    return Learner(task=TaskCard.of(source), algorithm=maml, model=model, meta=maml.init(model))


def by_hand(learner: Learner, support: Any, query: Tensor) -> Tensor:
    adapted = learner.algorithm.adapt(learner.model, learner.meta, learner.model.buffers, support)
    return learner.algorithm.predict(learner.model, learner.meta, adapted, query)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_rows_as_they_stand_in_the_table_are_what_the_episodes_hold(kind: Any) -> None:
    rows = table(kind)
    shots = {"shots": 2, "query_shots": 3} if kind == "classification" else {"shots": 5, "query_shots": 5}
    standard, raw = (Arrays(rows, kind=kind, standardise=each, **shots) for each in (True, False))
    learner = learner_for(standard)
    assert learner.task.inputs is not None
    inside, outside = (source.episodes("test", [0, 1]) for source in (standard, raw))
    for task in range(2):
        expected = by_hand(learner, tuple(each[task] for each in inside.support[:2]), inside.query[0][task])
        x, y = outside.support[0][task], outside.support[1][task]
        labels = y if kind == "regression" else [learner.task.label_names[each] for each in y.tolist()]
        adapted = learner.adapt(x.double(), labels)
        found = adapted.outputs(outside.query[0][task].double())
        if kind == "classification":
            places = [learner.task.label_names.index(each) for each in adapted.classes_]
            torch.testing.assert_close(found, expected[:, places], rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            units = learner.task.targets
            assert units is not None
            torch.testing.assert_close(
                adapted.predict(outside.query[0][task].double()), units.undo(expected), rtol=1e-4, atol=1e-2
            )


def test_classes_that_are_the_same_in_all_tasks_keep_their_outputs() -> None:
    source = Arrays(table("classification"), shots=2, query_shots=3)
    learner = learner_for(source)
    assert learner.task.label_names == ("don't know", "no", "yes")
    x = torch.tensor([[1e4, 4.0], [2e4, 5.0], [3e4, 6.0], [4e4, 7.0]])
    # Untouched by adaptation, the outputs of two classes are those of their names, whatever comes first in the support.
    outputs = learner.adapt(x, ["yes", "no", "yes", "no"], num_inner_steps=0)
    everything = learner.adapt(x, ["don't know", "no", "yes", "no"], num_inner_steps=0)
    assert outputs.classes_.tolist() == ["no", "yes"]
    assert torch.equal(outputs.outputs(x), everything.outputs(x)[:, 1:])
    with pytest.raises(UsageError, match=r"the class 'ja', which is none of the classes of this run's tasks. .*'yes'"):
        learner.adapt(x, ["ja", "no", "ja", "no"])


def test_a_run_on_a_csv_is_used_where_the_csv_is_not(tmp_path: Path) -> None:
    rows = table("regression")
    lines = [
        f"{x[0]},{x[1]},{label},{group}"
        for x, label, group in zip(rows.features, rows.labels, rows.groups, strict=True)
    ]
    path, run = tmp_path / "shops.csv", tmp_path / "run"
    path.write_text("\n".join(["day,price,label,shop", *lines]))
    task = ["task=arrays", f"task.root={path}", "task.group=shop", "task.kind=regression", "task.query_shots=5"]
    groups = ["inner=regression", "meta=regression", "eval=regression", "model.hidden=[8]"]
    sizes = ["meta.num_steps=2", "eval.num_episodes=2", "eval.val_episodes=0", "eval.baseline=false", "device=cpu"]
    assert train.main([*task, *groups, *sizes, "logger=none", f"hydra.run.dir={run}"]) == 0
    path.unlink()
    regressor = metalearn.FewShotRegressor(run, device="cpu").fit(rows.features[:8], rows.labels[:8])
    predicted = regressor.predict(rows.features[8:16])
    # In the units of the table: an untrained model answers near the mean of the targets, not near 0.
    assert abs(predicted.mean() - rows.labels.mean()) < 2 * rows.labels.std()
    assert regressor.n_features_in_ == 2
