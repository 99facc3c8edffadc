"""What `plan` predicts from short runs is what the whole run takes, and what it recommends fits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn import losses, metagrad, optim
from metalearn.algorithms import MAML
from metalearn.errors import UsageError
from metalearn.functional import functionalize
from metalearn.metagrad import (
    FirstOrder,
    ForwardMode,
    Implicit,
    MetaGradient,
    Reptile,
    Stepwise,
    Strategy,
    Truncated,
    Unrolled,
    memory,
)
from metalearn.metagrad.growth import name_of
from metalearn.metagrad.memory import free_bytes, peak_bytes
from metalearn.metagrad.planning import Plan, plan
from metalearn.models import MLP, Conv4
from metalearn.problem import Episode, Problem
from metalearn.types import Episodes, Tensors

# torch's own, at the first jvp of a process.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

RUNNING = "conv4, running statistics"
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(input_shape=(4,), num_outputs=3, hidden=(16, 16)), (4,)),
    "conv4": (lambda: Conv4(input_shape=(1, 16, 16), num_outputs=3, filters=4), (1, 16, 16)),
    RUNNING: (
        lambda: Conv4(input_shape=(1, 16, 16), num_outputs=3, filters=4, norm="batch_running"),
        (1, 16, 16),
    ),
}


def case(model: str, optimizer: str, num_inner_steps: int) -> tuple[Problem, Tensors, Episode]:
    torch.manual_seed(0)
    make, shape = MODELS[model]
    functional = functionalize(make())
    maml = MAML(
        loss=losses.cross_entropy,
        inner_lr=0.01,
        num_inner_steps=num_inner_steps,
        inner_optimizer=getattr(optim, optimizer),
    )
    support, query = (torch.randn(rows, *shape) for rows in (6, 9))
    labels = torch.arange(3)
    return (
        maml.problem(functional),
        maml.init(functional),
        Episodes((support, labels.repeat(2)), (query, labels.repeat(3))),
    )


def measured(strategy: Strategy, problem: Problem, meta: Tensors, episode: Episode) -> int:
    gradient = strategy.value_and_grad(problem)
    return peak_bytes(lambda: gradient(meta, episode), "cpu")


STRATEGIES = [Unrolled(), Stepwise(), Stepwise(every="sqrt"), Stepwise(every=5), Stepwise(mode="forward"), FirstOrder(),
              Truncated(8), Truncated(8, windows=True), Truncated(1000), Reptile()]  # fmt: skip


@pytest.mark.parametrize(("model", "optimizer"), [("mlp", "sgd"), ("conv4", "adam"), (RUNNING, "sgd")])
def test_the_prediction_is_what_the_run_takes(model: str, optimizer: str) -> None:
    problem, meta, episode = case(model, optimizer, 13)
    # Of a larger model those that keep other things; all of them on the small one.
    strategies = STRATEGIES if model == "mlp" else [STRATEGIES[number] for number in (0, 1, 3, 5, 7)]
    for row in plan(problem, meta, episode, strategies=strategies).rows:
        assert row.refused is None
        assert row.peak_bytes == pytest.approx(measured(row.strategy, problem, meta, episode), rel=0.1), row.name


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "num_inner_steps"), [("sgd", 120), ("adam", 40)])
def test_the_prediction_holds_for_long_loops(optimizer: str, num_inner_steps: int) -> None:
    problem, meta, episode = case("mlp", optimizer, num_inner_steps)
    strategies = [Unrolled(), Stepwise(), Stepwise(every="sqrt"), FirstOrder(), Truncated(20)]
    for row in plan(problem, meta, episode, strategies=strategies).rows:
        assert row.peak_bytes == pytest.approx(measured(row.strategy, problem, meta, episode), rel=0.1), row.name


def test_the_prediction_holds_with_a_loss_after_every_step() -> None:
    problem, meta, episode = case("mlp", "sgd", 20)
    problem = replace(problem, outer_weights=torch.linspace(0.01, 0.1, 20))
    for row in plan(problem, meta, episode, strategies=[Unrolled(), Stepwise(), Stepwise(every="sqrt")]).rows:
        assert row.peak_bytes == pytest.approx(measured(row.strategy, problem, meta, episode), rel=0.1), row.name


@pytest.mark.parametrize("num_inner_steps", [0, 1, 4])
def test_a_short_loop_is_measured_itself(num_inner_steps: int) -> None:
    problem, meta, episode = case("mlp", "sgd", num_inner_steps)
    found = plan(problem, meta, episode, strategies=[Unrolled(), Stepwise(every="sqrt")])
    assert [row.peak_bytes for row in found.rows] == [
        measured(row.strategy, problem, meta, episode) for row in found.rows
    ]


def sizes(found: Plan) -> dict[str, int]:
    return {row.name: row.peak_bytes for row in found.rows if row.peak_bytes is not None}


RULE = [Unrolled(), Stepwise(), Stepwise(every="sqrt")]


def test_the_first_exact_strategy_that_fits_is_recommended() -> None:
    problem, meta, episode = case("mlp", "adam", 10)
    need = list(sizes(plan(problem, meta, episode, strategies=RULE)).values())
    assert need[0] > need[1] > need[2]
    for strategy, size, num_tasks in zip(RULE, need, (1, 3, 2), strict=True):
        options = {"num_tasks": num_tasks, "strategies": [FirstOrder(), *RULE]}
        assert plan(problem, meta, episode, memory=num_tasks * size, **options).recommended == strategy
        short = plan(problem, meta, episode, memory=num_tasks * size - 1, **options)
        assert next(row for row in short.rows if row.strategy == strategy).refused == "does not fit"


def test_a_shortfall_is_named_with_what_mends_it() -> None:
    problem, meta, episode = case("mlp", "sgd", 60)
    least = sizes(plan(problem, meta, episode, strategies=RULE))["Stepwise(every='sqrt')"]
    found = plan(problem, meta, episode, num_tasks=1000, memory=1000 * least - 5_000_000, strategies=RULE)
    with pytest.raises(UsageError, match=r"Stepwise\(every='sqrt'\) takes the least.*5\.0 MB more.*chunk_size") as told:
        found.recommended  # noqa: B018
    assert str(told.value) in str(found), "the table can be shown nevertheless"


def test_the_default_rows_say_what_they_are() -> None:
    problem, meta, episode = case("mlp", "sgd", 20)
    found = plan(problem, meta, episode, memory=10**9)
    exact = {row.name: row.exact for row in found.rows}
    assert exact == {"Unrolled()": True, "Stepwise(every=1)": True, "Stepwise(every='sqrt')": True,
                     "Stepwise(every=1, mode='forward')": True, "ForwardMode()": True, "FirstOrder()": False,
                     "Truncated(num_steps=2)": False, "Implicit()": False}  # fmt: skip
    refused = {row.name: row.refused for row in found.rows if row.refused is not None}
    assert "each of 403 meta-parameters" in refused["ForwardMode()"]
    assert "gradient is zero" in refused["Implicit()"]
    times = {row.name: row.time for row in found.rows}
    assert times["Unrolled()"] == 1.0
    assert times["ForwardMode()"] is None
    table = str(found).splitlines()
    assert table[0] == "20 inner steps, 1 task(s) at once, memory that may be used: 1.00 GB"
    assert table[-1] == "recommended: Unrolled()"
    assert len(table) == 2 + len(found.rows) + 1


def test_few_meta_parameters_and_a_proximal_term_admit_the_others() -> None:
    problem, meta, episode = case("mlp", "sgd", 8)
    start, rate = dict(meta), {"lr": torch.tensor(0.01)}
    learned_rate = replace(
        problem,
        init=lambda meta, episode: problem.init(start, episode),
        optimizer=lambda meta: optim.sgd(meta["lr"]),
    )
    (row,) = plan(learned_rate, rate, episode, strategies=[ForwardMode()]).rows
    assert row.peak_bytes == pytest.approx(measured(ForwardMode(), learned_rate, rate, episode), rel=0.05)


@dataclass
class TwoCopies(Strategy):
    """A user's own, not hashable, that takes as much as Unrolled and four times the meta-parameters."""

    factor: int = 4

    def value_and_grad(self, problem: Problem) -> MetaGradient:
        inner = Unrolled().value_and_grad(problem)

        def run(meta, episode, carry=None):
            copies = [{name: value.clone() for name, value in meta.items()} for _ in range(self.factor)]
            return inner(copies[0], episode)

        return run


