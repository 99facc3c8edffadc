"""When a run goes over to compiled meta-gradients: with a compiler that does what the test says."""

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from metalearn import algorithms, execution, losses, metagrad
from metalearn.errors import UsageError
from metalearn.tasks import Sinusoid
from metalearn.training import Interrupted, ahead, compiling, evaluate, load_checkpoint, train, trainer
from metalearn.training.compiling import switching_of
from metalearn.training.equality import Difference, difference, nudged
from metalearn.training.step_times import StepTimes
from tests.training.faked import Compiler, Faked, Telling, forgotten


@pytest.fixture
def run(tmp_path: Path, make_experiment: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains; returns what was told, the record, and the last checkpoint's meta-parameters."""

    def trained(
        *,
        compiler: Compiler | None = None,
        name: str = "run",
        resume: bool = False,
        command: Any = ("compile",),
        way: Any = None,
        **changes: Any,
    ) -> tuple[list[str], dict[str, Any] | None, Any]:
        progress, folder = Telling(), tmp_path / name
        if compiler is not None:
            monkeypatch.setattr(trainer, "switching_of", partial(switching_of, start=compiler.start))
        way = Faked(compiled="whole") if way is None else way
        experiment = make_experiment(execution=way, **changes)
        try:
            train(experiment, folder, resume=resume, progress=progress, compile_command=command)
        except Interrupted:
            progress.told.append("interrupted")
        path = folder / "execution.json"
        record = json.loads(path.read_text()) if path.exists() else None
        return progress.told, record, load_checkpoint(folder / "checkpoints" / "last").meta

    forgotten()
    return trained


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


def test_a_run_switches_at_the_first_step_after_the_compiler_is_done(run: Any, tmp_path: Path) -> None:
    compiler = Compiler(polls=3)
    told, record, _ = run(compiler=compiler)
    assert (compiler.started, compiler.closed) == (1, 1)
    (entry,) = record["switched"]
    assert entry["since"] == 3  # the looks of steps 0, 1 and 2 found nothing
    assert entry["relative_error"] == pytest.approx(1e-6, rel=0.1)
    assert (entry["bound"], entry["ahead_seconds"]) == (1e-4, 1.5)
    assert (record["torch"], record["compiled"], record["eager"]) == (str(torch.__version__), "whole", [])
    assert len(Faked.calls) == 3  # steps 3, 4 and 5
    assert told[0].startswith("execution.compile: compiling meta-gradients (whole) in a process of its own")
    assert any(text.startswith("step 3: compiled meta-gradients (whole) from here on") for text in told)
    card = json.loads((tmp_path / "run" / "results.json").read_text())["protocol"]
    assert card["compiled"] == [{"strategy": "Unrolled()", "since": 3, "relative_error": entry["relative_error"]}]
    assert "compiled='whole'" in card["execution"]


def test_before_the_switch_the_numbers_are_the_eager_ones(run: Any) -> None:
    _, _, eager = run(way=Faked(), name="eager", num_steps=3)
    _, record, never = run(compiler=Compiler(polls=None), num_steps=3)
    assert same(eager, never)
    assert record is None
    _, _, compiled = run(compiler=Compiler(polls=0), name="compiled", num_steps=3)
    assert not same(eager, compiled)


def test_an_unfinished_compiler_is_ended_with_the_run(run: Any) -> None:
    compiler = Compiler(polls=None)
    told, _, _ = run(compiler=compiler)
    assert compiler.closed == 1
    assert "execution.compile: the meta steps ended before the compiled code was ready" in told


@pytest.mark.parametrize("at", [0, 2])
def test_a_fixed_step_is_waited_for_and_repeats_bit_for_bit(run: Any, at: int) -> None:
    _, record, one = run(compiler=Compiler(polls=10), switch_at=at)
    assert [entry["since"] for entry in record["switched"]] == [at]
    _, _, other = run(compiler=Compiler(polls=4), name="again", switch_at=at)
    assert same(one, other)


class Stopping(Sinusoid):
    """Interrupts the run when a training batch is asked for the `at`-th time."""

    def __init__(self, at: int | None) -> None:
        super().__init__(shots=5, query_shots=5)
        self.at, self.count = at, 0

    def episodes(self, split, indices, *, seed=0):
        if split == "train" and len(indices) == 3:  # not the look that a run takes before it starts
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGINT)
        return super().episodes(split, indices, seed=seed)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resumed_is_as_never_interrupted(run: Any, tmp_path: Path, stop: int) -> None:
    _, _, whole = run(compiler=Compiler(polls=3))
    told, record, _ = run(compiler=Compiler(polls=3), name="parts", source=Stopping(stop))
    assert "interrupted" in told
    assert [entry["since"] for entry in (record or {"switched": []})["switched"]] == ([3] if stop > 3 else [])
    # What is not written down yet goes on being tried; what is written down is repeated, whatever the compiler does.
    polls = 3 - stop if stop < 3 else 0
    _, record, parts = run(compiler=Compiler(polls=polls), name="parts", resume=True)
    assert [entry["since"] for entry in record["switched"]] == [3]
    assert same(whole, parts)


