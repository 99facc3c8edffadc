import json
import math
from pathlib import Path

import pytest
import torch

from metalearn.errors import UsageError
from metalearn.training import Results
from metalearn.training.results import by_step, describe, last_step, summarise


def test_interval_is_that_of_the_field() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    found = summarise(values)
    deviation = math.sqrt(sum((value - 4.0) ** 2 for value in (1, 2, 4, 9)) / 3)
    assert found["mean"] == 4.0
    assert found["ci95"] == pytest.approx(1.96 * deviation / 2, rel=1e-12)
    assert found["num_episodes"] == 4


def test_values_that_are_no_numbers_are_null() -> None:
    assert summarise(torch.tensor([1.0]))["ci95"] is None
    found = summarise(torch.tensor([1.0, math.inf]))
    assert found == {"mean": None, "ci95": None, "num_episodes": 2}
    assert describe(found) == "not finite"


def test_steps_are_columns() -> None:
    measured = {"loss": torch.tensor([[1.0, 3.0], [2.0, 5.0], [3.0, 4.0]])}
    assert [row["mean"] for row in by_step(measured)["loss"]] == [2.0, 4.0]
    assert last_step(measured)["loss"] == by_step(measured)["loss"][-1]


def test_saved_results_are_strict_json(tmp_path: Path) -> None:
    results = Results({"test": {"loss": summarise(torch.tensor([math.nan, 1.0]))}})
    results.save(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == results.data
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can not be written"):
        results.save(tmp_path / "file" / "results.json")


def test_descriptions() -> None:
    assert describe({"mean": 0.97123, "ci95": 0.0041}, percent=True) == "97.12% ± 0.41%"
    assert describe({"mean": 0.13214, "ci95": 0.013}) == "0.1321 ± 0.013"
    assert describe({"mean": 0.5, "ci95": None}, percent=True) == "50.00%"
