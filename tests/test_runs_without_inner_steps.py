"""ProtoNet, R2D2 and the baselines from the command line: trained, resumed, measured again, and used."""

import json
from pathlib import Path

import pytest
import torch

import metalearn
from metalearn import evaluate, train
from metalearn.config import build_source, read_config
from metalearn.training.results import summarise

WORLD = ("task=glyphs", "+task.num_alphabets=3", "+task.characters=8", "+task.drawings=8", "task.query_shots=3")
SIZES = (
    "model.filters=8",
    "meta.num_steps=20",
    "meta.batch_size=4",
    "meta.lr=0.005",
    "eval.every=10",
    "eval.val_episodes=10",
)
QUIET = ("eval.num_episodes=20", "eval.baseline=false", "device=cpu", "logger=none")
CARDS = {
    "protonet": {"algorithm": "ProtoNet", "distance": "euclidean", "train_ways": 8},
    "r2d2": {"algorithm": "R2D2", "initial_regularisation": 1.0},
    "pretraining": {"algorithm": "PretrainedPrototypes", "at_test": "nearest prototypes (cosine)"},
    "pretraining_fine_tuned": {"algorithm": "PretrainedFineTuned", "inner_optimizer": "sgd", "fine_tuning_steps": 20},
}
OPTIONS = {"protonet": ("algorithm.train_ways=8",), "pretraining_fine_tuned": ("algorithm.tuning_steps=20",)}


@pytest.mark.parametrize("name", CARDS)
def test_a_run_from_training_to_use(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, options = tmp_path / "run", OPTIONS.get(name, ())
    # The experiment's own numbers for inner steps are of no concern.
    assert train.main([f"algorithm={name}", *WORLD, *SIZES, *QUIET, *options, f"hydra.run.dir={folder}"]) == 0
    results = json.loads((folder / "results.json").read_text())
    card = results["protocol"]
    assert CARDS[name].items() <= card.items()
    assert (card["inner_steps_train"], card["inner_steps_test"], card["ways"]) == (0, 0, 5)
    assert not any(key.startswith("inner_lr") for key in card)
    accuracy = results["test"]["accuracy"]
    assert accuracy["mean"] - accuracy["ci95"] > 0.25  # chance is 0.2
    assert len(results["test_by_step"]["accuracy"]) == 1
    learner = metalearn.load(folder)
    config = read_config(folder)
    episodes = build_source(config).episodes("test", range(20), seed=0)
    values = [
        (learner.adapt(x, y).predict(query) == truth).float().mean()
        for x, y, query, truth in zip(*episodes.support, *episodes.query, strict=True)
    ]
    assert summarise(torch.stack(values))["mean"] == pytest.approx(
        accuracy["mean"], abs=2e-3
    )  # a tie may fall otherwise
    few = learner.adapt(episodes.support[0][0][:3], ["one", "two", "three"])
    assert set(few.predict(episodes.query[0][0])) <= {"one", "two", "three"}
    torch.testing.assert_close(torch.as_tensor(few.predict_proba(episodes.query[0][0])).sum(1), torch.ones(15).double())
    with pytest.raises(metalearn.UsageError, match="takes no inner steps"):
        learner.with_inner_steps(3)
    capsys.readouterr()
    assert evaluate.main([f"run={folder}", "eval.baseline=false"]) == 0
    assert f"{accuracy['mean']:.2%}" in capsys.readouterr().out
    assert evaluate.main([f"run={folder}", "eval.num_inner_steps=3"]) == 2
    assert (
        f"eval.num_inner_steps=3 is of inner steps, which {card['algorithm']} does not take" in capsys.readouterr().err
    )


def test_fewer_ways_in_the_test_than_in_training(tmp_path: Path) -> None:
    sizes = ("meta.num_steps=2", "meta.batch_size=2", "eval.every=0", "model.filters=4")
    given = [
        *WORLD,
        *sizes,
        *QUIET,
        "task.ways=8",
        "test_task.ways=3",
        "test_task.shots=2",
        f"hydra.run.dir={tmp_path / 'r'}",
    ]
    assert train.main(["algorithm=protonet", *given]) == 0
    results = json.loads((tmp_path / "r/results.json").read_text())
    assert (results["protocol"]["ways"], results["protocol"]["shots"]) == (3, 2)
    assert results["test"]["accuracy"]["mean"] > 0.34
    assert train.main(["algorithm=maml", *given]) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["algorithm=protonet", "inner.lr=0.1"], "inner.lr is of inner steps, which ProtoNet does not take"),
        (
            ["algorithm=r2d2", "eval.num_inner_steps=5"],
            "eval.num_inner_steps is of inner steps, which R2D2 does not take",
        ),
        (["algorithm=protonet", "task=sinusoid"], "ProtoNet is for a classification"),
        (["algorithm=pretraining", "task=sinusoid"], "is for a classification, and the task 'sinusoid'"),
        (["algorithm=r2d2", "metagrad=implicit"], "R2D2 is trained without inner steps, and metagrad Implicit is"),
        (["algorithm=r2d2", "algorithm.normalisation=step"], "Take normalisation='shared'"),
    ],
)
def test_what_makes_no_sense_is_refused(given: list[str], message: str, tmp_path: Path, capsys) -> None:
    world = WORLD if "task=sinusoid" not in given else ()
    assert train.main([*world, *QUIET, *given, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err


def test_resumed_it_is_bit_identical(tmp_path: Path) -> None:
    given = [
        "algorithm=pretraining",
        *WORLD,
        *QUIET,
        "model.filters=4",
        "meta.batch_size=2",
        "model.norm=batch_running",
    ]
    given += [
        "eval.every=2",
        "eval.val_episodes=2",
        "eval.num_episodes=2",
        "meta.checkpoint_every=2",
        "meta.num_steps=6",
    ]
    assert train.main([*given, f"hydra.run.dir={tmp_path / 'whole'}"]) == 0
    assert train.main([*given, "meta.num_steps=4", f"hydra.run.dir={tmp_path / 'part'}"]) == 0
    (tmp_path / "part/results.json").unlink()
    assert train.main([f"run={tmp_path / 'part'}", "meta.num_steps=6", "logger=none"]) == 0
    for folder in ("last", "best"):
        (whole,), (part,) = (
            list((tmp_path / run / "checkpoints" / folder).glob("tensors-*.safetensors")) for run in ("whole", "part")
        )
        assert whole.read_bytes() == part.read_bytes()