def test_a_run_that_was_killed_after_the_switch_repeats_the_steps_before_it_as_they_are(
    run: Any, tmp_path: Path
) -> None:
    _, _, whole = run(compiler=Compiler(polls=4))
    run(compiler=Compiler(polls=4), name="killed", source=Stopping(2))
    # As a power cut leaves it: the record is there, the checkpoint is of an earlier step.
    record = (tmp_path / "run" / "execution.json").read_bytes()
    (tmp_path / "killed" / "execution.json").write_bytes(record)
    forgotten()
    _, _, parts = run(compiler=Compiler(polls=None), name="killed", resume=True)
    assert same(whole, parts)
    assert len(Faked.calls) == 2


def test_a_gradient_that_is_another_one_is_not_taken(run: Any, tmp_path: Path) -> None:
    wrong = Faked(compiled="whole", factor=1.01)
    told, record, meta = run(compiler=Compiler(polls=1), way=wrong)
    assert record["switched"] == []
    (entry,) = record["eager"]
    assert entry["for_good"] is True
    assert "is 0.01 off the eager one (at most 0.0001)" in entry["reason"]
    assert any("not compiled, the run goes on as it is: the compiled gradient is 0.01 off" in text for text in told)
    _, _, eager = run(way=Faked(), name="eager")
    assert same(meta, eager)
    assert len(Faked.calls) == 1
    card = json.loads((tmp_path / "run" / "results.json").read_text())["protocol"]
    assert "0.01 off" in card["not_compiled"][0]["reason"]
    with pytest.raises(UsageError, match=r"execution\.switch_at=2, but nothing is compiled: .*0\.01 off"):
        run(compiler=Compiler(polls=0), way=wrong, name="fixed", switch_at=2)


def test_a_float64_gradient_has_to_be_closer() -> None:
    def between(dtype: torch.dtype, factor: float) -> Difference:
        eager = {"w": torch.tensor([3.0, -4.0], dtype=dtype)}
        found = {"w": eager["w"] * factor}
        return difference(found, eager, execution=execution.Vmap(), exact=lambda moved: moved(eager))

    assert between(torch.float64, 1 + 1e-8) == (pytest.approx(1e-8, rel=1e-6), 1e-9)
    assert not between(torch.float64, 1 + 1e-8).is_none
    assert between(torch.float64, 1 + 1e-10).is_none
    assert between(torch.float32, 1 + 1e-5).is_none
    assert not between(torch.float32, 1 + 1e-3).is_none
    assert between(torch.float32, float("nan")).is_known is False
    assert between(torch.float32, float("nan")).is_none is False
    assert between(torch.complex64, 1 + 1e-3).error == pytest.approx(1e-3, rel=1e-3)


def test_where_rounding_alone_moves_the_gradient_as_far_it_is_the_same() -> None:
    """A kink that the parameters lie on, but for rounding: the eager gradient jumps as the compiled one does."""
    at = {"w": torch.full((4,), 0.3)}

    def gradient(moved: Any) -> dict[str, torch.Tensor]:
        w = moved(at)["w"]
        return {"w": 1 + 0.1 * (w > at["w"][0])}

    eager = {"w": torch.ones(4)}
    jumped = {"w": torch.tensor([1.1, 1.0, 1.0, 1.0])}
    far = {"w": torch.tensor([2.0, 1.0, 1.0, 1.0])}
    way = execution.Vmap()
    found = difference(jumped, eager, execution=way, exact=gradient)
    assert found.is_none
    assert found.error == pytest.approx(0.05, rel=1e-4)
    assert not difference(far, eager, execution=way, exact=gradient).is_none
    assert not difference(jumped, eager, execution=way, exact=lambda moved: eager).is_none


