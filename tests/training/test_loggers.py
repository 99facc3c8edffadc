import json
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn.errors import UsageError
from metalearn.training import Several, TensorBoard, Wandb, loggers, train


class Spy:
    def __init__(self) -> None:
        self.calls: list = []

    def start(self, run_directory, config, *, step) -> None:
        self.calls.append(("start", step))

    def log(self, step, metrics, *, split) -> None:
        self.calls.append((step, split, dict(metrics)))

    def finish(self, results) -> None:
        self.calls.append(("finish", results))


def test_loggers_are_told_what_metrics_jsonl_holds(tmp_path: Path, make_experiment) -> None:
    spies = [Spy(), Spy()]
    results = train(make_experiment(), tmp_path, logger=Several(spies))
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [{"step": step, "split": split, **metrics} for step, split, metrics in spies[0].calls[1:-1]]
    assert told == written
    assert spies[0].calls[0] == ("start", 0)
    assert spies[0].calls[-1] == ("finish", results.data)
    assert spies[0].calls == spies[1].calls


def test_nothing_optional_is_imported_by_the_room() -> None:
    code = "import sys, metalearn.training; print([n for n in ('wandb', 'tensorboard') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("logger", "name"), [(Wandb(), "wandb"), (TensorBoard(), "tensorboard")])
def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch, logger, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # what Python itself does for a failed import
    with pytest.raises(UsageError, match=rf"pip install .?metalearn-torch\[{name}\]"):
        logger.start(tmp_path, {}, step=0)
    logger.finish(None)


def test_tensorboard_writes_every_scalar(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    # In a process of its own: importing it raises deprecation warnings that are not ours.
    code = f"""
from pathlib import Path
from metalearn.training import TensorBoard
logger = TensorBoard()
logger.start(Path({str(tmp_path)!r}), {{}}, step=0)
logger.log(1, {{"loss": 0.5}}, split="train")
logger.log(2, {{"loss": 0.25}}, split="train")
logger.log(2, {{"loss": 0.75}}, split="val")
logger.finish(None)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator({str(tmp_path / "tensorboard")!r}); events.Reload()
print({{tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}})
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert eval(done.stdout.splitlines()[-1]) == {"loss/train": [(1, 0.5), (2, 0.25)], "loss/val": [(2, 0.75)]}


def test_wandb_offline_keeps_its_id_in_the_run_directory(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    code = f"""
from pathlib import Path
from metalearn.training import Wandb
for step in (0, 1):
    logger = Wandb(mode="offline")
    logger.start(Path({str(tmp_path)!r}), {{"a": 1}}, step=step)
    logger.log(step + 1, {{"loss": 0.5}}, split="train")
    logger.finish({{"test": {{"loss": {{"mean": 1.0, "ci95": 0.1}}}}}})
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    identity = (tmp_path / "wandb_id.txt").read_text()
    runs = list((tmp_path / "wandb").glob(f"offline-run-*-{identity}"))
    assert runs


def test_unknown_wandb_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="offline"):
        loggers.Wandb(mode="ofline")
