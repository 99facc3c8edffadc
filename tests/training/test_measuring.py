"""An execution chosen by measurement: what is tried, what is left out, what is kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import algorithms, execution, losses, metagrad
from metalearn.errors import UsageError
from metalearn.training import Interrupted, evaluate, measuring, train
from metalearn.training.interrupts import StopFlag
from metalearn.training.measuring import Candidate, fastest, table
from tests.training.faked import Telling

BOTH = ("loop", "vmap")


def maml(num_inner_steps: int = 2) -> algorithms.MAML:
    return algorithms.MAML(loss=losses.mean_squared_error, inner_lr=0.01, num_inner_steps=num_inner_steps)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Lets what would be compiled be run as it is; by the name of a candidate, what becomes of its gradient."""
    changes: dict[str, Any] = {}
    original = execution.Execution.value_and_grad

    def value_and_grad(self: Any, strategy: Any, problem: Any) -> Any:
        if self.compiled is None:
            return original(self, strategy, problem)
        eager = original(type(self)(precision=self.precision), strategy, problem)
        change = changes.get(f"{'vmap' if self.at_once else 'loop'} {self.compiled}", lambda outcome: outcome)
        return lambda *args, **held: change(eager(*args, **held))

    monkeypatch.setattr(execution.Execution, "value_and_grad", value_and_grad)
    return changes


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The seconds of a meta-gradient by the name of the candidate, in place of a clock."""
    found: dict[str, float] = {}
    original = measuring._Bench.tried

    def tried(self: Any, candidate: Candidate) -> Candidate:
        name = f"{candidate.tasks} {candidate.compiled or 'eager'}"
        with monkeypatch.context() as patch:
            patch.setattr(measuring._Bench, "_seconds", lambda self, gradient: found[name])
            return original(self, candidate)

    monkeypatch.setattr(measuring._Bench, "tried", tried)
    return found


def candidates(folder: Path) -> dict[str, dict[str, Any]]:
    record = json.loads((folder / "execution.json").read_text())
    return {f"{each['tasks']} {each['compiled'] or 'eager'}": each for each in record["measured"]["candidates"]}


ALIKE = {f"{tasks} {way}": 10.0 for tasks in BOTH for way in ("eager", "pieces", "whole")}


def test_the_fastest_is_taken_kept_and_replayed(
    tmp_path: Path, make_experiment: Any, compiles: Any, times: dict[str, float]
) -> None:
    times.update(ALIKE | {"loop pieces": 1.0, "vmap eager": 8.0})
    progress, stop = Telling(), StopFlag()
    experiment = make_experiment(algorithm=maml(), measures=BOTH)

    def after_the_first_validation(step: int, means: Any) -> None:
        stop.requested = True

    with pytest.raises(Interrupted):
        train(experiment, tmp_path, progress=progress, on_validation=after_the_first_validation, stop=stop)
    record = json.loads((tmp_path / "execution.json").read_text())
    assert (record["measured"]["tasks"], record["measured"]["compiled"]) == ("loop", "pieces")
    assert record["execution"].startswith("Loop(")
    assert "compiled='pieces'" in record["execution"]
    assert record["switched"][0]["since"] == 0
    tried = candidates(tmp_path)
    assert set(tried) == set(ALIKE)
    assert [each["refused"] for each in tried.values()] == [""] * 6
    assert tried["loop pieces"]["break_even"] == 1  # next to nothing to compile, 7 s won at a step
    assert tried["vmap eager"]["total_seconds"] == 8.0 * 6
    assert all(each["relative_error"] < 1e-6 for each in tried.values())
    assert "execution=measure: loop, pieces it is, for 6 meta steps" in progress.told
    times.update({"loop pieces": 99.0})
    again = Telling()
    results = train(experiment, tmp_path, resume=True, progress=again)
    assert not any("execution=measure" in text for text in again.told)
    card = results.data["protocol"]
    assert card["execution"].startswith("Loop(")
    assert card["execution_chosen_by"].startswith("measurement")
    measured = evaluate(experiment, tmp_path, baseline=False).data
    assert measured["protocol"]["execution"] == card["execution"]
    assert measured["test"] == results.data["test"]
    other = make_experiment(algorithm=maml(), measures=("vmap",))  # evaluated another way: that is as asked
    assert evaluate(other, tmp_path, baseline=False).data["protocol"]["execution"].startswith("Vmap(")


def test_another_gradient_is_no_candidate(
    tmp_path: Path, make_experiment: Any, compiles: Any, times: dict[str, float]
) -> None:
    times.update(ALIKE | {"vmap whole": 0.1, "loop eager": 5.0})
    compiles["vmap whole"] = lambda outcome: outcome._replace(grads={k: 2 * v for k, v in outcome.grads.items()})
    train(make_experiment(algorithm=maml(), measures=BOTH), tmp_path)
    tried = candidates(tmp_path)
    assert tried["vmap whole"]["refused"] == "its gradient is 1 off that of the eager loop (at most 0.0001)"
    assert tried["vmap whole"]["total_seconds"] is None
    record = json.loads((tmp_path / "execution.json").read_text())
    assert (record["measured"]["tasks"], record["compiled"]) == ("loop", None)


def test_what_raises_is_left_out_with_its_reason(
    tmp_path: Path, make_experiment: Any, compiles: Any, times: dict[str, float]
) -> None:
    def untraceable(outcome: Any) -> Any:
        raise UsageError("compiled execution: the code reads a number out of a tensor")

    def broken(outcome: Any) -> Any:
        raise RuntimeError("the compiler fell over")

    times.update(ALIKE)
    compiles.update({"vmap whole": untraceable, "loop whole": broken})
    progress = Telling()
    train(make_experiment(algorithm=maml(), measures=BOTH), tmp_path, progress=progress)
    tried = candidates(tmp_path)
    assert tried["vmap whole"]["refused"] == "compiled execution: the code reads a number out of a tensor"
    assert tried["loop whole"]["refused"].endswith("RuntimeError: the compiler fell over")
    assert any("vmap, whole   left out: compiled execution" in text for text in progress.told)


@pytest.mark.parametrize(
    ("strategy", "num_inner_steps", "left_out"),
    [
        (metagrad.Unrolled(), 1, {"loop pieces", "vmap pieces"}),
        (metagrad.Unrolled(), 6, {"loop whole", "vmap whole"}),
        (metagrad.ForwardMode(), 6, {"loop pieces", "vmap pieces"}),
        (metagrad.FirstOrder(until=3), 2, set()),
    ],
)
def test_what_makes_no_sense_for_a_strategy_is_not_tried(
    tmp_path: Path, make_experiment: Any, compiles: Any, times: dict[str, float], strategy, num_inner_steps, left_out
) -> None:
    times.update(ALIKE)
    train(make_experiment(algorithm=maml(num_inner_steps), strategy=strategy, measures=BOTH), tmp_path)
    assert {name for name, each in candidates(tmp_path).items() if each["refused"]} == left_out


def test_a_short_run_compiles_nothing(tmp_path: Path, make_experiment: Any, compiles: Any, times: Any) -> None:
    times.update(dict.fromkeys(ALIKE, 1e-6))
    train(make_experiment(algorithm=maml(), measures=BOTH), tmp_path)
    for name, each in candidates(tmp_path).items():
        assert ("too short to be worth compiling" in each["refused"]) is not name.endswith("eager")


def test_only_the_tasks_that_are_left_open_are_tried(tmp_path: Path, make_experiment: Any, compiles, times) -> None:
    times.update(ALIKE)
    way = execution.Vmap(chunk_size=2, task_clip=0.5)
    train(make_experiment(algorithm=maml(), execution=way, measures=("vmap",)), tmp_path)
    assert {name.split()[0] for name in candidates(tmp_path)} == {"vmap"}
    record = json.loads((tmp_path / "execution.json").read_text())
    assert "task_clip=0.5" in record["execution"]
    assert "chunk_size=2" in record["execution"]


def test_what_a_gpu_is_tried_with(make_experiment: Any) -> None:
    def names(module: torch.nn.Module, tasks: str, device: str) -> list[str]:
        experiment = make_experiment(algorithm=maml(num_inner_steps=9), module=module)
        ways = measuring.compiled_ways(experiment, tasks, torch.device(device))
        return [each.name for each in ways if not each.refused]

    line, convolution = torch.nn.Linear(1, 1), torch.nn.Conv1d(1, 1, 1)
    assert names(line, "vmap", "cpu") == names(convolution, "vmap", "cpu") == ["vmap, pieces"]
    assert names(line, "vmap", "cuda") == ["vmap, pieces, CUDA graph", "vmap, pieces"]
    assert names(convolution, "loop", "cuda") == ["loop, pieces, CUDA graph", "loop, pieces"]
    assert names(convolution, "vmap", "cuda") == [
        "vmap, pieces, CUDA graph", "vmap, pieces, products, CUDA graph", "vmap, pieces",
    ]  # fmt: skip


def test_where_nothing_runs_all_reasons_are_told() -> None:
    with pytest.raises(UsageError, match=r"loop, eager: no room; vmap, eager: no vmap"):
        fastest(
            [
                Candidate(tasks=name, compiled=None, refused=why)
                for name, why in (("loop", "no room"), ("vmap", "no vmap"))
            ]
        )


def test_compiling_counts_in_the_total() -> None:
    quick = Candidate(tasks="vmap", compiled="whole", compile_seconds=30, step_seconds=0.001, total_seconds=30.1)
    slow = Candidate(tasks="vmap", compiled=None, step_seconds=0.01, total_seconds=1.0)
    assert fastest([slow, quick]) is slow
    assert table([slow, quick])[2].split() == ["vmap,", "whole", "30s", "1", "ms", "30s", "-"]


def test_the_clock_is_the_process_on_a_cpu(make_experiment: Any) -> None:
    from metalearn.training.laboratory import prepare_laboratory
    from metalearn.training.state import TrainState

    laboratory = prepare_laboratory(make_experiment(algorithm=maml()))
    meta = laboratory.initial_meta()
    optimizer = torch.optim.Adam(list(meta.values()))
    bench = measuring._Bench(
        laboratory, TrainState(step=0, meta=meta, optimizer=optimizer, buffers=laboratory.initial_buffers())
    )
    found = bench.tried(Candidate(tasks="loop", compiled=None))
    assert found.step_seconds is not None
    assert 0 < found.step_seconds < 1
    assert (found.compile_seconds, found.peak_mb, found.relative_error) == (0.0, None, 0.0)
    assert found.total_seconds == pytest.approx(6 * found.step_seconds)