def test_moved_by_rounding_is_another_number_of_the_same_size() -> None:
    params = {"w": torch.tensor([0.3, -2e6, 0.0]), "d": torch.rand(9, dtype=torch.float64), "n": torch.arange(3)}
    moved = nudged(params, seed=0)
    for name, eps in (("w", 2**-23), ("d", 2**-52)):
        assert moved[name].dtype == params[name].dtype
        assert not torch.equal(moved[name], params[name])
        assert bool(((moved[name] - params[name]).abs() <= 9 * eps * params[name].abs()).all())
    assert torch.equal(moved["n"], params["n"])
    assert all(torch.equal(value, nudged(params, seed=0)[name]) for name, value in moved.items())
    assert not torch.equal(moved["w"], nudged(params, seed=1)["w"])


def test_in_bf16_the_bound_is_what_bf16_costs(run: Any) -> None:
    way = Faked(compiled="whole", precision="bf16", factor=1.005)
    _, record, _ = run(compiler=Compiler(polls=0), way=way)
    assert 1e-2 <= record["switched"][0]["bound"] < 0.5
    assert 1e-3 < record["switched"][0]["relative_error"] < 1e-2


def test_a_failed_compiler_is_told_and_tried_again_on_resuming(run: Any) -> None:
    told, record, _ = run(compiler=Compiler(polls=1, error="torch found no C++ compiler."), source=Stopping(4))
    assert record["eager"] == [
        {"strategy": "Unrolled()", "reason": "torch found no C++ compiler.", "for_good": False, "at": 0}
    ]  # fmt: skip
    assert "step 0: not compiled, the run goes on as it is: torch found no C++ compiler." in told
    compiler = Compiler(polls=0)
    _, record, _ = run(compiler=compiler, resume=True)
    assert compiler.started == 1
    assert record["eager"] == []
    assert record["switched"][0]["since"] >= 4


def test_a_fixed_step_without_a_compiler_is_a_mistake(run: Any) -> None:
    with pytest.raises(UsageError, match=r"execution\.switch_at=4, but nothing is compiled: no C\+\+ compiler"):
        run(compiler=Compiler(polls=1, error="no C++ compiler"), switch_at=4)


def test_what_fails_at_once_is_told_before_a_run_is_there(run: Any, tmp_path: Path) -> None:
    def fails(count: int) -> None:
        raise RuntimeError("no such operator")

    with pytest.raises(UsageError, match=r"switch_at=0, but nothing is compiled: RuntimeError: no such operator"):
        run(way=Faked(compiled="whole", fails=fails), switch_at=0)
    assert not (tmp_path / "run" / "checkpoints").exists()
    _told, record, _ = run(way=Faked(compiled="whole", fails=fails), name="free", command=None)
    assert "RuntimeError: no such operator" in record["eager"][0]["reason"]


def test_without_a_command_it_is_compiled_here_and_said(run: Any) -> None:
    told, record, _ = run(command=None)
    assert "step 0: compiling meta-gradients (whole) in this process" in told
    assert record["switched"][0] | {"compile_seconds": 0, "relative_error": 0} == {
        "strategy": "Unrolled()", "since": 0, "until": None, "compile_seconds": 0, "ahead_seconds": None,
        "relative_error": 0, "bound": 1e-4,
    }  # fmt: skip


def test_what_can_not_go_on_compiled_goes_on_as_it_is(run: Any) -> None:
    def fails(count: int) -> None:
        if count == 3:
            raise UsageError("the inputs have come in 16 different shapes.")

    told, record, _ = run(compiler=Compiler(polls=0), way=Faked(compiled="whole", fails=fails))
    assert (record["switched"][0]["since"], record["switched"][0]["until"]) == (0, 2)
    assert "step 2: meta-gradients as they are from here on: the inputs have come in 16 different shapes." in told
    assert len(Faked.calls) == 3
    forgotten()
    with pytest.raises(UsageError, match=r"compiled from meta step 0 on \(execution\.json\), which fails here"):
        run(way=Faked(compiled="whole", fails=fails), name="fixed", switch_at=0)


