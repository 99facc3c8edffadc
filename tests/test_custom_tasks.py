"""A task, a model and a test source of one's own on the command line: found, refused in a line, and nothing lost."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from metalearn import evaluate, train
from metalearn.config import read_config

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = (
    "meta.num_steps=6",
    "meta.batch_size=3",
    "meta.checkpoint_every=2",
    "eval.every=0",
    "eval.num_episodes=6",
    "eval.batch_size=4",
    "inner.lr=0.1",
    "device=cpu",
    "logger=none",
)
BLOBS = ["task=custom", "task._target_=blobs.Blobs"]

MODULE = """
import torch
from torch import nn
from metalearn import Episodes, random
from metalearn.tasks.base import episode_keys


class Blobs:
    name, kind, input_shape, num_outputs, splits = "blobs", "classification", (2,), 3, ("train", "val", "test")

    def __init__(self, *, fail: str = "", split: str = "", num_outputs: int = 3):
        self.fail, self.split, self.num_outputs = fail, split, num_outputs
        if fail == "init":
            raise KeyError("no such blob")

    def episodes(self, split, indices, *, seed=0):
        keys = episode_keys(split, indices, seed=seed, splits=self.splits)
        x = random.normal(keys, (12, 2))
        y = torch.arange(12).remainder(3).repeat(len(keys), 1)
        if self.fail and self.split in ("", split):
            x, y, keys = self.broken(split, indices, x, y, keys)
        if self.fail == "tuple" and self.split in ("", split):
            return x, y
        return Episodes((x[..., :6, :], y[..., :6]), (x[..., 6:, :], y[..., 6:]), keys)

    def broken(self, split, indices, x, y, keys):
        if self.fail == "raise":
            return self.helper()
        if self.fail == "late" and split == "train" and list(indices)[0] >= 9:
            return self.helper()
        if self.fail.startswith("later") and split in ("train", "test"):
            return self.later(list(indices)[0] >= (9 if split == "train" else 4), x, y, keys)
        change = {
            "exit": lambda: exit(),
            "negative": lambda: (x, y - 1, keys),
            "float": lambda: (x, y.float(), keys),
            "string": lambda: (x, torch.tensor(["cat", "dog"]), keys),
            "high": lambda: (x, y + 1, keys),
            "one task": lambda: (x[0], y[0], keys),
            "too few": lambda: (x[:1], y[:1], keys[:1]),
            "wide": lambda: (torch.cat([x, x], -1), y, keys),
        }
        return change.get(self.fail, lambda: (x, y, keys))()

    def later(self, now, x, y, keys):
        change = {
            "later labels": lambda: (x, y - 100, keys),
            "later fewer": lambda: (x, y[:, :11], keys),
            "later nan": lambda: (x / 0 * 0, y, keys),
        }
        return change[self.fail]() if now else (x, y, keys)

    def helper(self):
        raise ZeroDivisionError("no\\nblobs")

    def to(self, device):
        return self

    def protocol(self):
        if self.fail == "protocol":
            raise RuntimeError("no protocol")
        return {"dataset": "blobs", "ways": torch.ones(1) if self.fail == "card" else 3}


class Net(nn.Module):
    def __init__(self, input_shape, num_outputs, fail: str = ""):
        super().__init__()
        if fail == "init":
            raise IndexError("no layers")
        self.fail = fail
        self.layer = nn.Linear(input_shape[0], num_outputs + (fail == "wide"))

    def forward(self, x):
        if self.fail == "raise":
            return self.inner(x)
        if self.fail == "branch" and x.sum() > 0:
            return self.layer(-x)
        return (self.layer(x), x) if self.fail == "tuple" else self.layer(x)

    def inner(self, x):
        raise IndexError("nothing here")
