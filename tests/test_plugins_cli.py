"""Packages that bring choices of their own, by an entry point of the group `metalearn.configs`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn import evaluate, train
from metalearn.config import read_config
from metalearn.config.choices import group_choice, package_configs

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = (
    "meta.num_steps=2",
    "meta.batch_size=3",
    "eval.every=0",
    "eval.num_episodes=4",
    "eval.batch_size=4",
    "device=cpu",
    "logger=none",
)
TASK_YAML = """
defaults:
  - override /inner@_global_.inner: regression
  - override /meta@_global_.meta: regression
  - override /eval@_global_.eval: regression
  - override /model@_global_.model: tiny_net
_target_: tiny_pkg.tasks.Waves
shots: 3
"""
FILES = {
    "tiny_pkg/__init__.py": "raise RuntimeError('listing choices must not import the package')\n",
    "tiny_pkg/configs/task/tiny_waves.yaml": TASK_YAML,
    "tiny_pkg/configs/model/tiny_net.yaml": "_target_: metalearn.models.MLP\nhidden: [4]\n",
    "tiny_pkg/configs/task/sinusoid.yaml": "_target_: tiny_pkg.tasks.Waves\n",
    "tiny_pkg-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny-pkg\nVersion: 1.0\n",
    "tiny_pkg-1.0.dist-info/entry_points.txt": "[metalearn.configs]\ntiny = tiny_pkg.configs\n",
    "tiny_pkg/tasks.py": "from metalearn.tasks import Sinusoid\n\n\nclass Waves(Sinusoid):\n    pass\n",
}


def install(site: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages with one in it that brings choices; its code can not even be imported."""
    folder = tmp_path / "site"
    install(folder, FILES)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def package(site: Path) -> Path:
    """The same package, with code that works."""
    install(site, {"tiny_pkg/__init__.py": ""})
    for name in [name for name in sys.modules if name.partition(".")[0] == "tiny_pkg"]:
        del sys.modules[name]
    return site


def test_a_packages_choices_are_listed_without_its_code(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [(each.package, each.folder) for each in package_configs()] == [("tiny-pkg", site / "tiny_pkg" / "configs")]
    assert train.main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert "tiny_waves" in listed
    assert "tiny_net" in listed
    assert train.main(["task=tiny_wave"]) == 2
    assert capsys.readouterr().err == ("metalearn: task=tiny_wave: there is no such task. Did you mean 'tiny_waves'?\n")
    assert train.main(["task=tiny_waves", "task.shotz=3"]) == 2
    assert "Did you mean 'shots'?" in capsys.readouterr().err


def test_a_packages_task_is_trained_and_measured_again(package: Path) -> None:
    assert train.main([*TINY, "task=tiny_waves", "hydra.run.dir=run"]) == 0
    card = json.loads(Path("run/results.json").read_text())["protocol"]
    assert card["shots"] == 3
    config = read_config(Path("run"))
    assert config.task["_target_"] == "tiny_pkg.tasks.Waves"
    assert config.model["hidden"] == [4]
    assert evaluate.main(["run=run"]) == 0
    assert evaluate.main(["run=run", "test_task=tiny_waves", "test_task.shots=5"]) == 0


def test_a_packages_choices_are_found_inside_of_other_tasks(package: Path) -> None:
    mixture = ["task=mixture", "task.sources=[sinusoid,{task: tiny_waves, weight: 2}]", "model=tiny_net"]
    assert train.main([*TINY, *mixture, "inner=regression", "test_task=tiny_waves", "hydra.run.dir=run"]) == 0
    config = read_config(Path("run"))
    assert config.task["sources"][1] == {"_target_": "tiny_pkg.tasks.Waves", "shots": 3, "weight": 2}
    assert config.test_task == {"_target_": "tiny_pkg.tasks.Waves", "shots": 3}


def test_a_packages_task_is_swept(package: Path) -> None:
    assert train.main([*TINY, "-m", "task=sinusoid,tiny_waves", "model=tiny_net", "hydra.sweep.dir=sweep"]) == 0
    found = sorted(Path("sweep").glob("*/results.json"))
    assert len(found) == 2
    assert {json.loads(path.read_text())["protocol"]["shots"] for path in found} == {3, 10}


def test_of_two_choices_of_one_name_ours_is_taken(site: Path) -> None:
    assert group_choice("task", "sinusoid")["_target_"] == "metalearn.tasks.Sinusoid"


def test_the_console_script_finds_the_package(package: Path, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "metalearn-train"
    script.parent.mkdir()
    script.write_text("from metalearn.train import command\ncommand()\n")
    done = subprocess.run(
        [sys.executable, str(script), *TINY, "task=tiny_waves", "hydra.run.dir=run"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(package)])},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path("run/results.json").exists()


@pytest.mark.parametrize("value", ["not_there.configs", "tiny_pkg.nothing", "tiny_pkg:configs", "json"])
def test_a_broken_entry_point_is_a_line_that_names_the_package(
    value: str, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(package, {"tiny_pkg-1.0.dist-info/entry_points.txt": f"[metalearn.configs]\ntiny = {value}\n"})
    assert train.main([*TINY, "task=sinusoid", "model.hidden=[4]", "hydra.run.dir=run"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"metalearn: the package tiny-pkg offers configurations at '{value}', where there is no folder"
    )
    assert "entry point 'tiny'" in line


@pytest.mark.parametrize("content", ["shots: [", "defaults:\n  - nothing\n_target_: x.Y\n"])
def test_broken_yaml_of_a_package_is_told_when_it_is_chosen(
    content: str, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(package, {"tiny_pkg/configs/task/tiny_waves.yaml": content})
    assert train.main([*TINY, "task=sinusoid", "model.hidden=[4]", "hydra.run.dir=run"]) == 0
    for overrides in (["task=tiny_waves"], ["task=sinusoid", "test_task=tiny_waves"]):
        capsys.readouterr()
        assert train.main([*TINY, *overrides, "hydra.run.dir=other"]) == 2
        told = capsys.readouterr().err
        assert "tiny_waves" in told or "nothing" in told
        assert len(told.splitlines()) <= 2


def test_a_packages_class_that_is_missing_is_told(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(package, {"tiny_pkg/configs/task/tiny_waves.yaml": "_target_: tiny_pkg.tasks.Wavez\n"})
    assert train.main([*TINY, "task=tiny_waves", "model=tiny_net", "hydra.run.dir=run"]) == 2
    assert "tiny_pkg.tasks has no 'Wavez'. Did you mean 'Waves'?" in capsys.readouterr().err
