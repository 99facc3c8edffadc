"""The experiments that users copy: their gradients are exact, and what they claim shows in a tiny setting."""

import importlib
import json
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn import UsageError, functionalize, tree
from metalearn.metagrad import FirstOrder, Implicit, Stepwise, Unrolled
from metalearn.testing import check_meta_gradient
from tests.test_configs import composed

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
D = torch.float64
Load = Callable[[str, str], ModuleType]


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch, omniglot_root: Path, shared_cache: Path) -> Load:
    """Imports a module of an experiment, on the real drawings in the size that other tests have decoded."""
    monkeypatch.setenv("METALEARN_DATA", str(omniglot_root.parent))
    monkeypatch.setenv("METALEARN_CACHE", str(shared_cache))

    def load(experiment: str, name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(EXPERIMENTS / experiment))
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return load


@pytest.fixture
def searches(imported: Load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = imported("hyperparameter_optimisation", "searches")
    monkeypatch.setattr(module, "SIZE", 28)
    return module


@pytest.fixture
def reweight(imported: Load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = imported("reweighting", "reweight")
    monkeypatch.setattr(module, "SIZE", 28)
    return module


@pytest.mark.parametrize("name", ["schedule", "penalties"])
def test_the_exact_strategies_learn_hyper_parameters_by_one_gradient(
    name: str, searches: ModuleType, imported: Load
) -> None:
    search = searches.SEARCHES[name]
    differences = imported("hyperparameter_optimisation", "run").disagreement(
        search._replace(strategies=searches.EXACT), 8
    )
    assert set(differences) == {"Unrolled", "Stepwise", "ForwardMode"}
    assert max(differences.values()) < 1e-10
    problem, data = search.problem(searches.model_of(0, D), 8), searches.data_of(0, 8, D)
    assert check_meta_gradient(problem, tree.cast(search.draw(), D), data).error < 1e-6


def test_a_rate_has_no_implicit_gradient_and_a_penalty_has(searches: ModuleType) -> None:
    model, schedule, penalties = searches.model_of(0, D), searches.SEARCHES["schedule"], searches.SEARCHES["penalties"]
    data = searches.data_of(0, 8, D)
    never_mind = Implicit(tolerance=math.inf)
    with pytest.raises(UsageError, match="zero for everything in meta"):
        never_mind.value_and_grad(schedule.problem(model, 8))(tree.cast(schedule.draw(), D), data)
    # Of a linear model, whose inner loop converges, it is that of the whole run.
    linear = functionalize(nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, searches.WAYS)).to(D))
    problem, meta = penalties.problem(linear, 300), {"log_penalty": torch.full((2,), math.log(0.1), dtype=D)}
    expected, got = (
        tree.to_vector(each.value_and_grad(problem)(meta, data).grads)
        for each in (Unrolled(), Implicit(num_iterations=60, tolerance=1e-6))
    )
    assert (got - expected).norm() < 1e-6 * expected.norm()


def test_no_drawing_is_in_two_parts(searches: ModuleType) -> None:
    data = searches.data_of(0, 2)
    parts = [{tuple(image.flatten().tolist()) for image in part[0]} for part in data[:3]]
    assert [len(part) for part in parts] == [160, 120, 120]
    assert len(set.union(*parts)) == 400


def test_descent_lowers_the_validation_loss_and_random_search_keeps_to_its_cost(
    searches: ModuleType, imported: Load
) -> None:
    run = imported("hyperparameter_optimisation", "run")
    search = searches.SEARCHES["schedule"]._replace(num_steps=12)
    problem, data = search.problem(searches.model_of(0), 12), searches.data_of(0, 12)
    trials = searches.descend(search, Stepwise(), problem, data, 6)
    assert trials[-1].loss < trials[0].loss - 0.05
    guesses = run.guess(search, problem, data, 0.1, seed=0, shared=True)
    assert sum(each.seconds for each in guesses[:-1]) < 0.1 <= sum(each.seconds for each in guesses)
    assert all(len(set(value.tolist())) == 1 for each in guesses for value in each.meta.values())
    assert run.within(guesses, math.inf).loss == min(each.loss for each in guesses)
    assert run.within(guesses, 0.0) is guesses[0]