"""


@pytest.fixture(autouse=True)
def in_a_folder_with_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("blobs", None)
    Path("blobs.py").write_text(MODULE)
    return tmp_path


def results(run: str) -> dict[str, Any]:
    return dict(json.loads((Path(run) / "results.json").read_text()))


def trained(run: str, *overrides: str) -> Path:
    assert train.main([*TINY, f"hydra.run.dir={run}", *overrides]) == 0
    return Path(run)


@pytest.mark.parametrize("console_script", [False, True])
def test_a_task_is_found_from_the_current_folder(console_script: bool, tmp_path: Path) -> None:
    """As a module, and as the script that an installation puts elsewhere: its own folder is on its path, not ours."""
    command = [sys.executable, "-m", "metalearn.train"]
    if console_script:
        (tmp_path / "bin").mkdir()
        script = tmp_path / "bin" / "metalearn-train"
        script.write_text("from metalearn.train import command\ncommand()\n")
        command = [sys.executable, str(script)]
    done = subprocess.run(
        [*command, *TINY, *BLOBS, "model=mlp", "hydra.run.dir=run"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert results("run")["protocol"]["dataset"] == "blobs"


TASK_FAILURES = [
    ("init", "", "task: Blobs(…) raised KeyError: 'no such blob'", "__init__"),
    ("raise", "", "Blobs.episodes('train', …) raised ZeroDivisionError: no blobs", "helper"),
    ("raise", "test", "Blobs.episodes('test', …) raised ZeroDivisionError: no blobs", "helper"),
    ("string", "", "Blobs.episodes('train', …) raised ValueError: too many dimensions 'str'", "broken"),
    ("protocol", "", "Blobs.protocol() raised RuntimeError: no protocol", "protocol"),
]


@pytest.mark.parametrize(("fail", "split", "expected", "function"), TASK_FAILURES)
def test_what_a_task_raises_is_shown_with_its_own_traceback(
    fail: str, split: str, expected: str, function: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*TINY, *BLOBS, f"+task.fail={fail}", f"+task.split={split}", "model=mlp", "hydra.run.dir=run"]
    assert train.main(overrides) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == f"metalearn: {expected}"
    assert told[0] == "Traceback (most recent call last):"
    files = [line.split('"')[1] for line in told if line.startswith("  File ")]
    assert {Path(name).name for name in files} == {"blobs.py"}
    assert any(line.endswith(f"in {function}") for line in told)
    assert not Path("run").exists()


WRONG_RETURNS = [
    ("negative", "train", "the support labels run from -1 to 1, expected 0 … 2 (num_outputs=3)"),
    ("negative", "test", "the support labels run from -1 to 1, expected 0 … 2 (num_outputs=3)"),
    ("high", "train", "the support labels run from 1 to 3, expected 0 … 2"),
    ("float", "train", "the support labels are torch.float32, expected torch.int64"),
    ("tuple", "train", "it returned a tuple of 2 (a tensor [2, 12, 2] …), expected metalearn.Episodes"),
    ("one task", "train", "the support inputs have shape [6, 2], expected [2, example, 2]"),
    ("too few", "train", "the support inputs have shape [1, 6, 2], expected [2, example, 2]"),
    ("wide", "train", "the support inputs have shape [2, 6, 4], expected [2, example, 2]"),
]


@pytest.mark.parametrize(("fail", "split", "expected"), WRONG_RETURNS)
def test_what_a_task_returns_wrongly_is_told_in_a_line(
    fail: str, split: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*TINY, *BLOBS, f"+task.fail={fail}", f"+task.split={split}", "model=mlp", "hydra.run.dir=run"]
    assert train.main(overrides) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"metalearn: Blobs.episodes('{split}', …): {expected}")
    assert len(told.splitlines()) == 1
    assert not Path("run").exists()


def test_a_protocol_that_json_can_not_hold_is_told_before_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*TINY, *BLOBS, "+task.fail=card", "model=mlp", "hydra.run.dir=run"]) == 2
    assert "Blobs.protocol() returned what JSON can not hold (Object of type Tensor" in capsys.readouterr().err
    assert not Path("run").exists()


MODEL_FAILURES = [
    ("init", "model: Net(…) raised IndexError: no layers", "__init__"),
    ("raise", "Net.forward(…) raised IndexError: nothing here", "inner"),
    ("branch", "or run tasks one after another: execution.tasks=loop", None),
    ("tuple", "Net.forward(…) returned a tuple, expected a tensor [6, 3] (example, num_outputs)", None),
    ("wide", "Net.forward(…) returned a tensor [6, 4], expected [6, 3] (example, num_outputs)", None),
]


@pytest.mark.parametrize(("fail", "expected", "function"), MODEL_FAILURES)
def test_a_model_that_fails_is_told(
    fail: str, expected: str, function: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*BLOBS, "model=custom", "model._target_=blobs.Net", f"+model.fail={fail}", "hydra.run.dir=run"]
    assert train.main([*TINY, *overrides]) == 2
    told = capsys.readouterr().err.splitlines()
    assert expected in told[-1]
    files = {Path(line.split('"')[1]).name for line in told if line.startswith("  File ")}
    assert files == (set() if function is None else {"blobs.py"})
    assert function is None or any(line.endswith(f"in {function}") for line in told)
    # A branch is a mistake only once tasks of a batch disagree, which may be later than the first try.
    assert fail == "branch" or not Path("run").exists()
    if fail == "branch":
        trained("loop", *overrides[:-1], "execution.tasks=loop")


def test_what_was_trained_before_a_failure_is_kept_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    whole = trained("whole", *BLOBS, "model=mlp")
    assert train.main([*TINY, *BLOBS, "+task.fail=late", "model=mlp", "hydra.run.dir=run"]) == 2
    told = capsys.readouterr().err
    assert "metalearn: Blobs.episodes('train', …) raised ZeroDivisionError: no blobs" in told
    assert "Saved after meta step 3 in " in told
    assert told.rstrip().endswith("python -m metalearn.train run=run")
    mended = Path("blobs.py").read_text().replace(">= 9", ">= 999")
    Path("blobs.py").write_text(mended)
    sys.modules.pop("blobs")
    assert train.main(["run=run"]) == 0
    assert (Path("run") / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


LATER_FAILURES = [
    ("later labels", "the support labels run from -100 to -98, expected 0 … 2"),
    ("later fewer", "the query labels have shape [3, 5], expected [3, 6]"),
    ("later nan", "36 of the 36 values of the support inputs are not finite"),
]


@pytest.mark.parametrize(("fail", "expected"), LATER_FAILURES)
def test_a_task_that_goes_wrong_later_is_told_and_the_run_is_kept(
    fail: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [*BLOBS, f"+task.fail={fail}", "model=mlp"]
    assert train.main([*TINY, *wrong, "+task.split=train", "hydra.run.dir=run"]) == 2
    told = capsys.readouterr().err
    assert f"metalearn: Blobs.episodes('train', …): {expected}" in told
    assert "At episodes 9 … 11." in told
    assert "inner.lr" not in told
    assert "Traceback" not in told
    assert "Saved after meta step 3 in " in told
    assert told.rstrip().endswith("python -m metalearn.train run=run")
    # In the second batch of the final test: all of the training is kept.
    assert train.main([*TINY, *wrong, "+task.split=test", "hydra.run.dir=tested"]) == 2
    told = capsys.readouterr().err
    assert f"metalearn: Blobs.episodes('test', …): {expected.replace('3, ', '2, ').replace('36', '24')}" in told
    assert "At episodes 4 … 5." in told
    assert "Saved after meta step 6 in " in told


def test_an_exit_in_a_plug_in_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*TINY, *BLOBS, "+task.fail=exit", "model=mlp", "hydra.run.dir=run"]) == 2
    assert "\nmetalearn: Blobs.episodes('train', …) raised SystemExit" in capsys.readouterr().err
    Path("leaving.py").write_text("raise SystemExit(0)\n")
    assert train.main([*TINY, "task=custom", "task._target_=leaving.Task", "model=mlp"]) == 2
    assert "task._target_=leaving.Task can not be imported (SystemExit: 0)" in capsys.readouterr().err


def test_two_runs_of_one_second_get_a_folder_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Clock:
        @staticmethod
        def now() -> datetime:
            return datetime(2030, 1, 2)

    monkeypatch.setattr("hydra.core.utils.datetime", Clock)
    command = [*TINY, *BLOBS, "model=mlp", "meta.num_steps=1"]
    folder = Path("outputs/custom/2030-01-02_00-00-00")
    assert train.main(command) == 0
    assert train.main(command) == 0
    assert f"checkpoints: {folder.absolute()}-2\n" in capsys.readouterr().out
    found = [results(f"{folder}{suffix}")["test"] for suffix in ("", "-2")]
    assert found[0] == found[1]
    # A folder that was asked for stays a mistake, whatever its name.
    assert train.main([*command, f"hydra.run.dir={folder}"]) == 2
    assert "already holds a finished run" in capsys.readouterr().err


def test_a_module_that_does_not_load_shows_its_own_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Path("half.py").write_text("import blobs\n\ndef broken(:\n    pass\n")
    assert train.main([*TINY, "task=custom", "task._target_=half.Task"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert any("def broken(:" in line for line in told)
    assert told[-1].startswith("metalearn: task._target_=half.Task can not be imported (SyntaxError")
    assert not any("importlib" in line or "plugins.py" in line for line in told)


def test_a_mistake_of_the_user_of_ones_task_is_a_line_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """A source may raise `UsageError` itself: that is an answer, not a failure."""
    Path("mine.py").write_text(
        "from metalearn.errors import UsageError\nfrom blobs import Blobs\n\nclass Mine(Blobs):\n"
        "    def __init__(self, *, ways: int = 3):\n        raise UsageError('ways=3: expected 4.')\n"
    )
    assert train.main([*TINY, "task=custom", "task._target_=mine.Mine", "model=mlp"]) == 2
    assert capsys.readouterr().err == "metalearn: ways=3: expected 4.\n"


def test_trained_on_one_source_and_tested_on_another() -> None:
    other = ["test_task=sinusoid", "test_task.shots=3", "+test_task.amplitude=[4,5]"]
    run = trained("run", "task=sinusoid", "model.hidden=[8]", "eval.every=3", "eval.val_episodes=4", *other)
    alone = trained("alone", "task=sinusoid", "model.hidden=[8]", "eval.every=3", "eval.val_episodes=4")
    card = results("run")["protocol"]
    assert (card["shots"], card["amplitude"]) == (3, [4.0, 5.0])
    assert card["training_task"]["shots"] == results("alone")["protocol"]["shots"] != 3
    # The model selection knows nothing of the test's source.
    without_test = [
        [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"test"' not in line]
        for folder in (run, alone)
    ]
    assert without_test[0] == without_test[1]
    assert results("run")["val"] == results("alone")["val"]
    assert results("run")["test"] != results("alone")["test"]
    stored = read_config(run).test_task
    assert stored == {"_target_": stored["_target_"], "shots": 3, "query_shots": 10, "amplitude": [4, 5]}
    # Measured again, from its own config and from the other run's.
    assert evaluate.main([f"run={run}"]) == 0
    assert evaluate.main([f"run={alone}", *other]) == 0
    again = json.loads(next((run / "evaluations").glob("*.json")).read_text())
    (path,) = (alone / "evaluations").glob("*-on-sinusoid-*.json")
    assert again["test"] == results("run")["test"]
    assert json.loads(path.read_text())["protocol"]["shots"] == 3


def test_other_splits_are_those_of_the_training_task() -> None:
    run = trained("run", "task=sinusoid", "model.hidden=[8]", "test_task.shots=3")
    assert results("run")["protocol"]["shots"] == 3
    assert evaluate.main([f"run={run}", "split=val"]) == 0
    assert evaluate.main([f"run={run}", "split=val", "test_task.query_shots=7"]) == 0
    val, other = sorted((run / "evaluations").glob("val-*.json"), key=lambda path: len(path.name))
    assert json.loads(val.read_text())["protocol"]["shots"] == 10
    assert json.loads(other.read_text())["protocol"]["query_shots"] == 7


TEST_TASK_MISTAKES = [
    (["test_task=sinusoidd"], "test_task.name: task=sinusoidd: there is no such task. Did you mean 'sinusoid'?"),
    (["test_task=sinusoid", "test_task.shotz=3"], "takes no test_task.shotz. Did you mean 'shots'?"),
    (["test_task._target_=os.system"], "test_task._target_=os.system is not a task source"),
    (["test_task._target_=blobs.Blobs"], "has kind classification, the training task (sinusoid) regression"),
    (["test_task.shots=-2"], "`shots`"),
    (["test_task=[sinusoid]"], "test_task"),
    (["test_task="], "test_task= names no task"),
]


@pytest.mark.parametrize(
    ("overrides", "expected"), TEST_TASK_MISTAKES, ids=[" ".join(o) for o, _ in TEST_TASK_MISTAKES]
)
def test_a_mistake_in_the_test_task_is_told(
    overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY, "task=sinusoid", "model.hidden=[8]", "hydra.run.dir=run", *overrides]) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert len(told.splitlines()) == 1
    assert not Path("run").exists()


def test_a_test_task_of_another_width_is_refused_with_the_fix(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["test_task._target_=blobs.Blobs", "+test_task.num_outputs=4"]
    assert train.main([*TINY, *BLOBS, "model=mlp", "hydra.run.dir=run", *overrides]) == 2
    told = capsys.readouterr().err
    assert "test_task (blobs) has num_outputs 4, the training task (blobs) 3" in told
    assert "ways=3" in told


def test_a_test_task_of_other_inputs_is_not_advised_to_resize_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wide.py").write_text(
        "from metalearn.tasks import Sinusoid\n\n\nclass Wide(Sinusoid):\n"
        "    def __init__(self):\n        super().__init__()\n        self.input_shape = (3,)\n"
    )
    overrides = ["task=sinusoid", "test_task._target_=wide.Wide", "model.hidden=[8]", "hydra.run.dir=run"]
    assert train.main([*TINY, *overrides]) == 2
    told = capsys.readouterr().err
    assert "has input_shape (3,), the training task (sinusoid) (1,)" in told
    assert "image_size" not in told


@pytest.mark.parametrize("method", ["return Blobs()", "return type(self)()"])
def test_a_subclass_keeps_its_overrides_on_the_device(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A `to` that names its class would train a subclass on the parent's episodes, and say nothing."""
    Path("blobs.py").write_text(
        MODULE.replace("        return self\n", f"        {method}\n") + '\n\nclass Mine(Blobs):\n    name = "mine"\n'
    )
    code = train.main([*TINY, "task=custom", "task._target_=blobs.Mine", "model=mlp", "hydra.run.dir=run"])
    told = capsys.readouterr().err
    if "type(self)" in method:
        assert code == 0
        assert results("run")["protocol"]["dataset"] == "blobs"  # its own `protocol` says so
    else:
        assert code == 2
        assert "Mine.to(device) returned a Blobs" in told
        assert "Write type(self)(…)" in told
        assert not Path("run").exists()


