"""`python -m metalearn.compare`: two runs on the same episodes, what it writes, and what it refuses and how."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metalearn import compare, evaluate, train
from metalearn.config import repeated

SMALL = ("eval.num_episodes=12", "device=cpu")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def other(run: Path, name: str, **changes: Any) -> str:
    """A copy of a run with a few keys of its configuration changed: the same weights, used otherwise."""
    shutil.copytree(run, name)
    path = Path(name, "config.yaml")
    config = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *above, last = key.split("__")
        node = config
        for part in above:
            node = node[part]
        node[last] = value
    path.write_text(yaml.safe_dump(config))
    return name


def written(folder: str = "out") -> dict[str, Any]:
    return dict(json.loads(Path(folder, "compare.json").read_text()))


def test_two_runs_on_the_same_episodes(glyph_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = other(glyph_run, "slower", inner__lr=0.001, eval__num_inner_steps=1)
    before = sorted(Path(slower).rglob("*"))
    assert compare.main([f"run={glyph_run}", f"run={slower}", *SMALL, "out=out"]) == 0
    told = capsys.readouterr().out
    data = written()
    assert "test accuracy on the same 12 episodes (their seed: 0), after 3 and 1 inner steps" in told
    assert "inner_lr_test: 0.1 | 0.001" in told
    assert "Written to out/compare.json and compare.png" in told
    assert Path("out/compare.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(Path(slower).rglob("*")) == before
    a, b = (torch.tensor(data["per_episode"]["accuracy"][side][0], dtype=torch.float64) for side in "ab")
    found = data["differences"]["accuracy"]
    assert len(a) == 12
    assert found["mean"] == pytest.approx((a - b).mean().item(), abs=1e-12)
    assert found["standard_error"] == pytest.approx((a - b).std().item() / 12**0.5, rel=1e-9)
    assert data["protocol_differences"]["inner_lr_test"] == [0.1, 0.001]
    # Each side alone is what `evaluate` says of it.
    assert evaluate.main([f"run={slower}", *SMALL]) == 0
    alone = json.loads(Path("slower/evaluations/test-best-12-episodes-1-steps.json").read_text())
    assert data["b"]["runs"][0]["test"] == data["b"]["summary"] == alone["test"]
    assert data["b"]["runs"][0]["test_by_step"] == alone["test_by_step"]


def test_a_run_beside_itself_differs_by_nothing(sinusoid_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([f"run={sinusoid_run}", f"run={sinusoid_run}", *SMALL]) == 0
    told = capsys.readouterr().out
    assert "loss A - B: 0 ± 0, p = 1: not distinguishable at 95%" in told
    assert "The protocol cards do not differ." in told
    (folder,) = Path("outputs/compare").iterdir()
    found = written(str(folder))["differences"]["loss"]
    assert (found["mean"], found["ci95"], found["better"]) == (0.0, 0.0, None)


def test_several_seeds_of_each(sinusoid_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = [str(sinusoid_run), other(sinusoid_run, "a1", seed=1)]
    b = [other(sinusoid_run, f"b{seed}", seed=seed, inner__lr=0.1) for seed in (0, 1)]
    sides = [f"run={','.join(a)}", f"run={','.join(b)}", *SMALL, "eval.seed=7"]
    assert compare.main([*sides, "out=out"]) == 0
    told = capsys.readouterr().out
    assert "(their seed: 7)" in told
    assert "2 seeds, standard deviation over them" in told
    assert "b1 (seed 1)" in told
    assert "about other test episodes and other seeds of the training." in told
    data = written()
    assert data["differences"]["loss"]["includes"] == ["episodes", "seeds"]
    assert data["a"]["summary"]["loss"]["num_runs"] == 2
    assert [run["protocol"]["episodes_seed"] for run in data["a"]["runs"] + data["b"]["runs"]] == [7] * 4
    assert "seed" not in data["protocol_differences"]
    assert compare.main([*sides, "out=paired", "pair_seeds=true"]) == 0
    assert written("paired")["differences"]["loss"]["includes"] == ["episodes", "pairs of seeds"]


def test_both_can_be_measured_on_tasks_of_other_sizes(sinusoid_run: Path) -> None:
    more = other(sinusoid_run, "more", task__shots=3)
    assert compare.main([f"run={sinusoid_run}", f"run={more}", *SMALL, "task.shots=4", "out=out"]) == 0
    cards = [written()[side]["runs"][0]["protocol"] for side in "ab"]
    assert [card["shots"] for card in cards] == [4, 4]
    assert cards[1]["training_task"]["shots"] == 3


def test_beside_one_that_takes_no_inner_steps(glyph_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ("task=glyphs", "task.shots=2", "+task.num_alphabets=3", "+task.characters=8", "+task.drawings=8")
    sizes = ("model.filters=4", "meta.num_steps=1", "meta.batch_size=1", "eval.every=0", "eval.num_episodes=2")
    quiet = ("eval.baseline=false", "device=cpu", "logger=none", "hydra.run.dir=metric")
    assert train.main(["algorithm=protonet", *task, *sizes, *quiet]) == 0
    assert compare.main([f"run={glyph_run}", "run=metric", *SMALL, "eval.num_inner_steps=2", "out=out"]) == 0
    assert "after 2 and 0 inner steps" in capsys.readouterr().out
    cards = [written()[side]["runs"][0]["protocol"] for side in "ab"]
    assert [card["inner_steps_test"] for card in cards] == [2, 0]
    assert cards[1]["transductive"] in (True, False)
    assert cards[1]["model_selection"] == "none: the last checkpoint"
    assert compare.main(["run=metric", "run=metric", *SMALL, "eval.num_inner_steps=2"]) == 2
    assert "eval.num_inner_steps=2 is of inner steps, which ProtoNet does not take" in capsys.readouterr().err


MISTAKES = [
    ([], "Which two runs?"),
    (["run=GLYPHS"], "Which two runs?"),
    (["run=GLYPHS", "run="], "Which two runs?"),
    (["run=GLYPHS", "run=GLYPHS", "run=GLYPHS"], "Several seeds of a side go into one, between commas"),
    (["run=GLYPHS", "run=nope"], "run=nope is not there"),
    (["run=GLYPHS", "run=."], "has no config.yaml"),
    (["-m", "run=GLYPHS", "run=GLYPHS"], "leave -m out"),
    (["run=GLYPHS", "run=GLYPHS", "checkpoint=worst"], "Known: 'best', 'last'."),
    (["run=GLYPHS", "run=GLYPHS", "eval.num_episodess=3"], "Did you mean 'num_episodes'?"),
    (["run=GLYPHS", "run=GLYPHS", "split=tset"], "Did you mean 'test'?"),
    (["run=GLYPHS", "run=GLYPHS", "eval.seed=-1"], "eval.seed=-1"),
    (["run=GLYPHS", "run=GLYPHS", "out="], "out= names no folder"),
    (["run=GLYPHS", "run=GLYPHS", "out=/dev/null/out"], "out=/dev/null/out can not be written"),
    (["run=SINUSOID", "run=GLYPHS"], "A is tested on a regression (sinusoid), B on a classification (glyphs)"),
    (["run=GLYPHS,GLYPHS", "run=GLYPHS"], "A: two runs have the seed 0"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[" ".join(given) for given, _ in MISTAKES])
def test_a_mistake_is_told_in_a_line_or_two(
    arguments: list[str], expected: str, glyph_run: Path, sinusoid_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(
        [each.replace("GLYPHS", str(glyph_run)).replace("SINUSOID", str(sinusoid_run)) for each in arguments], capsys
    )
    assert expected in told


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said; nothing is left behind."""
    assert compare.main(arguments) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) <= 2
    assert not list(Path().glob("outputs/compare/*"))
    return told