def test_the_comparison_with_random_search_is_written_down(
    searches: ModuleType, imported: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = imported("hyperparameter_optimisation", "run")
    small = {name: search._replace(num_steps=16) for name, search in run.SEARCHES.items()}
    monkeypatch.setattr(run, "SEARCHES", small)
    monkeypatch.setattr(sys, "argv", ["run.py", "schedule", "--seeds", "2", "--trials", "2", "--folder", str(tmp_path)])
    run.main()
    found = json.loads((tmp_path / "schedule.json").read_text())
    assert found["relative difference to Unrolled"]["ForwardMode"] < 1e-10
    losses = {name: row["validation loss"]["values"] for name, row in found["rows"].items()}
    assert losses["Stepwise"] == pytest.approx(losses["Unrolled"], rel=1e-4)
    assert all(after < before for after, before in zip(losses["Unrolled"], losses["not searched"], strict=True))
    memory = found["peak megabytes"]
    assert memory["training"] < memory["Stepwise"] < memory["Unrolled"]
    assert (tmp_path / "schedule.png").stat().st_size > 1000


def test_the_online_weights_are_the_products_of_gradients(reweight: ModuleType) -> None:
    """Ren et al. 2018: by one step, an example counts as its gradient goes along with the clean ones'."""
    model = reweight.model_of(0, D)
    data = reweight.data_of(0, model, num_clean=2, num_steps=1)
    meta = {"weight": torch.zeros(len(data.flipped), dtype=D)}
    got = Unrolled().value_and_grad(reweight.reweighting(model, 1, momentum=0.0))(meta, data).grads["weight"]
    rows = data.rows[0]
    clean = _gradient(model, data.clean[0], data.clean[1])
    each = [_gradient(model, data.noisy[0][row : row + 1], data.noisy[1][row : row + 1]) for row in rows.tolist()]
    expected = torch.zeros_like(got).index_put((rows,), -0.1 / len(rows) * torch.stack(each) @ clean)
    assert (got - expected).norm() < 1e-10 * expected.norm()


def _gradient(model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    leaves = {name: value.detach().requires_grad_() for name, value in model.params.items()}
    loss = F.cross_entropy(model(leaves, model.buffers, x)[0], y)
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, [*leaves.values()])])


def test_the_weights_gradient_through_a_run_is_exact(reweight: ModuleType) -> None:
    model = reweight.model_of(0, D)
    data = reweight.data_of(0, model, num_clean=2, num_steps=6)
    problem, meta = reweight.reweighting(model, 6), {"weight": torch.full((len(data.flipped),), 0.5, dtype=D)}
    expected, got = (each.value_and_grad(problem)(meta, data).grads["weight"] for each in (Unrolled(), Stepwise()))
    assert (got - expected).norm() < 1e-10 * expected.norm()
    assert check_meta_gradient(problem, meta, data).error < 1e-6
    # The weights act through the inner gradients alone: first order would learn nothing.
    assert not FirstOrder().value_and_grad(problem)(meta, data).grads["weight"].any()


def test_flipped_examples_get_less_weight(reweight: ModuleType, imported: Load) -> None:
    run = imported("reweighting", "run")
    model = reweight.model_of(0)
    data = reweight.data_of(0, model, num_clean=2, num_steps=40)
    assert 0.3 < data.flipped.float().mean() < 0.5
    for _, weight in (reweight.online(model, data), reweight.throughout(model, data, 4)):
        assert weight[data.flipped].mean() < 0.85 * weight[~data.flipped].mean()
        assert run.separation(weight, data.flipped) > 0.65
    assert run.separation(weight, torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.4) < 0.6


@pytest.fixture
def runs(imported: Load) -> ModuleType:
    return imported("learned_optimizer", "problems")