class _Counting(Faked):
    """Notes how many threads every eager gradient has."""

    seen: ClassVar[list[int]] = []

    def value_and_grad(self, strategy: Any, problem: Any) -> Any:
        function = super().value_and_grad(strategy, problem)
        if self.compiled is not None:
            return function

        def counted(*args: Any, **held: Any) -> Any:
            self.seen.append(torch.get_num_threads())
            return function(*args, **held)

        return counted


@pytest.mark.parametrize(
    ("compiler", "expected"),
    [(Compiler(polls=3), [1, 1, 1, 3]), (Compiler(polls=2, error="no compiler"), [1, 1, 3, 3])],
    ids=["switched", "failed"],
)
def test_until_it_is_compiled_a_run_leaves_threads_to_the_compiler(
    run: Any, monkeypatch: pytest.MonkeyPatch, compiler: Compiler, expected: list[int]
) -> None:
    monkeypatch.setattr(compiling, "shared_threads", lambda: (1, 1))
    _Counting.seen.clear()
    torch.set_num_threads(3)
    try:
        run(compiler=compiler, way=_Counting(compiled="whole"))
    finally:
        torch.set_num_threads(1)
    assert _Counting.seen[:4] == expected


def test_no_step_and_no_compiler_is_left_without_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, num_threads, expected in ((1, 1, (1, 1)), (2, 2, (1, 1)), (4, 4, (2, 2)), (64, 32, (32, 32))):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: range(cores), raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda num_threads=num_threads: num_threads)
        assert ahead.shared_threads() == expected


def test_every_strategy_of_a_run_is_compiled(run: Any) -> None:
    strategy = metagrad.FirstOrder(until=3)
    _, record, _ = run(compiler=Compiler(polls=1), strategy=strategy)
    assert [(entry["strategy"], entry["since"]) for entry in record["switched"]] == [
        ("FirstOrder(until=3)", 1), ("Unrolled()", 3),
    ]  # fmt: skip
    assert Faked.made == ["FirstOrder(until=3)", "Unrolled()"]


def test_running_statistics_do_not_make_the_function_anew(run: Any) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    _, _record, meta = run(compiler=Compiler(polls=0), module=module, way=Faked(compiled="whole", factor=1.0))
    assert Faked.made == ["Unrolled()"]
    assert len(Faked.calls) == 6
    _, _, eager = run(module=module, way=Faked(), name="eager")
    assert same(meta, eager)


class WithoutHolding(algorithms.MAML):
    def problem(self, model):
        return replace(super().problem(model), holding=None)


def test_a_problem_that_holds_one_models_buffers_is_not_compiled(run: Any) -> None:
    algorithm = WithoutHolding(loss=losses.mean_squared_error)
    _, record, _ = run(compiler=Compiler(polls=0), algorithm=algorithm)
    assert "Give its Problem `holding`" in record["eager"][0]["reason"]
    assert Faked.calls == []


def test_evaluation_of_a_compiled_run_tells_it(run: Any, tmp_path: Path, make_experiment: Any) -> None:
    run(compiler=Compiler(polls=0))
    found = evaluate(make_experiment(execution=execution.Vmap(compiled="whole")), tmp_path / "run", baseline=False)
    assert found.data["protocol"]["compiled"][0]["since"] == 0


def test_an_unreadable_record_is_told(run: Any, tmp_path: Path) -> None:
    run(compiler=Compiler(polls=0), source=Stopping(3))
    (tmp_path / "run" / "execution.json").write_text("{}")
    with pytest.raises(UsageError, match=r"execution\.json can not be read .* Start a new run"):
        run(compiler=Compiler(polls=0), resume=True)


@pytest.mark.parametrize(
    ("changes", "expected"), [({"switch_at": -1}, "at least 0"), ({"measures": ("lop",)}, "'loop'")]
)
def test_settings_that_make_no_run_are_refused(make_experiment: Any, changes: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        make_experiment(**changes)


def test_how_much_faster_a_step_became_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = StepTimes(torch.device("cpu"))
    now, said = 0.0, []
    monkeypatch.setattr(times, "_clock", lambda: now)
    for step in range(30):
        said.append(times.began(step))
        times.is_compiled = step >= 10
        now += 7.0 if step == 10 else 0.001 if times.is_compiled else 0.008
    assert [text for text in said if text] == ["step 16: a meta step takes 1 ms, 8 before: 8.0 times as fast"]
