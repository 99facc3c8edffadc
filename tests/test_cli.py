"""The command lines: what they refuse and how, and that runs repeat, stop, go on and are measured again."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from metalearn import evaluate, train
from metalearn.train import resume_command

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = (
    "task=sinusoid",
    "model=mlp",
    "model.hidden=[8]",
    "meta.num_steps=4",
    "meta.batch_size=3",
    "meta.log_every=1",
    "meta.checkpoint_every=2",
    "eval.every=2",
    "eval.val_episodes=4",
    "eval.num_episodes=6",
    "eval.num_inner_steps=2",
    "eval.batch_size=4",
    "device=cpu",
    "logger=none",
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs write below the current folder, and nothing there helps the package to find its files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(run: Path | str) -> dict[str, Any]:
    return dict(json.loads((Path(run) / "results.json").read_text()))


def metrics(run: Path | str) -> str:
    return (Path(run) / "metrics.jsonl").read_text()


def trained(run: str, *overrides: str) -> Path:
    assert train.main([*TINY, f"hydra.run.dir={run}", *overrides]) == 0
    return Path(run)


MISTAKES = [
    (["task=omniglott"], "Did you mean 'omniglot'?"),
    (["model=conv5"], "Did you mean 'conv4'"),
    (["logger=wanddb"], "Did you mean 'wandb'?"),
    (["experiment=nope"], "'omniglot_20way_1shot'"),
    (["tassk=omniglot"], "Did you mean 'task'?"),
    (["inne.num_steps=3"], "Did you mean 'inner'?"),
    (["inner.num_stepz=3"], "Did you mean 'num_steps'?"),
    (["task.shotz=3"], "Did you mean 'shots'?"),
    (["+task.shotz=3"], "takes no task.shotz. Did you mean 'shots'?"),
    (["+inner.foo=3"], "Unknown key 'inner.foo'"),
    (["+foo=3"], "Unknown key 'foo'"),
    (["inner={num_steps: 3, lrr: 2}"], "Did you mean 'lr'?"),
    (["hydra.foo=1"], "'hydra.foo'"),
    (["inner.num_steps"], "Expected key=value"),
    (["algorithm.adapted=!head.*"], """Put quotes around its value too: 'algorithm.adapted="!head.*"'"""),
    (["algorithm.adapted=heads.*"], "Did you mean 'head.*'?"),
    (["--foo"], "unrecognized arguments: --foo"),
    (["inner.num_steps=three"], "inner.num_steps=three: expected a whole number, got 'three'."),
    (["meta.num_steps=1.5"], "expected a whole number, got '1.5'."),
    (["task.shots=three"], "task.shots=three: expected a whole number"),
    (["inner.optimizer=adamm"], "Did you mean 'adam'"),
    (["inner.optimizer=adam", "inner.options.b22=0.9"], "adam has no hyper-parameter 'b22'. Did you mean 'b2'"),
    (["inner.optimizer=adam", "inner.options={b2: 1}"], "b2 is 1, but must be in [0, 1)"),
    (["inner.optimizer=muon", "inner.options.ns_coefficients=1"], "ns_coefficients is 1, but there are three numbers"),
    (["inner.options.nesterov=maybe"], "nesterov is 'maybe', but must be True or False"),
    (["inner.options.lr=0.1"], "inner.options.lr is inner.lr"),
    (["execution.tasks=vamp"], "Did you mean 'vmap'?"),
    (["task=null"], "task=null: a run needs one"),
    (["meta=5"], "meta=5: meta is a group"),
    (["=3"], "Expected key=value"),
    (["task=[sinusoid,glyphs]"], "task takes one choice, not a list"),
    (["-m", "task=sinusoid,null"], "task=null: a run needs one"),
    (["sweep=seeds"], "add -m"),
    (["hydra.run.dir="], "give a folder"),
    (["run="], "give a folder"),
    (["inner.lr.x=3"], "'inner.lr' is a value"),
    (["model.hidden=abc"], "model.hidden=abc: expected a list, such as [40,40], got 'abc'."),
    (["+task.amplitude=3"], "expected a list, such as [0.5,0.5], got 3."),
    (["seed=99999999999999999999"], "from 0 to 9223372036854775807"),
    (["meta.num_steps=-3"], "meta.num_steps=-3"),
    (["inner.num_steps=-1"], "inner.num_steps=-1"),
    (["eval.num_inner_steps=-1"], "eval.num_inner_steps=-1"),
    (["meta.batch_size=0"], "meta.batch_size=0"),
    (["meta.lr=nan"], "meta.lr=nan"),
    (["meta.clip=0"], "above 0"),
    (["task.shots=-2"], "`shots`"),
    (["seed=1,2"], "add -m"),
    (["device=gpu"], "Did you mean 'cpu'?"),
    (["device=cuda:99"], "device='cuda:99' is not there"),
    (["hydra.run.dir=/dev/null/run"], "can not be written"),
    (["task=custom"], "task._target_ has no value"),
    (["task._target_=os.system"], "is not a task source"),
    (["task._target_=not_there.Task"], "there is no module 'not_there'"),
    (["model._target_=metalearn.models.Conv5"], "Did you mean 'Conv4'"),
    (["algorithm=fomaml", "metagrad=unrolled"], "Leave metagrad out"),
    (["algorithm.normalisation=stepp"], "Did you mean 'step'?"),
    (["algorithm.normalisation=3"], "normalisation=3 is not a policy. Known: 'frozen'"),
    (["algorithm.normalisation=set"], "'set' is about batch norm, and MLP has none. Leave it at 'module'"),
    (["execution.compile=piecess"], "execution.compile=piecess: there is no such choice. Did you mean 'pieces'?"),
    (["execution.compile=1"], "Known: 'false', 'pieces', 'true', 'whole'."),
    (["execution.compile=pieces", "metagrad=forward_mode"], "ForwardMode does not: take execution.compile=whole"),
    (["execution.switch_at=5"], "but execution.compile is false"),
    (["execution.compile=true", "execution.switch_at=-1"], "execution.switch_at=-1: expected a finite number"),
    (["execution=measure", "execution.compile=true"], "leave execution.compile=true out"),
    (["logger=wandb", "logger.mode=sometimes"], "logger.mode='sometimes'"),
    (["--config-dir=nope"], "--config-dir=nope is not a folder"),
    (["run=nope"], "run=nope is not there"),
    (["run=."], "has no config.yaml"),
    (["-m", "run=."], "leave -m out"),
    (["run=.", "inner.lr=3"], "inner.lr can not change"),
    (["run=.", "logger=null"], "logger=null: a run needs one"),
    (["run=.", "logger=[none,wandb]"], "logger takes one choice"),
    (["run=.", "eval=omniglot"], "Known: 'classification'"),
    (["-m", "inner.num_steps=1,-2", "meta.num_steps=0"], "point 1 (inner.num_steps=-2): inner.num_steps=-2"),
    (["-m", "task=sinusoid,nope", "meta.num_steps=0"], "task=nope"),
]


@pytest.mark.parametrize(("overrides", "expected"), MISTAKES, ids=[" ".join(given) for given, _ in MISTAKES])
def test_a_mistake_is_told_in_a_line_or_two(
    overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [] if any(each.startswith("run=") for each in overrides) else list(TINY)
    given = {each.partition("=")[0] for each in overrides}
    assert train.main([*(each for each in tiny if each.partition("=")[0] not in given), *overrides]) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task.ways=999999"], "ways"),
        (["task.shots=15", "task.query_shots=15"], "shots"),
        (["task.ways=0"], "ways"),
    ],
)
def test_more_than_the_data_hold_is_refused(
    overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["task=glyphs", "meta.num_steps=0", *overrides]) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert len(told.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "keeps none. Build it with track_running_stats=True (model=conv4 model.norm=batch_running)."),
        (["model.norm=batch_running", "execution.buffers=keep"], "execution.buffers=keep returns nothing to the model"),
    ],
)
def test_a_normalisation_policy_that_can_not_be_kept_is_told(
    overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    glyphs = ("task=glyphs", "+task.num_alphabets=3", "+task.characters=8", "+task.drawings=7", "model.filters=2")
    assert train.main([*glyphs, "device=cpu", "logger=none", "algorithm.normalisation=step", *overrides]) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert len(told.strip().splitlines()) <= 2


EVALUATE_MISTAKES = [
    ([], "Which run?"),
    (["run=nope"], "run=nope is not there"),
    (["run=."], "has no config.yaml"),
    (["runn=."], "Did you mean 'run'?"),
    (["run="], "give a folder"),
    (["run=.", "checkpoint=worst"], "Known: 'best', 'last'."),
    (["run=.", "eval.num_episodess=3"], "Did you mean 'num_episodes'?"),
    (["run=.", "eval.num_episodes=0"], "eval.num_episodes=0"),
    (["-m", "run=."], "leave -m out"),
]


@pytest.mark.parametrize(("overrides", "expected"), EVALUATE_MISTAKES, ids=[" ".join(g) for g, _ in EVALUATE_MISTAKES])
def test_evaluate_tells_mistakes_too(overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(overrides) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert len(told.strip().splitlines()) <= 2


def test_the_same_command_twice_gives_the_same_numbers() -> None:
    assert metrics(trained("one")) == metrics(trained("two"))
    assert results("one")["test"] == results("two")["test"]
    assert metrics("one") != metrics(trained("three", "seed=1"))


def test_choosing_nothing_where_that_is_the_default_changes_nothing() -> None:
    assert metrics(trained("one")) == metrics(trained("two", "experiment=null", "sweep=null"))
    assert train.main([*TINY, "-m", "hydra.sweep.dir=sweep", "sweep=null", "seed=0"]) == 0
    assert metrics("sweep/0") == metrics("one")


def test_the_largest_seed_trains() -> None:
    assert results(trained("run", f"seed={2**63 - 1}"))["protocol"]["seed"] == 2**63 - 1


def test_a_run_directory_holds_what_it_promises() -> None:
    run = trained("run")
    assert {"config.yaml", "metrics.jsonl", "results.json", "curves.png", "checkpoints"} <= {
        p.name for p in run.iterdir()
    }
    found = results(run)
    assert set(found["test"]["loss"]) == {"mean", "ci95", "num_episodes"}
    assert found["test"]["loss"]["num_episodes"] == 6
    assert len(found["test_by_step"]["loss"]) == 3
    assert found["protocol"]["meta_batch_size"] == 3
    assert found["baseline"]["loss"]["num_episodes"] == 6


def test_evaluate_gives_the_numbers_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("run")
    assert evaluate.main([f"run={run}"]) == 0
    written = json.loads((run / "evaluations" / "test-best-6-episodes-2-steps.json").read_text())
    assert written["test"] == results(run)["test"]
    assert written["test_by_step"] == results(run)["test_by_step"]
    assert written["baseline"] == results(run)["baseline"]
    assert "inner steps" in capsys.readouterr().out


def test_evaluate_on_more_episodes_and_other_steps() -> None:
    run = trained("run")
    assert (
        evaluate.main([f"run={run}", "eval.num_episodes=9", "eval.num_inner_steps=1", "split=val", "checkpoint=last"])
        == 0
    )
    written = json.loads((run / "evaluations" / "val-last-9-episodes-1-steps.json").read_text())
    assert written["val"]["loss"]["num_episodes"] == 9
    assert len(written["val_by_step"]["loss"]) == 2


def test_evaluate_on_tasks_with_other_support_sets() -> None:
    run = trained("run")
    assert evaluate.main([f"run={run}", "task.shots=3", "eval.num_episodes=4"]) == 0
    written = json.loads((run / "evaluations" / "test-best-4-episodes-2-steps-3-shots.json").read_text())
    assert written["protocol"]["shots"] == 3
    assert written["protocol"]["training_task"]["shots"] == results(run)["protocol"]["shots"] != 3
    assert written["test"]["loss"]["mean"] != results(run)["test"]["loss"]["mean"]


def test_a_folder_with_a_run_is_not_used_again(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("run")
    before = metrics(run)
    assert train.main([*TINY, "hydra.run.dir=run", "meta.num_steps=1"]) == 2
    assert "run" in capsys.readouterr().err
    assert metrics(run) == before
    assert train.main(["run=run"]) == 2
    assert "finished" in capsys.readouterr().err


def test_a_mistake_leaves_no_empty_folder() -> None:
    assert train.main([*TINY, "hydra.run.dir=run", "device=cuda:99"]) == 2
    assert not Path("run").exists()


def test_one_folder_is_for_one_run_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    slow = [*(each for each in TINY if not each.startswith("meta.num_steps")), "meta.num_steps=100000"]
    running = process("train", *slow, "hydra.run.dir=run")
    wait_for_lines(Path("run/metrics.jsonl"), 1, running)
    before = Path("run/config.yaml").read_text()
    for second in ([*TINY, "hydra.run.dir=run", "seed=7"], ["run=run"]):
        assert train.main(second) == 2
        assert "run is in use by another run" in capsys.readouterr().err
    assert Path("run/config.yaml").read_text() == before
    running.send_signal(signal.SIGTERM)
    assert finished(running)[0] == 130
    assert not Path("run/.lock").exists()
    records = [json.loads(line) for line in metrics("run").splitlines()]
    assert len({(record["step"], record["split"]) for record in records}) == len(records)


def test_a_finished_run_is_named_for_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    trained("'my run'")
    assert train.main([*TINY, "hydra.run.dir='my run'"]) == 2
    hint = capsys.readouterr().err.strip().partition("metalearn.evaluate ")[2]
    assert evaluate.main(shlex.split(hint)) == 0


@pytest.mark.parametrize("damage", ["truncated", "foreign", "other model"])
def test_an_unreadable_checkpoint_is_told(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("run")
    state = run / "checkpoints" / "last" / "state.json"
    if damage == "truncated":
        tensors = next(state.parent.glob("*.safetensors"))
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif damage == "foreign":
        state.write_text('{"foreign": true}')
    else:
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("- 8", "- 9"))
    capsys.readouterr()
    assert evaluate.main([f"run={run}", "checkpoint=last"]) == 2
    told = capsys.readouterr().err
    assert "checkpoint" in told
    assert len(told.strip().splitlines()) <= 2


def test_multirun_runs_every_combination() -> None:
    assert train.main([*TINY, "-m", "hydra.sweep.dir=sweep", "seed=0,1", "inner.lr=0.01,0.1"]) == 0
    found = [results(Path("sweep") / str(job))["protocol"] for job in range(4)]
    assert [(card["seed"], card["inner_lr_train"]) for card in found] == [(0, 0.01), (0, 0.1), (1, 0.01), (1, 0.1)]


def test_config_dir_brings_groups_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "task"
    folder.mkdir(parents=True)
    (folder / "waves.yaml").write_text("_target_: metalearn.tasks.Sinusoid\nshots: 3\nquery_shots: 4\n")
    overrides = [each for each in TINY if each != "task=sinusoid"]
    assert train.main([*overrides, "model=mlp", "--config-dir=conf", "task=waves", "hydra.run.dir=run"]) == 0
    assert results("run")["protocol"]["shots"] == 3


def test_config_dir_names_are_known_to_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "conf" / "task"
    folder.mkdir(parents=True)
    (folder / "waves.yaml").write_text("_target_: metalearn.tasks.Sinusoid\nshots: 3\nquery_shots: 4\n")
    assert train.main(["--config-dir=conf", "task=wave"]) == 2
    assert "'waves'" in capsys.readouterr().err
    assert train.main(["--config-dir=conf", "task=waves", "task.shotz=2"]) == 2
    assert "Did you mean 'shots'" in capsys.readouterr().err


OWN_TASK = """
import torch
from metalearn.types import Episodes

