"""Strategies as training uses them: windows over meta steps, orders that change, remarks, and what auto chooses."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import algorithms, execution, losses, metagrad
from metalearn.errors import UsageError
from metalearn.tasks import Sinusoid
from metalearn.training import Interrupted, evaluate, load_checkpoint, train
from metalearn.training.chaos import Watch


def maml(**changes: Any) -> algorithms.MAML:
    given = {"loss": losses.mean_squared_error, "inner_lr": 0.01, "num_inner_steps": 5}
    return algorithms.MAML(**(given | changes))


class Counting(Sinusoid):
    """Notes which training batches are asked for."""

    def __init__(self) -> None:
        super().__init__(shots=5, query_shots=5)
        self.firsts: list[int] = []
        self.stop_at: int | None = None

    def episodes(self, split, indices, *, seed=0):
        if split == "train" and len(indices) == 3:
            self.firsts.append(next(iter(indices)))
            if len(self.firsts) == self.stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().episodes(split, indices, seed=seed)


class Telling:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def phase(self, name: str, total: int, *, done: int = 0, unit: str = "steps"):
        from metalearn.training import SilentProgress

        return SilentProgress().phase(name, total, done=done, unit=unit)

    def message(self, text: str) -> None:
        self.told.append(text)


WINDOWED = {
    "truncated windows": metagrad.Truncated(2, windows=True),
    "persistent evolution strategies": metagrad.PersistentEvolutionStrategies(2, num_pairs=3),
}


@pytest.mark.parametrize("way", [execution.Vmap(), execution.Loop()], ids=["vmap", "loop"])
@pytest.mark.parametrize("name", WINDOWED)
def test_windows_take_several_meta_steps_for_one_batch(tmp_path: Path, make_experiment, name: str, way) -> None:
    source = Counting()
    train(make_experiment(source=source, algorithm=maml(), strategy=WINDOWED[name], execution=way), tmp_path)
    assert source.firsts == [0, 0, 0, 3, 3, 3]  # windows of 2, 2 and 1 of the 5 inner steps


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_windows_that_are_interrupted_go_on_bit_for_bit(
    tmp_path: Path, make_experiment, content, name: str, stop_at: int
) -> None:
    parts = {"algorithm": maml(inner_optimizer=_momentum), "strategy": WINDOWED[name]}
    train(make_experiment(**parts), tmp_path / "whole")
    source = Counting()
    source.stop_at = stop_at
    with pytest.raises(Interrupted):
        train(make_experiment(source=source, **parts), tmp_path / "parts")
    amid = load_checkpoint(tmp_path / "parts/checkpoints/last")
    assert (amid.carry is None) == (stop_at == 3)
    train(make_experiment(**parts), tmp_path / "parts", resume=True)
    for checkpoint in ("last", "best"):
        assert content(tmp_path / "parts/checkpoints" / checkpoint) == content(
            tmp_path / "whole/checkpoints" / checkpoint
        )
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def _momentum(lr: Any) -> Any:
    from metalearn.optim import sgd

    return sgd(lr, momentum=0.9)


def test_the_order_of_the_derivative_changes_during_training(tmp_path: Path, make_experiment) -> None:
    settings: dict[str, Any] = {"algorithm": maml(inner_lr=0.1), "log_every": 1, "eval_every": 0}
    norms = {}
    for name, strategy in {
        "first": metagrad.FirstOrder(),
        "annealed": metagrad.FirstOrder(until=2),
        "exact": metagrad.Unrolled(),
    }.items():
        train(make_experiment(strategy=strategy, **settings), tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        records = [record for record in map(json.loads, lines) if record["split"] == "train"]
        norms[name] = [record["grad_norm"] for record in records]
    assert norms["annealed"][:2] == norms["first"][:2] != norms["exact"][:2]
    assert norms["annealed"][2] != norms["first"][2]


def test_a_stepwise_run_is_the_unrolled_one(tmp_path: Path, make_experiment) -> None:
    for name, strategy in {"unrolled": metagrad.Unrolled(), "stepwise": metagrad.Stepwise("sqrt")}.items():
        train(make_experiment(algorithm=maml(), strategy=strategy), tmp_path / name)
    one, two = (load_checkpoint(tmp_path / name / "checkpoints/last").meta for name in ("unrolled", "stepwise"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", [execution.Vmap(), execution.Loop()], ids=["vmap", "loop"])
def test_an_inner_loop_that_has_not_converged_is_told_once(tmp_path: Path, make_experiment, way) -> None:
    progress = Telling()
    experiment = make_experiment(algorithm=maml(proximal=1.0), strategy=metagrad.Implicit(), execution=way)
    train(experiment, tmp_path, progress=progress)
    assert len([text for text in progress.told if "has not converged" in text]) == 1
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(record["inner_residual"] > 0.01 for record in records if record["split"] == "train")


def test_divergence_names_the_inner_step(tmp_path: Path, make_experiment) -> None:
    algorithm = maml(inner_lr=1e4, num_inner_steps=30)
    with pytest.raises(UsageError, match=r"task 1 of 3 the inner loop diverges from inner step \d+ on") as caught:
        train(make_experiment(algorithm=algorithm, eval_every=0), tmp_path)
    assert "inner.lr" in str(caught.value)


def test_a_jump_of_the_gradient_is_seen() -> None:
    watch = Watch()
    assert not any(watch.jumped(norm) for norm in (1.0, 500.0, 1.0, 2.0, 1.0))  # nothing to compare with yet
    assert not watch.jumped(50.0)
    assert watch.jumped(200.0)


def test_auto_chooses_once_and_says_so(tmp_path: Path, make_experiment) -> None:
    progress = Telling()
    config = {"metagrad": {"_target_": "metalearn.metagrad.Auto"}}
    experiment = make_experiment(algorithm=maml(), strategy=metagrad.Auto(memory_gb=4.0), config=config)
    source = Counting()
    source.stop_at = 2
    with pytest.raises(Interrupted):
        train(replace(experiment, source=source), tmp_path, progress=progress)
    assert any(text.startswith("metagrad=auto: recommended: Unrolled()") for text in progress.told)
    kept = json.loads((tmp_path / "metagrad.json").read_text())
    assert kept["strategy"] == "Unrolled"
    kept.update(strategy="Stepwise", arguments={"every": 2, "mode": "reverse"})
    (tmp_path / "metagrad.json").write_text(json.dumps(kept))
    again = Telling()
    results = train(experiment, tmp_path, resume=True, progress=again)
    assert not any("metagrad=auto" in text for text in again.told)
    assert results.data["protocol"]["metagrad"] == "Stepwise(every=2, mode='reverse')"
    assert results.data["protocol"]["metagrad_chosen_by"].startswith("auto")
    measured = evaluate(experiment, tmp_path, baseline=False)
    assert measured.data["protocol"]["metagrad"] == "Stepwise(every=2, mode='reverse')"
    (tmp_path / "metagrad.json").write_text("{}")
    with pytest.raises(UsageError, match=r"metagrad\.json can not be read"):
        evaluate(experiment, tmp_path)


def test_auto_that_finds_no_room_says_what_is_missing(tmp_path: Path, make_experiment) -> None:
    with pytest.raises(UsageError, match=r"No exact strategy fits: .* more than"):
        train(make_experiment(algorithm=maml(), strategy=metagrad.Auto(memory_gb=1e-6)), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
