"""Sweeps from the command line: what runs, what runs again, what is refused, and what they end with."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from metalearn import train
from metalearn.config import config_directory
from metalearn.config.grid import read_sweep
from metalearn.errors import UsageError
from metalearn.sweeps import Choices, Interval

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = {
    "task": "sinusoid",
    "model": "mlp",
    "model.hidden": "[8]",
    "meta.num_steps": "2",
    "meta.batch_size": "2",
    "meta.log_every": "1",
    "meta.checkpoint_every": "1",
    "eval.every": "1",
    "eval.val_episodes": "2",
    "eval.num_episodes": "3",
    "eval.num_inner_steps": "1",
    "eval.baseline": "false",
    "device": "cpu",
    "logger": "none",
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*overrides: str) -> list[str]:
    given = {each.partition("=")[0] for each in overrides}
    return ["-m", *(f"{key}={value}" for key, value in TINY.items() if key not in given), *overrides]


def sweep(*overrides: str, directory: str = "sweep") -> int:
    return train.main(command(f"hydra.sweep.dir={directory}", *overrides))


def table(directory: str | Path = "sweep") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((Path(directory) / "sweep.csv").read_text())))


def results(folder: Path | str) -> dict[str, Any]:
    return {
        name: value
        for name, value in json.loads((Path(folder) / "results.json").read_text()).items()
        if name != "protocol"
    }


def written(folders: Iterable[Path]) -> dict[str, int]:
    return {str(folder): (folder / "results.json").stat().st_mtime_ns for folder in folders}


def test_a_sweep_ends_with_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("inner.lr=0.01,0.1", "inner.num_steps=1,2") == 0
    assert {"sweep.csv", "sweep.json", "sweep.png", "0", "1", "2", "3"} <= set(os.listdir("sweep"))
    rows = table()
    assert [(row["inner.lr"], row["inner.num_steps"]) for row in rows] == [
        ("0.01", "1"), ("0.01", "2"), ("0.1", "1"), ("0.1", "2")
    ]  # fmt: skip
    for row in rows:
        found = results(Path("sweep") / row["folder"])
        assert float(row["val_loss_mean"]) == found["val"]["loss"]["mean"]
        assert float(row["test_loss_mean"]) == found["test"]["loss"]["mean"]
    best = json.loads(Path("sweep/sweep.json").read_text())["best_on_validation"]
    assert best["means"]["val"] == min(float(row["val_loss_mean"]) for row in rows)
    said = capsys.readouterr()
    assert "* best on validation" in said.out
    assert said.err == ""


def test_the_numbers_are_those_of_single_runs() -> None:
    assert sweep("seed=3,4") == 0
    alone = [each for each in command("seed=4", "hydra.run.dir=alone") if each != "-m"]
    assert train.main(alone) == 0
    assert results("sweep/1") == results("alone")
    assert Path("sweep/1/metrics.jsonl").read_text() == Path("alone/metrics.jsonl").read_text()


def test_the_same_command_runs_only_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert train.main(command("seed=0,1")) == 0
    assert "2 of 2 points are there already." in capsys.readouterr().out
    (folder,) = Path("outputs/multirun").iterdir()  # one for the command, whenever it is given
    assert folder.name.startswith("sinusoid-")
    (folder / "1" / "results.json").unlink()
    before = written([folder / "0"])
    assert train.main(command("seed=0,1", "logger=console")) == 0
    assert "1 of 2 points are there already." in capsys.readouterr().out
    assert written([folder / "0"]) == before
    assert len(table(folder)) == 2
    assert train.main(command("seed=0,2")) == 0
    assert len(list(Path("outputs/multirun").iterdir())) == 2


def test_a_point_is_known_by_its_configuration() -> None:
    assert sweep("seed=0,1") == 0
    before = written([Path("sweep/0"), Path("sweep/1")])
    assert sweep("seed=2,1,0", "meta.log_every=2") == 0  # another order and number, and what changes no number
    assert written([Path("sweep/0"), Path("sweep/1")]) == before
    assert [row["folder"] for row in table()] == ["2", "1", "0"]
    assert sweep("seed=0,1", "eval.num_episodes=4") == 0  # another measurement is another point
    assert [row["folder"] for row in table()] == ["3", "4"]


def test_a_failed_point_is_told_and_the_rest_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("task.shots=5,-1,6") == 2
    said = capsys.readouterr()
    assert said.err == "metalearn: point 1 (task.shots=-1): `shots` must be a whole number of at least 1, got -1.\n"
    assert [row["status"] for row in table()] == ["finished", "failed", "finished"]
    assert "`shots` must be" in table()[1]["message"]
    before = written([Path("sweep/0"), Path("sweep/2")])
    assert sweep("task.shots=5,-1,6") == 2  # it is tried again, the others are not
    assert "2 of 3 points are there already." in capsys.readouterr().out
    assert written([Path("sweep/0"), Path("sweep/2")]) == before


def test_a_task_that_raises_fails_its_points_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken_task.py").write_text(
        "from metalearn.tasks import Sinusoid\n\n\n"
        "class Broken(Sinusoid):\n"
        "    def episodes(self, split, indices, *, seed=0):\n"
        "        if seed == 1:\n"
        "            raise RuntimeError('the robot fell over')\n"
        "        return super().episodes(split, indices, seed=seed)\n"
    )
    assert sweep("task._target_=broken_task.Broken", "seed=0,1,2") == 2
    assert [row["status"] for row in table()] == ["finished", "failed", "finished"]
    assert "the robot fell over" in table()[1]["message"]
    assert "the robot fell over" in capsys.readouterr().err
    assert "in episodes" in Path("sweep/1/error.txt").read_text()


def test_seeds_beside_another_key_are_averaged(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("algorithm=maml,fomaml", "seed=0,1") == 0
    assert len(table()) == 4
    found = json.loads(Path("sweep/sweep.json").read_text())["over_seeds"]
    assert [row["values"] for row in found] == [{"algorithm": "maml"}, {"algorithm": "fomaml"}]
    means = [float(row["test_loss_mean"]) for row in table() if row["algorithm"] == "maml"]
    assert found[0]["means"]["test"] == pytest.approx(sum(means) / 2)
    assert "standard deviation over seeds" in capsys.readouterr().out


STUDY = ("sweep=optuna", "hydra.sweeper.num_startup_trials=2", "meta.num_steps=3")


def test_a_study_goes_on_and_grows(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*STUDY, "hydra.sweeper.num_trials=3") == 0
    three = table()
    assert len(three) == 3
    assert {"inner.lr", "inner.num_steps", "meta.lr"} <= set(three[0])
    capsys.readouterr()
    assert sweep(*STUDY, "hydra.sweeper.num_trials=3") == 0
    assert "3 of 3 trials are there already." in capsys.readouterr().out
    assert table() == three
    assert sweep(*STUDY, "hydra.sweeper.num_trials=4") == 0
    assert table()[:3] == three
    assert len(table()) == 4
    assert sweep(*STUDY, "hydra.sweeper.num_trials=4", directory="whole") == 0
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in table(name)] for name in ("sweep", "whole")
    ]
    assert timeless[0] == timeless[1]


def test_a_study_prunes() -> None:
    # A rate of 1000 can not be as good as the median of small ones.
    grid = ["inner.lr=choice(0.001,0.002,1000)", "inner.num_steps=1", "meta.lr=0.001"]
    assert sweep(*STUDY, *grid, "hydra.sweeper.num_trials=8", "hydra.sweeper.sampler=random") == 0
    statuses = {(float(row["inner.lr"]), row["status"]) for row in table()}
    assert (1000.0, "pruned") in statuses
    assert (0.001, "finished") in statuses or (0.002, "finished") in statuses
    pruned = next(row for row in table() if row["status"] == "pruned")
    assert not (Path("sweep") / pruned["folder"] / "results.json").exists()
    assert "pruned at meta step" in pruned["message"]
    assert pruned["test_loss_mean"] == ""


REFUSED = [
    (["inner.lr=interval(0.1,1)"], "hydra.sweeper.num_trials"),
    ([*STUDY, "inner.lr=0.1", "inner.num_steps=1", "meta.lr=0.1"], "something to search"),
    ([*STUDY, "inner.lr=interval(1,0.1)"], "smaller end first"),
    ([*STUDY, "inner.lr=tag(log, interval(0,1))"], "above 0"),
    ([*STUDY, "eval.every=0"], "eval.every"),
    ([*STUDY, "hydra.sweeper.sampler=tpee"], "Did you mean 'tpe'"),
    ([*STUDY, "hydra.sweeper.num_trials=0"], "hydra.sweeper.num_trials=0"),
    ([*STUDY, "hydra.sweeper.num_trials=many"], "num_trials"),
    (["seed=0,1", "hydra.sweeper.batch_size=0"], "hydra.sweeper.batch_size=0"),
    (["seed=0,1", "hydra.sweeper.foo=0"], "hydra.sweeper.foo"),
    (["seed=0,1", "hydra.sweep.subdir=same"], "hydra.sweep.subdir"),
    (["seed=0,1", "hydra.sweep.dir=/dev/null/sweep"], "can not be written"),
    (["seed=0,-1"], "point 1 (seed=-1): seed=-1"),
    (["sweep=seedz"], "Did you mean 'seeds'"),
    (["inner.lrr=1,2"], "Did you mean 'lr'"),
    (["model=mlp,mpl"], "Did you mean 'mlp'"),
    (["inner.lr=0.1,fast"], "expected a number, got 'fast'"),
    (["seed=0,1", "hydra/launcher=jobl"], "hydra/launcher=jobl"),
]


@pytest.mark.parametrize(("overrides", "expected"), REFUSED, ids=[" ".join(given) for given, _ in REFUSED])
def test_a_mistake_is_told_before_any_point_runs(
    overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = [] if any(each.startswith("hydra.sweep.dir") for each in overrides) else ["hydra.sweep.dir=sweep"]
    assert train.main(command(*directory, *overrides)) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert len(told.strip().splitlines()) <= 2
    assert list(Path().rglob("metrics.jsonl")) == []


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "sweep"), ("submitit_slurm", "slurm")])
def test_a_launcher_that_is_not_installed_is_named(
    launcher: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("metalearn.config.hydra_app.find_spec", lambda name: None)
    assert sweep("seed=0,1", f"hydra/launcher={launcher}") == 2
    assert f'pip install "metalearn-torch[{extra}]"' in capsys.readouterr().err


def test_a_study_that_is_locked_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalearn.sweeps.study_file._LOCK_SECONDS", 0.1)
    Path("sweep").mkdir()
    Path("sweep/study.journal.lock").symlink_to("study.journal")
    assert sweep(*STUDY) == 2
    told = capsys.readouterr().err
    assert "study.journal is locked" in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_directory() / "sweep").glob("*.yaml")))
def test_every_ready_sweep_has_points(name: str) -> None:
    import yaml

    content = (config_directory() / "sweep" / f"{name}.yaml").read_text()
    assert content.startswith("# @package _global_\n")
    assert f"sweep={name}" in content  # its command
    settings = yaml.safe_load(content)["hydra"]["sweeper"]
    swept = read_sweep(settings["params"], [], loader=None)  # type: ignore[arg-type]
    assert swept.keys == tuple(settings["params"])
    if settings.get("num_trials"):
        assert set(swept.space()) == set(swept.keys)
    else:
        assert 3 <= len(list(swept.grid())) <= 12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tag(log, interval(0.01, 1))", Interval(0.01, 1.0, log=True)),
        ("interval(0.01, 1)", Interval(0.01, 1.0)),
        ("int(interval(1, 5))", Interval(1, 5)),
        ("range(1, 10, 2)", Interval(1, 9, step=2)),
        ("range(1, 6)", Interval(1, 5, step=1)),
        ("sgd,adam", Choices(("sgd", "adam"))),
        ("choice(1, 5, 20)", Choices((1, 5, 20))),
        ("[8],[8,8]", Choices(("[8]", "[8,8]"))),
        ("true,false", Choices(("True", "False"))),
    ],
)
def test_the_space_of_a_study_is_written_in_hydras_grammar(text: str, expected: Interval | Choices) -> None:
    assert OverridesParser.create().parse_override(f"x={text}").is_sweep_override()
    found = read_sweep({"x": text}, [], loader=None).space()["x"]  # type: ignore[arg-type]
    assert repr(found) == repr(expected)  # where 1 is not 1.0


def test_the_command_line_replaces_what_a_sweep_brings() -> None:
    swept = read_sweep({"seed": "0,1", "inner.lr": "0.1,0.2"}, ["seed=5", "task.shots=1,2"], loader=None)  # type: ignore[arg-type]
    assert (swept.fixed, swept.keys) == (("seed=5",), ("inner.lr", "task.shots"))
    assert swept.overrides({"inner.lr": "0.1", "task.shots": "2"}) == ["seed=5", "inner.lr=0.1", "task.shots=2"]


def process(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", "metalearn.train", *arguments],
        env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def finished(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = running.communicate(timeout=240)
    return running.returncode, out, err


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or not path.read_text():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


@pytest.mark.slow
def test_two_workers_give_the_bits_of_one() -> None:
    points = ("inner.lr=0.01,0.1", "task.shots=5,-1")
    code, out, err = finished(process(*command(*points, *JOBLIB, "hydra.sweep.dir=two", "logger=console")))
    assert code == 2, err
    assert sweep(*points, directory="one") == 2
    assert [row["status"] for row in table("two")] == ["finished", "failed", "finished", "failed"]
    for number in ("0", "2"):
        assert results(f"two/{number}") == results(f"one/{number}")
        assert Path(f"two/{number}/metrics.jsonl").read_bytes() == Path(f"one/{number}/metrics.jsonl").read_bytes()
    lines = [line for line in err.splitlines() if line]
    assert all(line.startswith(("[0] ", "[2] ", "metalearn: point ")) for line in lines), err
    assert out.count("finished, validation loss") == 2


@pytest.mark.slow
def test_a_study_with_two_workers_prunes_and_counts() -> None:
    overrides = (*STUDY, "inner.lr=choice(0.001,0.002,1000)", "inner.num_steps=1", "meta.lr=0.001")
    study = command(*overrides, *JOBLIB, "hydra.sweep.dir=sweep", "hydra.sweeper.num_trials=6")
    code, out, err = finished(process(*study))
    assert code == 0, err
    assert all(row["status"] in ("finished", "pruned") for row in table())
    code, out, err = finished(process(*study))
    assert (code, "6 of 6 trials are there already." in out) == (0, True), err


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_an_interrupted_sweep_goes_on_with_the_same_command(workers: int, number: signal.Signals) -> None:
    launcher = JOBLIB if workers == 2 else ()
    long = command("meta.num_steps=150", "eval.every=50", "inner.lr=0.01,0.02", *launcher, "hydra.sweep.dir=sweep")
    running = process(*long)
    wait_for(Path("sweep/0/metrics.jsonl"), running)
    # As a terminal does it: to the whole group. SIGTERM comes from `kill`, to the parent alone.
    os.killpg(running.pid, number) if number == signal.SIGINT else running.send_signal(number)
    code, out, err = finished(running)
    assert code == 130, (out, err)
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert "interrupted" in out  # in the table
    assert table()[0]["status"] == "interrupted"
    assert not Path("sweep/.stop").exists()
    code, out, err = finished(process(*long))
    assert code == 0, err
    alone = [each for each in long if each != "-m" and not each.startswith(("inner.lr", "hydra"))]
    assert train.main([*alone, "inner.lr=0.01", "hydra.run.dir=alone"]) == 0
    assert results("sweep/0") == results("alone")
    assert Path("sweep/0/metrics.jsonl").read_bytes() == Path("alone/metrics.jsonl").read_bytes()


def test_a_point_that_was_killed_before_its_first_checkpoint_starts_anew() -> None:
    assert sweep("seed=0,1") == 0
    whole = table()
    killed = Path("sweep/1")
    shutil.rmtree(killed / "checkpoints")
    for path in killed.iterdir():
        if path.name not in {"metrics.jsonl", "point.json", "config.yaml"}:
            path.unlink()
    assert sweep("seed=0,1") == 0
    assert [row["test_loss_mean"] for row in table()] == [row["test_loss_mean"] for row in whole]


@pytest.mark.slow
def test_a_study_whose_process_was_killed_goes_on() -> None:
    study = command(*STUDY, "meta.num_steps=100000", "hydra.sweep.dir=sweep", "hydra.sweeper.num_trials=2")
    running = process(*study)
    wait_for(Path("sweep/0/metrics.jsonl"), running)
    assert train.main(study) == 2  # one process at a time
    running.kill()
    finished(running)
    values = json.loads(Path("sweep/0/point.json").read_text())["values"]
    again = process(*study)
    deadline = time.monotonic() + 120
    before = Path("sweep/0/metrics.jsonl").stat().st_size
    while Path("sweep/0/metrics.jsonl").stat().st_size <= before:  # the open trial goes on, from its checkpoint
        assert again.poll() is None, again.communicate()
        assert time.monotonic() < deadline, (before, Path("sweep/0/metrics.jsonl").stat().st_size)
        time.sleep(0.02)
    again.send_signal(signal.SIGTERM)
    assert finished(again)[0] == 130
    assert json.loads(Path("sweep/0/point.json").read_text())["values"] == values
    assert len(table()) == 1


@pytest.mark.slow
def test_submitit_runs_a_sweep_on_this_machine() -> None:
    code, _, err = finished(process(*command("seed=0,7", "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep")))
    assert code == 0, err
    assert {row["status"] for row in table()} == {"finished"}


def test_submitit_composes_for_slurm() -> None:
    from hydra import compose, initialize_config_dir

    from metalearn.config.hydra_app import register_schemas

    register_schemas()
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose(
            "train",
            overrides=["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"],
            return_hydra_config=True,
        )
    assert config.hydra.launcher._target_.endswith("SlurmLauncher")
    assert config.hydra.sweeper._target_ == "hydra_plugins.metalearn.Sweeper"


def test_an_interval_is_no_grid() -> None:
    with pytest.raises(UsageError, match="no end of values"):
        list(read_sweep({"inner.lr": "interval(0, 1)"}, [], loader=None).grid())  # type: ignore[arg-type]
