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
MORE_ON_THE_CARD: dict[str, dict[str, object]] = {
    "cavia": {"num_context": 100, "num_adapted_parameters": 100},
    "imaml": {"proximal": 2.0},
    "maml_plus_plus": {"multi_step_until": 5000, "per_step_norms": True, "inner_lr_train": "learned, from 0.4"},
    "meta_sgd": {"inner_lr_train": "learned, from 0.4"},
    "proto_maml": {"head_start": "prototypes", "num_learned_parameters": 516},
    "reptile": {"trains_on": "all", "inner_batch_size": None},
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
    assert MORE_ON_THE_CARD.get(name, {}).items() <= card.items()
    assert evaluate.main([f"run={tmp_path}", "device=cpu"]) == 0
    (path,) = (tmp_path / "evaluations").iterdir()
    assert json.loads(path.read_text())["test"] == found["test"]


def test_a_class_of_ones_own_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "norms_only.py").write_text(
        "from dataclasses import dataclass\n"
        "from metalearn.algorithms import MAML\n"
        "from metalearn.state import NORMS, Filter\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class NormsOnly(MAML):\n"
        "    adapted: Filter = NORMS\n"
        "    proximal: float = 0.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, asked in {"own": (), "asked": ("algorithm.proximal=0.25",)}.items():
        folder = tmp_path / name
        own = ("algorithm._target_=norms_only.NormsOnly", *asked, f"hydra.run.dir={folder}")
        assert train.main([*TINY, *own, "eval.baseline=false"]) == 0
        card = json.loads((folder / "results.json").read_text())["protocol"]
        assert (card["algorithm"], card["num_adapted_parameters"]) == ("NormsOnly", 4 * 8)
        assert card["proximal"] == (0.25 if asked else 0.5)


REFUSED = {
    ("algorithm=cavia", "metagrad=reptile"): "CAVIA learns more than that",
    ("algorithm=proto_maml", "task=sinusoid"): "ProtoMAML is for a classification, and the task 'sinusoid'",
    ("algorithm=pretraining", "task=sinusoid"): "algorithm=r2d2 or algorithm=maml",
    ("algorithm=maml_plus_plus", "model.norm=none"): "per_step_norms=false",
    ("task.augment=crop",): "Did you mean 'CenterCrop'",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_mistakes_are_told_in_a_line(
    overrides: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_images = ("task", "+task", "model")
    few = [each for each in TINY if "task=sinusoid" not in overrides or not each.startswith(of_images)]
    assert train.main([*few, *overrides, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert REFUSED[overrides] in said
    assert len(said.strip().splitlines()) == 1
