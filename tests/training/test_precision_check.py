"""A run in less than float32 says how far its own meta-gradients are off."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import execution, metagrad, tree
from metalearn.training import Interrupted, StopFlag, train
from metalearn.training.laboratory import prepare_laboratory
from metalearn.training.precision_check import SPLIT, error_of
from tests.training_progress import Told


def checks(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == SPLIT]


def test_what_is_reported_is_the_error_of_the_gradient(tmp_path: Path, make_experiment) -> None:
    experiment = make_experiment(execution=execution.Vmap(precision="bf16"))
    told = Told()
    results = train(experiment, tmp_path, progress=told)
    found = checks(tmp_path)
    assert [line["step"] for line in found] == [0, 1, 2, 4]  # the first three, and after validations (at 2 and 4)
    laboratory = prepare_laboratory(experiment)
    meta, episodes = laboratory.initial_meta(), laboratory.source.episodes("train", range(3), seed=0)
    grads = {
        precision: replace(experiment.execution, precision=precision)
        .value_and_grad(metagrad.Unrolled(), laboratory.train_problem({}))(meta, episodes)
        .grads
        for precision in ("float32", "bf16")
    }
    mixed, exact = (tree.to_vector(tree.cast(grads[name], torch.float64)) for name in ("bf16", "float32"))
    assert found[0]["relative_error"] == pytest.approx(float((mixed - exact).norm() / exact.norm()), rel=1e-6)
    assert found[0]["cosine"] == pytest.approx(float(torch.cosine_similarity(mixed, exact, dim=0)), rel=1e-6)
    assert 1e-4 < found[0]["relative_error"] < 0.5
    card = results.data["protocol"]
    assert (card["precision"], card["precision_at_test"]) == ("bf16", "float32")
    assert [each["step"] for each in card["precision_errors"]] == [0, 1, 2, 4]
    assert card["precision_errors"][0]["relative_error"] == found[0]["relative_error"]
    assert sum("the meta-gradient in bf16 is" in message for message in told.messages) == 4


@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_a_resumed_run_reports_the_same_once(tmp_path: Path, make_experiment, content, stop_at: int) -> None:
    def experiment():
        return make_experiment(execution=execution.Vmap(precision="bf16"))

    train(experiment(), tmp_path / "whole")
    stop = StopFlag()
    with pytest.raises(Interrupted):
        train(experiment(), tmp_path / "parts", stop=stop, progress=Told(stop, at=stop_at))
    train(experiment(), tmp_path / "parts", resume=True)
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert content(tmp_path / "parts/checkpoints/last") == content(tmp_path / "whole/checkpoints/last")


def test_nothing_is_compared_in_float32(tmp_path: Path, make_experiment) -> None:
    results = train(make_experiment(), tmp_path)
    assert checks(tmp_path) == []
    assert results.data["protocol"]["precision"] == "float32"
    assert "precision_errors" not in results.data["protocol"]


def test_windows_are_compared_from_where_they_begin(tmp_path: Path, make_experiment) -> None:
    train(make_experiment(execution=execution.Loop(precision="bf16"), strategy=metagrad.Truncated(1)), tmp_path)
    assert all(0 < line["relative_error"] < 0.5 for line in checks(tmp_path))


def test_the_error_of_a_gradient() -> None:
    one, two = (
        {"a": torch.tensor([3.0]), "b": torch.tensor([5.0])},
        {"b": torch.tensor([4.0]), "a": torch.tensor([3.0])},
    )
    assert error_of(one, two) == {
        "relative_error": pytest.approx(0.2),
        "cosine": pytest.approx(29 / (5 * 34**0.5)),
    }