def test_a_strategy_of_ones_own_has_a_row_but_is_not_recommended() -> None:
    problem, meta, episode = case("mlp", "sgd", 20)
    found = plan(problem, meta, episode, memory=10**9, strategies=[TwoCopies(), Unrolled()])
    size = sum(value.nbytes for value in meta.values())
    assert found.rows[0].exact is None
    assert found.rows[0].peak_bytes - found.rows[1].peak_bytes == pytest.approx(4 * size, rel=0.01)
    assert found.recommended == Unrolled()
    with pytest.raises(UsageError, match="None of the strategies is exact"):
        plan(problem, meta, episode, memory=10**9, strategies=[TwoCopies()]).recommended  # noqa: B018


def test_names_are_how_one_writes_them() -> None:
    assert name_of(Truncated(3, windows=True)) == "Truncated(num_steps=3, windows=True)"
    assert name_of(Stepwise(every=2)) == "Stepwise(every=2)"
    assert name_of(Implicit(solver="direct")) == "Implicit(solver='direct')"


def test_a_problem_that_does_not_run_is_no_refused_strategy() -> None:
    problem, meta, episode = case("mlp", "sgd", 2)
    wrong = replace(problem, outer_loss=lambda meta, params, buffers, episode, step: 1.0)
    with pytest.raises(UsageError, match="the outer loss returned float"):
        plan(wrong, meta, episode)
    with pytest.raises(UsageError, match="num_tasks=0"):
        plan(problem, meta, episode, num_tasks=0)


def test_free_memory_is_read_from_linux_and_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    group.mkdir()
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", group)
    assert free_bytes("cpu") is None
    meminfo.write_text("MemTotal:  100 kB\nMemAvailable:   50 kB\n")
    assert free_bytes("cpu") == 50 * 1024
    (group / "memory.max").write_text("max\n")
    assert free_bytes("cpu") == 50 * 1024
    (group / "memory.max").write_text("20000\n")
    (group / "memory.current").write_text("15000\n")
    (group / "memory.stat").write_text("anon 14000\nfile 1000\n")
    assert free_bytes("cpu") == 6000


def test_where_free_memory_is_not_known_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metagrad.planning, "free_bytes", lambda device: None)
    found = plan(*case("mlp", "sgd", 2), strategies=RULE)
    assert found.memory is None
    assert found.recommended == Unrolled()
    assert "not known on this system (pass memory=...)" in str(found)
