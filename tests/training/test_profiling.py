"""The profile of a run: its table adds up, inner and outer are told apart, and nothing changes for it."""

import json
from pathlib import Path

import pytest
import torch

from metalearn import UsageError, execution, metagrad
from metalearn.training import Interrupted, StopFlag, train
from metalearn.training.profiling import MEASURED, PROFILE, TABLE, TRACE, TRACED, WARM_UP, Profiler, as_table
from tests.training_progress import Told

ALL = WARM_UP + MEASURED + TRACED
LONG = {"num_steps": ALL + 2, "eval_every": 0, "log_every": 10, "test_episodes": 2, "profile": True}


def profiled(folder: Path) -> dict[str, dict[str, float]]:
    return {row["phase"]: row for row in json.loads((folder / PROFILE).read_text())["phases"]}


@pytest.mark.parametrize("way", [execution.Vmap(), execution.Loop()], ids=["vmap", "loop"])
def test_a_profiled_run_is_the_same_run(tmp_path: Path, make_experiment, content, way) -> None:
    told = Told()
    train(make_experiment(execution=way, **LONG), tmp_path / "with", progress=told)
    train(make_experiment(execution=way, **{**LONG, "profile": False}), tmp_path / "without")
    assert content(tmp_path / "with/checkpoints/last") == content(tmp_path / "without/checkpoints/last")
    assert (tmp_path / "with/metrics.jsonl").read_bytes() == (tmp_path / "without/metrics.jsonl").read_bytes()
    rows = profiled(tmp_path / "with")
    assert list(rows) == ["sampling", "inner", "outer", "optimizer", "logging", "rest"]
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1, abs=1e-9)
    found = json.loads((tmp_path / "with" / PROFILE).read_text())
    assert sum(row["milliseconds"] for row in rows.values()) == pytest.approx(found["step_milliseconds"])
    assert all(row["milliseconds"] > 0 for row in rows.values())
    assert "sampling" in (tmp_path / "with" / TABLE).read_text()
    assert any("a meta-step takes" in message for message in told.messages)
    events = json.loads((tmp_path / "with" / TRACE).read_text())["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    times = TRACED * (3 if isinstance(way, execution.Loop) else 1)
    assert ranges.count("outer") == ranges.count("inner") == times
    assert not (tmp_path / "without" / PROFILE).exists()


class Ticks:
    """A clock that tells how often it was asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    "strategy", [metagrad.Unrolled(), metagrad.Stepwise(), metagrad.FirstOrder()], ids=["unrolled", "stepwise", "first"]
)
@pytest.mark.parametrize("weights", [None, [0.2, 0.3, 0.5]], ids=["last", "every"])
def test_what_is_computed_again_on_the_way_back_is_outer(tmp_path, strategy, weights) -> None:
    from metalearn import optim, tree
    from metalearn.problem import Problem
    from metalearn.types import Aux

    ticks, calls = Ticks(), []

    def inner(meta, params, buffers, batch, step):
        ticks.now += 1.0
        calls.append(step)
        return (params["w"] - batch).square().sum(), Aux(buffers, {})

    def outer(meta, params, buffers, episode, step):
        return (params["w"] - 1).square().sum(), Aux(buffers, {})

    problem = Problem(
        init=lambda meta, episode: (dict(meta), {}), inner_loss=inner, optimizer=lambda meta: optim.sgd(0.1),
        outer_loss=outer, batch=lambda episode, step: episode, num_inner_steps=3, outer_weights=weights,
    )  # fmt: skip
    profiler = Profiler(tmp_path, torch.device("cpu"), print, {}, clock=ticks)
    way = execution.Loop()
    function = profiler.gradient(way, strategy, problem)
    meta, episodes = {"w": torch.zeros(2)}, torch.ones(2, 2)
    wanted = way.value_and_grad(strategy, problem)(meta, episodes)
    calls.clear()
    profiler.begin()
    profiler.enter("meta-gradient")
    found = function(meta, episodes)
    profiler.enter("logging")
    assert all(torch.equal(*pair) for pair in zip(tree.tensors(found), tree.tensors(wanted), strict=True))
    seconds = profiler._seconds
    assert seconds["inner"] == 2 * 3  # two tasks, three steps forward
    assert seconds.get("outer", 0.0) == len(calls) - seconds["inner"]
    assert (seconds.get("outer", 0.0) > 0) == isinstance(strategy, metagrad.Stepwise)


def test_a_compiled_gradient_is_one_row(tmp_path: Path) -> None:
    class Compiled:
        compiled = "whole"

        def value_and_grad(self, strategy, problem):
            return (strategy, problem)

    profiler = Profiler(tmp_path, torch.device("cpu"), print, {})
    strategy = metagrad.Unrolled()
    assert profiler.gradient(Compiled(), strategy, None) == (strategy, None)  # type: ignore[arg-type]
    profiler.begin()
    profiler.enter("meta-gradient")
    profiler.enter("logging")
    profiler.end()
    assert "meta-gradient" in profiler._seconds
    assert "inner" not in profiler._seconds


def test_a_profile_that_was_interrupted_is_taken_anew_and_a_whole_one_is_kept(tmp_path: Path, make_experiment) -> None:
    stop = StopFlag()
    changes = {**LONG, "num_steps": 2 * ALL + 10}
    with pytest.raises(Interrupted):
        train(make_experiment(**changes), tmp_path, stop=stop, progress=Told(stop, at=WARM_UP + MEASURED + 1))
    assert not (tmp_path / TRACE).exists()
    stop = StopFlag()
    with pytest.raises(Interrupted):
        train(make_experiment(**changes), tmp_path, resume=True, stop=stop, progress=Told(stop, at=ALL + 1))
    assert (tmp_path / TRACE).exists()
    before = (tmp_path / PROFILE).read_bytes()
    assert json.loads(before)["first_meta_step"] == WARM_UP + MEASURED + 1
    train(make_experiment(**changes), tmp_path, resume=True)
    assert (tmp_path / PROFILE).read_bytes() == before


def test_too_few_meta_steps(tmp_path: Path, make_experiment) -> None:
    with pytest.raises(UsageError, match=f"execution.profile=true takes {ALL} meta steps .*, but meta.num_steps is 6"):
        train(make_experiment(profile=True), tmp_path / "short")
    assert not (tmp_path / "short/checkpoints").exists()
    stop, told = StopFlag(), Told()
    with pytest.raises(Interrupted):
        train(make_experiment(**LONG), tmp_path / "run", stop=stop, progress=Told(stop, at=4))
    train(make_experiment(**LONG), tmp_path / "run", resume=True, progress=told)
    assert any("none is taken" in message for message in told.messages)


def test_the_shares_are_printed_with_their_unit() -> None:
    rows = [
        {"phase": "inner", "milliseconds": 12.345, "share": 0.5},
        {"phase": "rest", "milliseconds": 1, "share": 0.5},
    ]
    lines = as_table({"step_milliseconds": 24.7, "measured_steps": 20, "phases": rows}).splitlines()
    assert lines[1].split() == ["inner", "12.35", "ms", "50.0", "%"]
