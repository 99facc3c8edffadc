"""Every algorithm by name on the command line: training, its protocol card, evaluation."""

import json
from pathlib import Path

import pytest

from metalearn import evaluate, train
from metalearn.config import config_directory

ALGORITHMS = sorted(path.stem for path in (config_directory() / "algorithm").glob("*.yaml"))
# What a row needs beside its name; the reasons are in docs/algorithms.md.
MORE = {
    "maml_plus_plus": ("model.norm=batch_running", "algorithm.normalisation=step"),
    "reptile": ("inner.num_steps=2",),
}
TINY = (
    "task=glyphs", "+task.num_alphabets=3", "+task.characters=8", "+task.drawings=8", "model.filters=4",
    "meta.num_steps=2", "meta.batch_size=2", "eval.every=1", "eval.val_episodes=2", "eval.num_episodes=4",
    "device=cpu", "logger=none",
)  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
def test_from_training_to_evaluation(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([f"algorithm={name}", *TINY, *MORE.get(name, ()), f"hydra.run.dir={tmp_path}"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    found = json.loads((tmp_path / "results.json").read_text())
    assert {"test", "baseline"} <= found.keys()
    card = found["protocol"]
    assert card["num_meta_parameters"] > 0
    assert card.get("num_adapted_parameters", 1) > 0
    assert evaluate.main([f"run={tmp_path}", "device=cpu"]) == 0
    (path,) = (tmp_path / "evaluations").iterdir()
    assert json.loads(path.read_text())["test"] == found["test"]