def test_what_a_task_says_of_itself_is_checked_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    Path("blobs.py").write_text(MODULE + '\n\nclass Mine(Blobs):\n    label_names = ("a", "b")\n')
    code = train.main([*TINY, "task=custom", "task._target_=blobs.Mine", "model=mlp", "hydra.run.dir=run"])
    assert code == 2
    assert "there are 2 label_names for num_outputs=3" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_run_that_is_called_like_a_number_is_found() -> None:
    trained("1.10", "task=sinusoid", "model.hidden=[8]")
    assert (Path("1.10") / "results.json").is_file()
    assert evaluate.main(["run=1.10", "eval.num_episodes=2"]) == 0
    assert list(Path("1.10/evaluations").glob("*.json"))


@pytest.fixture
def mixed() -> list[str]:
    sources = "[sinusoid,{task: sinusoid, shots: 4, weight: 2},{_target_: metalearn.tasks.Sinusoid, x_range: [0, 1]}]"
    return ["task=mixture", f"task.sources={sources}", "model=mlp", "model.hidden=[8]", "inner=regression"]


def test_a_mixture_is_built_of_full_nodes(mixed: list[str]) -> None:
    run = trained("run", *mixed)
    stored = read_config(run).task["sources"]
    assert [node.get("weight") for node in stored] == [None, 2, None]
    assert [node.get("shots") for node in stored] == [10, 4, None]
    assert all(node["_target_"] for node in stored)
    assert evaluate.main([f"run={run}"]) == 0
    (again,) = (run / "evaluations").glob("*.json")
    assert json.loads(again.read_text())["test"] == results("run")["test"]


MIXTURE_MISTAKES = [
    ("[sinusoid,sinusoidd]", "task.sources[1].task: task=sinusoidd: there is no such task. Did you mean 'sinusoid'?"),
    ("[sinusoid,3]", "task.sources[1]=3: expected a task's name"),
    ("[{weight: 2}]", "expected a task's name"),
    ("[]", "a mixture needs a list of tasks"),
    ("sinusoid", "a mixture needs a list of tasks"),
    ("[{task: sinusoid, shotz: 2}]", "takes no task.sources[0].shotz. Did you mean 'shots'?"),
    ("[{task: sinusoid, weight: x}]", "weight"),
]


@pytest.mark.parametrize(("sources", "expected"), MIXTURE_MISTAKES)
def test_a_mistake_in_a_mixture_is_told(
    sources: str, expected: str, mixed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mixed[1] = f"task.sources={sources}"
    assert train.main([*TINY, *mixed, "hydra.run.dir=run"]) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert len(told.splitlines()) <= 2
    assert not Path("run").exists()