class Lines:
    name, kind, input_shape, num_outputs, splits = "lines", "regression", (1,), 1, ("train", "val", "test")

    def __init__(self, *, shots: int, slope: float = 1.0):
        self.shots, self.slope = shots, slope

    def episodes(self, split, indices, *, seed=0):
        x = torch.linspace(-1, 1, self.shots).reshape(1, -1, 1).repeat(len(indices), 1, 1)
        scale = torch.as_tensor(list(indices), dtype=torch.float32).reshape(-1, 1, 1) % 3 * self.slope
        return Episodes((x, scale * x), (x, scale * x), torch.as_tensor(list(indices)))

    def to(self, device):
        return self

    def protocol(self):
        return {"data_set": self.name, "shots": self.shots, "slope": self.slope}
"""


def process(module: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-m", f"metalearn.{module}", *arguments]
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def finished(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = running.communicate(timeout=120)
    return running.returncode, out, err


def test_a_task_of_ones_own_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    # The default group file's ways and glyph_seed are not the new class's arguments: left out, and said so.
    overrides = [each for each in TINY if each != "task=sinusoid"]
    own = ["task._target_=own_task.Lines", "+task.slope=2", "model=mlp", "hydra.run.dir=run"]
    code, _, err = finished(process("train", *overrides, *own))
    assert code == 0, err
    assert "left out" in err
    assert "task.ways" in err
    assert results("run")["protocol"]["slope"] == 2
    code, out, err = finished(process("evaluate", "run=run"))
    assert code == 0, err
    assert "test loss" in out


def test_a_mistake_in_a_process_of_its_own() -> None:
    code, out, err = finished(process("train", "task=omniglott"))
    assert (code, out) == (2, "")
    assert err == "metalearn: task=omniglott: there is no such task. Did you mean 'omniglot'?\n"


@pytest.mark.parametrize(
    ("module", "expected"), [("train", "custom, fc100, glyphs"), ("evaluate", "run=DIR"), ("compare", "run=A run=B")]
)
def test_help_lists_what_there_is(module: str, expected: str) -> None:
    code, out, err = finished(process(module, "--help"))
    assert code == 0, err
    assert expected in out


@pytest.mark.slow
def test_interrupted_and_resumed_is_as_never_interrupted() -> None:
    many = [each for each in TINY if not each.startswith("meta.num_steps")] + ["meta.num_steps=150"]
    assert finished(process("train", *many, "hydra.run.dir=whole"))[0] == 0
    for number in (signal.SIGTERM, signal.SIGINT):
        folder = number.name
        running = process("train", *many, f"hydra.run.dir={folder}")
        wait_for_lines(Path(folder) / "metrics.jsonl", 5, running)
        running.send_signal(number)
        code, _, err = finished(running)
        assert code == 130, err
        assert f"python -m metalearn.train run={folder}" in err
        assert not Path(folder, "results.json").exists()
        assert train.main([*TINY, f"hydra.run.dir={folder}"]) == 2  # nothing lost: the folder is taken
        code, _, err = finished(process("train", f"run={folder}"))
        assert code == 0, err
        assert metrics(folder) == metrics("whole")
        for name in ("test", "test_by_step", "baseline", "val"):
            assert results(folder)[name] == results("whole")[name]


def wait_for_lines(path: Path, count: int, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < count:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_wandb_offline_is_one_override_away() -> None:
    overrides = [each for each in TINY if not each.startswith("logger")]
    run = ["logger=wandb", "logger.mode=offline", "hydra.run.dir=run"]
    code, _, err = finished(process("train", *overrides, *run))
    assert code == 0, err
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))
    assert results("run")["test"] == results(trained("quiet"))["test"]


@pytest.mark.slow
def test_tensorboard_is_one_override_away() -> None:
    overrides = [each for each in TINY if not each.startswith("logger")]
    code, _, err = finished(process("train", *overrides, "logger=tensorboard", "hydra.run.dir=run"))
    assert code == 0, err
    assert list(Path("run/tensorboard").glob("events.out.*"))


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("outputs/glyphs/2026-01-31_10-00-00", "run=outputs/glyphs/2026-01-31_10-00-00"),
        ("my run", """'run='"'"'my run'"'"''"""),
        ("a=b", """'run='"'"'a=b'"'"''"""),
    ],
)
def test_the_resume_command_is_fit_for_a_shell(folder: str, expected: str, tmp_path: Path) -> None:
    assert resume_command(tmp_path / folder) == f"python -m metalearn.train {expected}"


@pytest.mark.parametrize("folder", ["my run", "a=b", "it's"])
def test_the_resume_command_names_the_folder(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: Sequence[str] = shlex.split(resume_command(tmp_path / folder))[3:]
    assert train.main(list(arguments)) == 2
    assert f"run={folder} is not there" in capsys.readouterr().err
