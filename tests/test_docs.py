"""What the documentation shows, runs: docstring examples, and the Python blocks of README and docs."""

import doctest
import importlib
import json
import pkgutil
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import metalearn
from metalearn import train
from tests.zoo.table import ROWS

ROOT = Path(__file__).parents[1]
MODULES = sorted(module.name for module in pkgutil.walk_packages(metalearn.__path__, "metalearn."))
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_of_a_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_files(page, tmp_path)
    names: dict[str, object] = {"__name__": page}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
        exec(compile(block, page, "exec"), names)


def write_files(page: str, folder: Path) -> None:
    """The blocks that are titled with a file's name, as files; a module of that name is imported anew."""
    for name, content in re.findall(r'```python title="(\S+)"\n(.*?)```', (ROOT / page).read_text(), flags=re.DOTALL):
        (folder / name).write_text(content)
        sys.modules.pop(Path(name).stem, None)


def test_the_two_set_up_commands_are_the_first_in_the_readme() -> None:
    commands = re.findall(r"```bash\n(.*?)\n```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert commands[0] == "pip install -c constraints.txt -e . && python -m metalearn.train"
    assert commands[1] == 'pip install -c constraints.txt -e ".[test]" && pytest'


def test_every_figure_in_an_experiment_comes_from_its_json() -> None:
    for page in sorted((ROOT / "experiments").glob("*/README.md")):
        results = [json.loads(path.read_text()) for path in page.parent.glob("*.json")]
        assert results, f"{page} has no JSON beside it"
        shown = {value for data in results for value in _rounded(data)}
        for row in re.findall(r"^\| \*\*ours.*\|$", page.read_text(), flags=re.MULTILINE):
            for mean, interval in re.findall(r"(-?[\d.]+) ± ([\d.]+)", row):
                assert (mean, interval) in shown, f"{page}: {mean} ± {interval} is in no JSON"


def _rounded(data: object) -> set[tuple[str, str]]:
    if isinstance(data, list):
        return {pair for entry in data for pair in _rounded(entry)}
    if not isinstance(data, dict):
        return set()
    if {"mean", "ci95"} <= data.keys() and data["mean"] is not None:
        percent = f"{100 * data['mean']:.1f}", f"{100 * data['ci95']:.1f}"
        plain = {(f"{data['mean']:.{digits}f}", f"{data['ci95']:.{digits}f}") for digits in (2, 3)}
        return {percent, *plain}
    return {pair for entry in data.values() for pair in _rounded(entry)}


def test_the_custom_task_of_the_documentation_is_the_experiments_and_small() -> None:
    (shown,) = re.findall(r'```python title="my_task.py"\n(.*?)```', (ROOT / "docs/custom_tasks.md").read_text(), re.S)
    assert shown == (ROOT / "experiments/custom_task/my_task.py").read_text()
    assert len(shown[shown.index("class") :].splitlines()) < 25


def test_the_command_of_the_custom_task_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files("docs/custom_tasks.md", tmp_path)
    page = (ROOT / "docs/custom_tasks.md").read_text()
    (command,) = re.findall(r"```bash\n(python -m metalearn.train.*?)```", page, flags=re.DOTALL)
    shorter = ["meta.num_steps=2", "eval.num_episodes=4", "eval.val_episodes=0", "logger=none", "hydra.run.dir=run"]
    given = [each for each in shlex.split(command.replace("\\\n", ""))[3:] if not each.startswith("meta.num_steps")]
    assert train.main([*given, *shorter]) == 0
    assert json.loads((tmp_path / "run/results.json").read_text())["protocol"]["dataset"] == "pendulum"


def test_the_commands_of_the_optimizers_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/optimizers.md").read_text()
    commands = re.findall(r"^python -m metalearn.train .*$", page, flags=re.MULTILINE)
    told = ["rmsprop(momentum=0.9, centered=True)", "adam(b1={'*.bias': 0.5, '*': 0.9})"]
    for index, (command, expected) in enumerate(zip(commands, told, strict=True)):
        shorter = ["meta.num_steps=1", "eval.num_episodes=2", "eval.val_episodes=0", "logger=none"]
        assert train.main([*shlex.split(command)[3:], *shorter, f"hydra.run.dir=run{index}"]) == 0
        card = json.loads((tmp_path / f"run{index}/results.json").read_text())["protocol"]
        assert card["inner_optimizer"] == expected


def test_the_table_has_as_many_modules_as_are_told() -> None:
    for page in ("CHANGELOG.md", "docs/modules.md"):
        (told,) = re.findall(r"[Oo]ver (\d+) modules", (ROOT / page).read_text())
        assert int(told) < len(ROWS), page


COLOUR = """
import torch
from metalearn.tasks import ClassificationSource

def colour() -> ClassificationSource:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (15, 3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    classes = dict(zip(("train", "val", "test"), images.split(5)))
    return ClassificationSource(name="colour", classes=classes, ways=5, shots=1, query_shots=1)
"""


def test_the_command_of_the_pretrained_backbone_trains_its_head_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_files("docs/state.md", tmp_path)
    backbone = importlib.import_module("my_backbone")
    trained = backbone.models.resnet18(num_classes=7)
    torch.save({"state_dict": torch.nn.DataParallel(trained).state_dict()}, "pretrained.pt")
    page = (ROOT / "docs/state.md").read_text()
    (command,) = re.findall(r"```bash\n(python -m metalearn.train task=cifar_fs .*?)```", page, flags=re.DOTALL)
    small = ["meta.num_steps=1", "meta.batch_size=1", "eval.num_episodes=2", "eval.val_episodes=0", "inner.num_steps=1"]
    given = [each for each in shlex.split(command.replace("\\\n", ""))[3:] if not each.startswith("task=")]
    source = ["task=custom", "task._target_=colour.colour", "logger=none", "hydra.run.dir=run"]
    groups = [f"{group}=classification" for group in ("inner", "meta", "eval")]
    (tmp_path / "colour.py").write_text(COLOUR)  # instead of data that would have to be there
    assert train.main([*source, *groups, *given, *small]) == 0
    protocol = json.loads((tmp_path / "run/results.json").read_text())["protocol"]
    assert protocol["num_meta_parameters"] == protocol["num_adapted_parameters"] == 5 * 513
    assert protocol["normalisation_policy"] == "frozen"
    kept = metalearn.load("run").model.buffers
    assert all(torch.equal(kept[name], value) for name, value in trained.named_buffers())
