"""What a number comes with: how many episodes, of which seed, chosen by what, transductive or not, after which step."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import evaluate, train
from metalearn.training.results import Results, of_the_first, summarise


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def evaluated(run: Path, *overrides: str) -> dict[str, Any]:
    shutil.copytree(run, "run", dirs_exist_ok=True)
    shutil.rmtree("run/evaluations", ignore_errors=True)
    assert evaluate.main(["run=run", "device=cpu", *overrides]) == 0
    (path,) = Path("run/evaluations").iterdir()
    return dict(json.loads(path.read_text()))


def test_more_than_600_episodes_hold_the_first_600(sinusoid_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer, usual = (
        evaluated(sinusoid_run, f"eval.num_episodes={count}", "eval.num_inner_steps=1") for count in (700, 600)
    )
    assert longer["test"]["loss"]["num_episodes"] == 700
    assert longer["test_first_600"] == usual["test"]
    assert "test_first_600" not in usual
    assert "the first 600 of them: " in capsys.readouterr().out


def test_the_first_episodes_are_after_the_last_inner_step() -> None:
    values = torch.arange(1402.0).reshape(701, 2)
    assert of_the_first({"loss": values}, "val") == {"val_first_600": {"loss": summarise(values[:600, 1])}}
    assert of_the_first({"loss": values[:600]}, "val") == {}
    assert Results({}, values={"loss": values}) == Results({})  # what was measured is what is told


def test_the_test_episodes_can_have_a_seed_of_their_own(sinusoid_run: Path) -> None:
    own, same, other = (evaluated(sinusoid_run, *asked) for asked in ([], ["eval.seed=0"], ["eval.seed=1"]))
    assert own["test"] == same["test"] != other["test"]
    assert [each["protocol"]["episodes_seed"] for each in (own, same, other)] == [0, 0, 1]
    assert other["protocol"]["seed"] == 0


def test_runs_of_several_seeds_can_be_tested_on_the_same_episodes() -> None:
    sizes = ["model.hidden=[4]", "meta.num_steps=0", "eval.num_episodes=4", "eval.baseline=false", "eval.every=0"]
    common = ["-m", "task=sinusoid", *sizes, "device=cpu", "logger=none", "seed=0,1"]
    assert train.main([*common, "eval.seed=5", "hydra.sweep.dir=sweep"]) == 0
    cards = [json.loads(Path(f"sweep/{number}/results.json").read_text())["protocol"] for number in (0, 1)]
    assert [(card["seed"], card["episodes_seed"]) for card in cards] == [(0, 5), (1, 5)]
    assert [card["model_selection"] for card in cards] == ["none: the last checkpoint"] * 2


def test_without_inner_steps_there_is_one_row(glyph_run: Path) -> None:
    found = evaluated(glyph_run, "eval.num_inner_steps=0")
    assert len(found["test_by_step"]["accuracy"]) == 1
    assert found["test"]["accuracy"] == found["test_by_step"]["accuracy"][0]
    assert found["protocol"]["inner_steps_test"] == 0


def test_the_card_says_what_chose_the_checkpoint_and_whether_it_is_transductive(glyph_run: Path) -> None:
    card = json.loads((glyph_run / "results.json").read_text())["protocol"]
    assert card["model_selection"] == "best on 4 episodes of the split 'val', looked at every 2 meta steps"
    assert card["checkpoint"] == "best on validation"
    assert card["transductive"] is True  # conv4 without running statistics: a query is normalised with the others
    assert (card["seed"], card["episodes_seed"]) == (0, 0)