@pytest.fixture
def against(imported: Load, runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = imported("learned_optimizer", "run")
    monkeypatch.setattr(module, "HELD_OUT", {"as trained": runs.Family("test")})
    return module


def test_a_training_run_depends_on_its_number_alone_and_shares_no_drawing_with_its_test(runs: ModuleType) -> None:
    drawn, again = runs.Family("test").draw(0, 3), runs.Family("test", num_steps=7).draw(2, 1)
    assert torch.equal(drawn.rows[2, :7], again.rows[0])
    ours, theirs = (
        tree.tensors((run.train, run.test, run.params)) for run in (tree.entry(drawn, 2), tree.entry(again, 0))
    )
    assert all(map(torch.equal, ours, theirs))
    drawings = [tuple(image.tolist()) for part in (drawn.train, drawn.test) for image in part[0][0]]
    assert len(drawings) == len(set(drawings)) == 400
    assert not torch.equal(drawn.params["0.weight"][0], drawn.params["0.weight"][1])


def test_the_meta_gradient_of_a_learned_optimizer_is_exact(runs: ModuleType) -> None:
    family = runs.Family("train", num_steps=6, width=3)
    run = tree.cast(tree.entry(family.draw(0, 1), 0), D)
    learned = runs.RECIPES["mlp"].learned
    meta = {name: value + 0.01 for name, value in learned.init(run.params).items()}
    problem = family.problem(learned, every=2)
    assert check_meta_gradient(problem, meta, run, num_directions=2).error < 1e-6


def test_a_few_meta_steps_make_a_better_optimizer(runs: ModuleType) -> None:
    recipe = runs.RECIPES["mlp"]._replace(num_steps=12, batch=4)
    first, *_, last = runs.meta_train(recipe, num_meta_steps=9, every=3, seed=0, num_validation=6)
    assert last.validation < first.validation - 0.02


def test_the_learned_optimizer_beats_the_tuned_ones_on_runs_it_has_not_seen(
    against: ModuleType, tmp_path: Path
) -> None:
    folder = EXPERIMENTS / "learned_optimizer"
    for name in ("tuned.json", "mlp-0.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    against.compare(tmp_path, 6)
    found = json.loads((tmp_path / "results.json").read_text())["as trained"]
    below = {name: each for name, each in found["mlp-0"].items() if name.startswith("below ")}
    assert len(below) == 6
    assert all(each["mean"] > 0 for each in below.values())
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_every_cell_of_the_table_is_a_run_that_composes(imported: Load, tmp_path: Path) -> None:
    cells = imported("table", "cells")
    assert len(set(map(cells.name_of, cells.CELLS))) == len(cells.CELLS)
    places = {cells.row_of(algorithm, benchmark) for algorithm in cells.ALGORITHMS for benchmark in cells.BENCHMARKS}
    assert {row.name for row in cells.ROWS} <= places  # every published number is in the table
    first = {algorithm: (algorithm, benchmark) for algorithm, benchmark in reversed(cells.CELLS)}
    for cell in {*first.values(), *(cell for cell in cells.CELLS if cell[0] == "maml")}:
        config = composed(*cells.command_of(cell, 100))
        assert (config.meta.num_steps, config.eval.every, config.eval.num_episodes) == (100, 10, 600)
        assert config.algorithm["_target_"].startswith("metalearn.algorithms.")
    run = imported("table", "run")
    lines = run.table().splitlines()
    assert len(lines) == 2 + len(cells.ALGORITHMS)
    assert {line.count("|") for line in lines} == {2 + len(cells.BENCHMARKS)}
    page = run.README.read_text()
    assert page == run.with_tables(page)  # `run.py table` has been run since the last result


def test_every_kept_cell_is_its_own_run(imported: Load) -> None:
    cells, run = imported("table", "cells"), imported("table", "run")
    for cell in cells.CELLS:
        record = run._kept(cell)
        if record is not None:
            card = record["protocol"]
            arguments = cells.command_of(cell, card["meta_steps"])
            assert record["command"] == f"python -m metalearn.train {shlex.join(arguments)}"
            assert f"task={card['dataset']}" in arguments
            assert (card["device"][:3], card["num_threads"]) == ("cpu", 1)
            assert {metric["num_episodes"] for metric in record["test"].values()} == {600}
