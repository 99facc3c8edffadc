"""A run is used where its data are not, and what is no usable run is told in a line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import metalearn
from metalearn import evaluate, train
from metalearn.errors import UsageError
from metalearn.normalisation import POLICIES
from metalearn.training.task_card import TASK
from metalearn.types import Episodes
from metalearn.use import Learner

X, Y = [[0.0], [1.0], [-2.0]], [0.5, 1.5, -1.0]


@pytest.fixture
def copied(sinusoid_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sinusoid_run, tmp_path / "run"))


def change_config(run: Path, group: str, **values: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[group] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_copy_works_without_the_task(copied: Path, sinusoid_learner: Learner) -> None:
    change_config(copied, "task", _target_="not_there.Task")
    moved = metalearn.load(copied, device="cpu")
    grid = torch.linspace(-5, 5, 7)[:, None]
    assert torch.equal(moved.adapt(X, Y).outputs(grid), sinusoid_learner.adapt(X, Y).outputs(grid))


def test_a_run_of_before_task_json_asks_its_task(copied: Path, sinusoid_learner: Learner) -> None:
    (copied / TASK).unlink()
    assert metalearn.load(copied, device="cpu").task == sinusoid_learner.task
    assert not (copied / TASK).exists()  # loading writes nothing


def test_without_task_json_and_task_it_says_what_writes_the_file(copied: Path) -> None:
    (copied / TASK).unlink()
    target = yaml.safe_load((copied / "config.yaml").read_text())["task"]["_target_"]
    change_config(copied, "task", _target_="not_there.Task")
    with pytest.raises(UsageError, match=r"no task.json.*'not_there'.*metalearn.evaluate run="):
        metalearn.load(copied)
    change_config(copied, "task", _target_=target)
    assert evaluate.main([f"run={copied}", "eval.num_episodes=2"]) == 0
    change_config(copied, "task", _target_="not_there.Task")
    assert metalearn.load(copied, device="cpu").task.name == "sinusoid"


@pytest.mark.parametrize("group", ["model", "algorithm"])
def test_only_models_and_algorithms_are_called(group: str, copied: Path) -> None:
    change_config(copied, group, _target_="os.system")
    with pytest.raises(UsageError, match=f"{group}._target_=os.system is not"):
        metalearn.load(copied)


def test_the_best_and_the_last_checkpoint(glyph_run: Path, tmp_path: Path) -> None:
    best, last = (metalearn.load(glyph_run, checkpoint=name, device="cpu") for name in ("best", "last"))
    steps = {
        name: json.loads((glyph_run / "checkpoints" / name / "state.json").read_text())["step"]
        for name in ("best", "last")
    }
    assert (best.checkpoint, best.step, last.checkpoint, last.step) == ("best", steps["best"], "last", steps["last"])
    unvalidated = Path(shutil.copytree(glyph_run, tmp_path / "run"))
    shutil.rmtree(unvalidated / "checkpoints" / "best")
    assert metalearn.load(unvalidated, device="cpu").checkpoint == "last"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_loaded_run_adapts_with_its_policy_and_its_statistics(
    policy: str, tmp_path: Path, test_episodes: Callable[[Path], Episodes]
) -> None:
    run, task = tmp_path / "run", ("+task.num_alphabets=3", "+task.characters=8", "+task.drawings=7")
    sizes = ("meta.num_steps=3", "eval.every=3", "eval.val_episodes=2", "eval.num_episodes=4", "eval.baseline=false")
    sizes += ("meta.batch_size=2", "eval.num_inner_steps=2")
    model = ("model.filters=4", "model.norm=batch_running", f"algorithm.normalisation={policy}")
    assert train.main([*task, *sizes, *model, "device=cpu", "logger=none", f"hydra.run.dir={run}"]) == 0
    learner = metalearn.load(run, device="cpu")
    assert learner.transductive == (policy == "set")
    episodes = test_episodes(run)
    values = [
        (learner.adapt(x, y).predict(query) == truth).float().mean()
        for x, y, query, truth in zip(*episodes.support, *episodes.query, strict=True)
    ]
    results = json.loads((run / "results.json").read_text())
    assert torch.stack(values).double().mean().item() == results["test"]["accuracy"]["mean"]


def test_the_number_of_inner_steps(sinusoid_run: Path, copied: Path) -> None:
    assert metalearn.load(sinusoid_run).num_inner_steps == 3  # eval.num_inner_steps
    assert metalearn.load(sinusoid_run, num_inner_steps=0).num_inner_steps == 0
    change_config(copied, "eval", num_inner_steps=None)
    assert metalearn.load(copied).num_inner_steps == 1  # inner.num_steps


def test_what_is_no_run_is_told(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = [
        (tmp_path / "nowhere", {}, "is not there"),
        (tmp_path / "empty", {}, "has no config.yaml"),
        (copied, {"checkpoint": "bets"}, "Did you mean 'best'"),
        (copied, {"device": "gpu"}, "is not a device"),
        (copied, {"num_inner_steps": -1}, "num_inner_steps is -1"),
    ]
    for run, options, expected in cases:
        with pytest.raises(UsageError, match=expected):
            metalearn.load(run, **options)
    change_config(copied, "model", hidden=[9])
    with pytest.raises(UsageError, match="does not fit"):
        metalearn.load(copied)
    (copied / TASK).write_text("{}")
    with pytest.raises(UsageError, match=r"task.json can not be read"):
        metalearn.load(copied)
    shutil.rmtree(copied / "checkpoints")
    (copied / TASK).unlink()
    with pytest.raises(UsageError, match="holds no checkpoint"):
        metalearn.load(copied)