@pytest.mark.parametrize(
    ("changes", "expected", "fix"),
    [
        ({"task__shots": 3}, "shots: 10 in A, 3 in B", "add task.shots=…"),
        (
            {"task__x_range": [-1.0, 1.0]},
            "x_range: [-5.0, 5.0] in A, [-1.0, 1.0] in B",
            "measure both on the same: test_task=NAME",
        ),
    ],
)
def test_runs_on_other_episodes_are_refused(
    changes: dict[str, Any], expected: str, fix: str, sinusoid_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused([f"run={sinusoid_run}", f"run={other(sinusoid_run, 'other', **changes)}"], capsys)
    assert expected in told
    assert fix in told


def test_the_runs_of_a_side_differ_in_their_seed_alone(sinusoid_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = other(sinusoid_run, "b", seed=1, inner__lr=0.1)
    assert "differ in inner.lr, not in their seed" in refused([f"run={sinusoid_run},{b}", f"run={b}"], capsys)
    longer = other(sinusoid_run, "longer", seed=1, meta__num_steps=40)
    assert "differ in meta.num_steps" in refused([f"run={sinusoid_run},{longer}", f"run={b}"], capsys)
    seeds = refused([f"run={sinusoid_run}", f"run={b}", "pair_seeds=true"], capsys)
    assert "A has the seeds [0], B [1]" in seeds


def test_nothing_is_written_over(sinusoid_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [f"run={sinusoid_run}", f"run={sinusoid_run}", *SMALL, "out='my comparison'"]
    assert compare.main(asked) == 0
    before = Path("my comparison/compare.json").read_bytes()
    assert compare.main(asked) == 2
    assert "already holds compare.json" in capsys.readouterr().err
    assert Path("my comparison/compare.json").read_bytes() == before


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a,b", ["a", "b"]),
        ("my run, b c", ["my run", "b c"]),
        ("'my, run',\"b\"", ["my, run", "b"]),
        (r"'it\'s'", ["it's"]),
        ("1.10", ["1.10"]),
        ("a=b[0]", ["a=b[0]"]),
        ("a,,", ["a"]),
        ("", []),
    ],
)
def test_a_side_is_a_list_of_folders(value: str, expected: list[str]) -> None:
    assert repeated([f"run={value}", "seed=1", "runs=3"], "run") == ([expected], ["seed=1", "runs=3"])


def test_as_a_process(sinusoid_run: Path) -> None:
    command = [sys.executable, "-m", "metalearn.compare", f"run={sinusoid_run}", "run=nope"]
    done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "metalearn: run=nope is not there. Give the folder of a run, such as outputs/glyphs/….\n"
