"""Runs of algorithms that change from meta step to meta step."""

import json
from pathlib import Path
from typing import Any

import pytest

from metalearn import algorithms, losses, metagrad
from metalearn.errors import UsageError
from metalearn.training import Interrupted, train
from metalearn.training.gradients import Form, forms_of
from tests.training.test_strategies_of_a_run import Counting


def annealed(until: int) -> algorithms.MAMLPlusPlus:
    return algorithms.MAMLPlusPlus(
        loss=losses.mean_squared_error, inner_lr=0.1, num_inner_steps=3, multi_step_until=until, learned_rates=False,
        per_step_norms=False,
    )  # fmt: skip


def norms_of(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["grad_norm"] for record in records if record["split"] == "train"]


def test_a_loss_after_every_step_until_a_meta_step(tmp_path: Path, make_experiment: Any) -> None:
    settings: dict[str, Any] = {"log_every": 1, "eval_every": 0}
    for name, until in {"never": 0, "until 2": 2, "always": 1000}.items():
        train(make_experiment(algorithm=annealed(until), **settings), tmp_path / name)
    never, until, always = (norms_of(tmp_path / name) for name in ("never", "until 2", "always"))
    assert until[0] == always[0] != never[0]  # the weights begin at 1 / K whatever they are to become
    assert until[1] != always[1]
    plain = algorithms.MAML(loss=losses.mean_squared_error, inner_lr=0.1, num_inner_steps=3)
    train(make_experiment(algorithm=plain, **settings), tmp_path / "maml")
    assert norms_of(tmp_path / "maml") == never


@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_an_interrupted_one_goes_on_bit_for_bit(
    tmp_path: Path, make_experiment: Any, content: Any, stop_at: int
) -> None:
    parts = {"algorithm": annealed(3)}
    train(make_experiment(**parts), tmp_path / "whole")
    source = Counting()
    source.stop_at = stop_at
    with pytest.raises(Interrupted):
        train(make_experiment(source=source, **parts), tmp_path / "parts")
    train(make_experiment(**parts), tmp_path / "parts", resume=True)
    assert content(tmp_path / "parts/checkpoints/last") == content(tmp_path / "whole/checkpoints/last")


def test_the_meta_gradients_of_a_run_are_known_before_it(make_experiment: Any) -> None:
    strategy = metagrad.FirstOrder(until=4)
    experiment = make_experiment(algorithm=annealed(2), strategy=strategy)
    assert forms_of(experiment, 0) == [Form(strategy, 0), Form(strategy, 2), Form(metagrad.Unrolled(), 4)]
    assert forms_of(experiment, 3) == [Form(strategy, 3), Form(metagrad.Unrolled(), 4)]
    assert forms_of(make_experiment(), 2) == [Form(metagrad.Unrolled(), 2)]


def test_a_strategy_without_sense_is_refused_before_training(tmp_path: Path, make_experiment: Any) -> None:
    rates = algorithms.MetaSGD(loss=losses.mean_squared_error, inner_lr=0.1, proximal=1.0)
    with pytest.raises(UsageError, match="Implicit can not learn the inner optimizer LearnedRates"):
        train(make_experiment(algorithm=rates, strategy=metagrad.Implicit()), tmp_path)
    assert not list(tmp_path.iterdir())
