"""Runs under each normalisation policy: the card says what was done, and a resumed run goes on with the same bits."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn import UsageError, algorithms, execution, losses
from metalearn.normalisation import POLICIES
from metalearn.training import evaluate, load_checkpoint, train
from metalearn.training.protocol import model_card

SET, TRACKED = "statistics of the current set", "statistics of the current set, tracked"
TASK, STEP = "the task's own running statistics", "running statistics per inner step"
SHARED, FROZEN = "running statistics shared by all tasks", "the model's running statistics, frozen"
RUNNING = "running statistics"

# Support and query in training, support and query at test; the norm; transductive; what returned.
CARDS = {
    "module": ((TRACKED, TRACKED, RUNNING, RUNNING), f"batch norm, {RUNNING} at test", False, "the tasks' mean"),
    "set": ((SET, SET, SET, SET), f"batch norm, {SET}", True, "none"),
    "task": ((TRACKED, TASK, TRACKED, TASK), f"batch norm, {TASK} at test", False, "the tasks' mean"),
    "step": ((TRACKED, TRACKED, STEP, STEP), f"batch norm, {STEP} at test", False, "the tasks' mean"),
    "shared": ((TRACKED, TRACKED, SHARED, SHARED), f"batch norm, {SHARED} at test", False, "the tasks' mean"),
    "frozen": ((FROZEN, FROZEN, FROZEN, FROZEN), f"batch norm, {FROZEN} at test", False, "none"),
}


def _experiment(make_experiment, policy: str, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        module(torch.randn(50, 1))  # running statistics that are not those of a fresh module
    maml = algorithms.MAML(
        loss=losses.mean_squared_error, inner_lr=0.01, num_inner_steps=2, normalisation=policy
    )  # fmt: skip
    settings = {"num_steps": 2, "eval_every": 1, "checkpoint_every": 1, "num_inner_steps_eval": 3}
    return make_experiment(**{"module": module, "algorithm": maml, **settings, **changes})


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_under_each_policy(tmp_path: Path, make_experiment, policy: str) -> None:
    experiment = _experiment(make_experiment, policy)
    results = train(experiment, tmp_path)
    card = json.loads((tmp_path / "results.json").read_text())["protocol"]
    passes, norm, transductive, returned = CARDS[policy]
    names = ("support_at_training", "query_at_training", "support_at_test", "query_at_test")
    assert card["normalisation_policy"] == policy
    assert card["normalised_by"] == dict(zip(names, passes, strict=True))
    assert card["normalisation"] == norm
    assert card["transductive"] is transductive
    assert card["statistics_returned"] == returned
    # What the card says returned, did.
    found = load_checkpoint(tmp_path / "checkpoints" / "last", device="cpu").buffers
    before = experiment.module.state_dict()
    assert found["1.running_mean"].shape == ((3, 8) if policy == "step" else (8,))
    assert torch.equal(found["1.running_mean"], before["1.running_mean"]) == (returned == "none")
    # Measured again, the numbers are the same.
    again = evaluate(experiment, tmp_path / "checkpoints" / "best")
    assert again.data["test"] == results.data["test"]


def test_a_resumed_run_with_statistics_per_step_ends_with_the_same_bits(
    tmp_path: Path, make_experiment, content
) -> None:
    train(_experiment(make_experiment, "step"), tmp_path / "whole")
    train(_experiment(make_experiment, "step", num_steps=1), tmp_path / "parts")
    (tmp_path / "parts" / "results.json").unlink()
    train(_experiment(make_experiment, "step"), tmp_path / "parts", resume=True)
    one, two = (content(tmp_path / name / "checkpoints" / "last") for name in ("whole", "parts"))
    assert one == two
    counts = load_checkpoint(tmp_path / "parts" / "checkpoints" / "last", device="cpu").buffers["1.num_batches_tracked"]
    assert counts.tolist() == [3, 3, 3]  # a row for each inner step and one for the query set; two steps on from 1


def test_a_checkpoint_of_another_policy_is_refused(tmp_path: Path, make_experiment) -> None:
    train(_experiment(make_experiment, "shared"), tmp_path)
    with pytest.raises(UsageError, match=r"'1.running_mean' is torch.float32 \(8,\), this experiment's .* \(3, 8\)"):
        evaluate(_experiment(make_experiment, "step"), tmp_path)


def test_what_makes_no_sense_is_told_before_the_first_step(tmp_path: Path, make_experiment) -> None:
    for changes, words in (
        ({"execution": execution.Vmap(buffers="keep")}, "buffers=keep returns nothing"),
        ({"module": nn.Linear(1, 1)}, "is about batch norm, and Linear has none"),
    ):
        with pytest.raises(UsageError, match=words):
            train(_experiment(make_experiment, "step", **changes), tmp_path / "run")
        assert not (tmp_path / "run" / "checkpoints").exists()


def test_nothing_returns_where_the_execution_keeps_it_back() -> None:
    assert model_card(nn.BatchNorm1d(2), "task", mean_returns=False)["statistics_returned"] == "none"


@pytest.mark.parametrize(
    ("module", "policy", "normalisation", "transductive"),
    [
        (nn.LayerNorm(2), "module", "layer norm", False),
        (nn.Linear(2, 2), "module", "none", False),
        (nn.InstanceNorm1d(2), "module", "instance norm", False),
        (nn.InstanceNorm1d(2, track_running_stats=True), "module", f"instance norm, {RUNNING} at test", False),
        (nn.InstanceNorm1d(2, track_running_stats=True), "set", "instance norm, statistics of each instance", False),
        (nn.BatchNorm1d(2, track_running_stats=False), "set", f"batch norm, {SET}", True),
        (
            nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)), "module",
            f"batch norm, {RUNNING} at test + batch norm, {SET}", True,
        ),
    ],
)  # fmt: skip
def test_cards_of_other_norms(module: nn.Module, policy: str, normalisation: str, transductive: bool) -> None:
    card = model_card(module, policy)
    assert (card["normalisation"], card["transductive"]) == (normalisation, transductive)
    assert ("normalised_by" in card) == ("running" in normalisation or "set" in normalisation or policy == "set")
