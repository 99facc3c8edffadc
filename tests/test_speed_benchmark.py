"""The speed benchmark: what it takes for equal work, its arithmetic, and the form of what it writes."""

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import metalearn
from metalearn import models
from metalearn.tasks import Glyphs
from metalearn.types import Episodes

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
EAGER = (
    "plain loop", "torch.func loop", "torch.func vmap", "Loop", "Vmap",
)  # fmt: skip

Benchmark = Callable[[str], ModuleType]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """A module of the benchmarks, as scripts/bench.py sees it; `"bench"` is that one."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    return lambda name: importlib.import_module(name if name == "bench" else f"benchmarks.{name}")


def tiny(benchmark: Benchmark, steps: int = 2, size: int | None = None, tasks: int = 3) -> Any:
    return benchmark("speed_cases").Problem(
        model=lambda: models.MLP(input_shape=(1,), num_outputs=1, hidden=(5,)),
        shape=(1,), ways=1, shots=4, query_shots=4, tasks=tasks, steps=steps, size=size,
    )  # fmt: skip


def images(benchmark: Benchmark) -> Any:
    return benchmark("speed_cases").Problem(
        model=lambda: models.Conv4(input_shape=(1, 16, 16), num_outputs=2, filters=4),
        shape=(1, 16, 16), ways=2, shots=2, query_shots=1, tasks=2, steps=2,
    )  # fmt: skip


def sequences(benchmark: Benchmark, name: str) -> Any:
    nets = benchmark("nets")
    makes = {
        "lstm": lambda: nets.Recurrent(features=3, hidden=4, num_outputs=2),
        "transformer": lambda: nets.Transformer(features=3, width=8, heads=2, depth=1, tokens=5, num_outputs=2),
    }
    return benchmark("speed_cases").Problem(
        model=makes[name], shape=(5, 3), ways=2, shots=2, query_shots=2, tasks=2, steps=2
    )


@pytest.mark.parametrize("work", ["regression", "images", "lstm", "transformer"])
def test_every_eager_way_is_the_plain_loop(work: str, benchmark: Benchmark) -> None:
    speed = benchmark("speed_parts")
    made = {"regression": tiny, "images": images}.get(work)
    problem = made(benchmark) if made else sequences(benchmark, work)
    for name in EAGER:
        row, gradient = speed.checked(speed.WAYS[name], problem, "cpu")
        if (work, name) == ("lstm", "torch.func vmap"):  # torch has no batching rule for its double-precision LSTM
            assert "RuntimeError" in row["reason"]
            continue
        assert gradient is not None, (name, row)
        assert row["relative_error"]["float64"] <= 1e-9
        assert row["relative_error"]["float32"] <= 1e-5


def test_the_work_has_the_shapes_that_its_case_says(benchmark: Benchmark) -> None:
    cases = benchmark("speed_cases")
    work = cases.CASES["omniglot-5way-16-pooled"].work(torch.float32)
    assert (work.num_tasks, work.num_steps) == (16, 1)
    assert work.support[0].shape == (16, 5, 1, 28, 28)
    assert work.query[0].shape == (16, 25, 1, 28, 28)
    assert work.query[1][3].tolist() == sorted([0, 1, 2, 3, 4] * 5)
    assert not torch.equal(work.support[0][0], work.support[0][1])
    again = cases.CASES["sinusoid-5"].work(torch.float64, tasks=2)
    assert again.support[0].shape == (2, 10, 1)
    # 1x40 + 40, 40x40 + 40, 40x1 + 1
    assert sum(param.numel() for param in again.module.parameters()) == 1761


def test_resnet_12_has_its_published_size(benchmark: Benchmark) -> None:
    nets = benchmark("nets")
    model = nets.ResNet12(channels=3, num_outputs=5)
    sizes = {name: sum(param.numel() for param in part.parameters()) for name, part in model.named_children()}
    widths, before, convs = (64, 160, 320, 640), 3, 0
    for width in widths:  # three 3x3 convolutions, a 1x1 beside them, and two numbers a channel for each of four norms
        convs += 9 * before * width + 2 * 9 * width * width + before * width + 8 * width
        before = width
    assert sizes == {"blocks": convs, "head": 640 * 5 + 5}
    assert round(convs / 1e6, 1) == 12.4
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_a_wrong_way_is_told_and_not_timed(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    speed, ways, loops = (benchmark(name) for name in ("speed_parts", "speed_ways", "loops"))

    def nearly(work: Any) -> Any:
        gradient = loops.plain(work)
        return lambda: [1.0001 * part for part in gradient()]

    def broken(work: Any) -> Any:
        raise RuntimeError("no batching rule\nand more")

    monkeypatch.setitem(speed.WAYS, "nearly", ways.Way(nearly, "peer"))
    monkeypatch.setitem(speed.WAYS, "broken", ways.Way(broken, "peer"))
    monkeypatch.setitem(speed.WAYS, "left out", ways.Way(loops.plain, "peer", left_out=lambda work: "too long"))
    monkeypatch.setattr(speed.machine, "_SIZE", {"cpu": 16})
    monkeypatch.setattr(speed.machine, "_FLOATS", {"cpu": 16})
    named = ["plain loop", "nearly", "broken", "left out"]
    found: dict[str, Any] = {way: {} for way in named}
    for row in speed.times(tiny(benchmark), "cpu", 2, named):
        if "way" in row:
            found[row.pop("way")].update(row)
    assert len(found["plain loop"]["seconds_each"]) == 2
    assert found["nearly"]["relative_error"] == {"float64": pytest.approx(1e-4)}
    assert found["nearly"]["wrong"].startswith("another gradient: float64")
    assert found["broken"] == {"reason": "RuntimeError: no batching rule"}
    assert found["left out"] == {"reason": "too long"}
    assert not any("seconds_each" in found[way] for way in named[1:])


def test_nan_is_a_wrong_gradient(benchmark: Benchmark) -> None:
    speed, ways, loops = (benchmark(name) for name in ("speed_parts", "speed_ways", "loops"))
    way = ways.Way(lambda work: lambda: [math.nan * part for part in loops.plain(work)()], "peer")
    assert "another gradient" in speed.checked(way, tiny(benchmark), "cpu")[0]["wrong"]


def test_what_follows_from_the_seconds(benchmark: Benchmark) -> None:
    speed = benchmark("speed")
    found = {
        "flops": 2e9, "roofs": {"gemm_gflops_per_second": 50.0},
        "ways": {
            "plain loop": {"seconds_each": [1.0, 2.0, 4.0]}, "Loop": {"seconds_each": [1.0, 1.0, 1.0]},
            "Vmap": {"seconds_each": [0.5, 0.5, 2.0]}, "higher": {"reason": "none"},
            "JAX jit(vmap)": {"seconds_each": [2.0]},
        },
    }  # fmt: skip
    speed.compare(found)
    assert found["fastest_of_ours"] == "Vmap"
    plain, jax = found["ways"]["plain loop"], found["ways"]["JAX jit(vmap)"]
    assert plain["times_ours"] == {"median": 2.0, "lowest": 2.0, "highest": 4.0}
    assert plain["times_plain"] == {"median": 1.0, "lowest": 1.0, "highest": 1.0}
    assert (plain["gflops_per_second"], plain["share_of_gemm"]) == (1.0, 0.02)
    assert jax["times_ours"]["median"] == 4.0  # of the one repetition that both have
    assert found["ways"]["higher"] == {"reason": "none"}


def test_the_slope_is_the_exponent(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = benchmark("speed")
    assert speed.slope([(n, 3 * n**1.5) for n in (1, 10, 100)]) == pytest.approx(1.5)
    assert speed.slope([(n, 0.2) for n in (1, 10, 100)]) == pytest.approx(0.0)
    # Half of a line and half flat: a least-squares line and not that through the ends.
    assert speed.slope([(1, 1), (math.e, math.e), (math.e**2, math.e)]) == pytest.approx(0.5)
    found = {
        f"tasks-{tasks}": {"ways": {"Vmap": {"seconds": {"median": 2.0 * tasks}}, "Loop": {"reason": "none"}}}
        for tasks in (1, 10, 100)
    }
    found["sinusoid-5"] = {"ways": {"Vmap": {"seconds": {"median": 1.0}}}}
    assert speed.slopes(found) == {"tasks": {"Vmap": pytest.approx(1.0)}}


def test_cases_are_chosen_by_name_or_group(benchmark: Benchmark) -> None:
    cases = benchmark("speed_cases")
    assert cases.chosen(None) == list(cases.CASES)
    assert cases.chosen(["lstm", "sinusoid"]) == ["sinusoid-1", "sinusoid-5", "sinusoid-50", "lstm"]
    with pytest.raises(
        ValueError, match=r"'sinus' is no case; there are sinusoid-1, .* and the groups sinusoid, omniglot"
    ):
        cases.chosen(["sinus"])


def test_operations_are_counted(benchmark: Benchmark) -> None:
    machine = benchmark("machine")
    left, right = torch.randn(3, 4), torch.randn(4, 5)
    assert machine.flops(lambda: left @ right) == 2 * 3 * 4 * 5
    assert machine.roofs(0.5, 0.25, "cpu") == {
        "gemm_gflops_per_second": pytest.approx(2 * 1024**3 / 0.5e9),
        "copy_gigabytes_per_second": pytest.approx(8 * 2**24 / 0.25e9),
    }
    assert machine.described("cpu")["versions"]["torch"] == torch.__version__


@pytest.fixture
def small(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with two tiny cases, of a series, and in this process."""
    speed, parts, cases = (benchmark(name) for name in ("speed", "speed_parts", "speed_cases"))
    monkeypatch.setattr(parts.machine, "_SIZE", {"cpu": 64})
    monkeypatch.setattr(parts.machine, "_FLOATS", {"cpu": 1024})
    monkeypatch.setattr(
        cases,
        "CASES",
        {f"steps-{steps}": tiny(benchmark, steps, size=steps) for steps in (1, 4)} | {"one": tiny(benchmark)},
    )
    monkeypatch.setattr(benchmark("speed_table"), "CASES", cases.CASES)

    def here(interpreter: str, arguments: Sequence[str], environment: Any = None) -> Iterator[dict[str, Any]]:
        what, name, device, *rest = arguments
        problem = cases.CASES[name]
        if what == "times":
            yield from parts.times(problem, device, int(rest[0]), rest[1:])
        else:
            yield from parts.first_step(problem, device, *rest)

    monkeypatch.setattr(speed, "_parts", here)
    return speed


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")
def test_the_benchmark_writes_case_by_case_and_keeps_what_it_has(
    small: ModuleType, benchmark: Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, file, drawn = benchmark("bench"), tmp_path / "speed.json", tmp_path / "speed.png"
    options = ["--ways", "Vmap", "--repeats", "3", "--json", str(file), "--picture", str(drawn)]
    assert bench.main(["speed", "--cases", "steps-4", *options]) == 0
    assert list(json.loads(file.read_text())["measured"]["cases"]) == ["steps-4"]
    assert bench.main(["speed", "--cases", "steps-1", "one", "--times-only", *options]) == 0
    report = json.loads(file.read_text())
    cases, slopes = report["measured"]["cases"], report["measured"]["slopes"]
    assert list(cases) == ["steps-1", "steps-4", "one"]
    long = cases["steps-4"]["ways"]["Vmap"]
    assert long["seconds"]["lowest"] <= long["seconds"]["median"] <= long["seconds"]["highest"]
    assert len(long["seconds_each"]) == 3
    assert long["times_ours"] == {"median": 1.0, "lowest": 1.0, "highest": 1.0}
    assert long["first_step"]["cold"]["wall_seconds"] > 0
    assert long["peak_megabytes"] >= 0
    assert "peak_megabytes" not in cases["one"]["ways"]["Vmap"]
    # Each of 3 tasks: 5 evaluations and derivatives of products of 4x1x5 and 4x5x1.
    assert cases["steps-4"]["flops"] > cases["steps-1"]["flops"] > 3 * 2 * 3 * 4 * 5
    medians = [cases[f"steps-{steps}"]["ways"]["Vmap"]["seconds"]["median"] for steps in (1, 4)]
    assert slopes["steps"]["Vmap"] == pytest.approx(math.log(medians[1] / medians[0]) / math.log(4))
    assert drawn.stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "steps-4: 3 tasks, 4 steps, 16 parameters" in printed
    assert "time grows with steps to the power of: plain loop" in printed


def test_a_case_that_fails_does_not_cost_the_others(
    small: ModuleType, benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, there = benchmark("bench"), small._parts

    def failing(interpreter: str, arguments: Sequence[str], environment: Any = None) -> Iterator[dict[str, Any]]:
        if "steps-1" in arguments:
            raise SystemExit("bench: out of memory")
        yield from there(interpreter, arguments, environment)

    monkeypatch.setattr(small, "_parts", failing)
    options = ["--ways", "Loop", "--repeats", "1", "--times-only", "--json", str(tmp_path / "speed.json")]
    with pytest.raises(SystemExit, match="not measured: steps-1"):
        bench.main(["speed", "--cases", "steps", *options])
    assert list(json.loads((tmp_path / "speed.json").read_text())["measured"]["cases"]) == ["steps-4"]


def test_an_unknown_case_or_way_is_told(benchmark: Benchmark) -> None:
    bench = benchmark("bench")
    with pytest.raises(SystemExit, match="'sinus' is no case"):
        bench.main(["speed", "--cases", "sinus"])
    with pytest.raises(SystemExit, match="'higher' is no way here; there are plain loop"):  # without --peers
        bench.main(["speed", "--ways", "higher"])


def test_a_way_that_is_stuck_is_left_out_of_another_process(benchmark: Benchmark) -> None:
    speed, tried = benchmark("speed"), []

    def process(ways: Sequence[str]) -> Iterator[dict[str, Any]]:
        tried.append(list(ways))
        for way in ways:
            if way == "JAX jit(map)":
                raise TimeoutError("nothing for 600 s")
            yield {"way": way, "relative_error": {}}
        yield {"alive": True}

    found = speed._times_of("resnet12", ["plain loop", "JAX jit(map)", "Loop"], process)
    assert tried == [["plain loop", "JAX jit(map)", "Loop"], ["plain loop", "Loop"]]
    assert found == {
        "ways": {
            "plain loop": {"relative_error": {}}, "JAX jit(map)": {"reason": "not ready: nothing for 600 s"},
            "Loop": {"relative_error": {}},
        }
    }  # fmt: skip


def test_a_process_in_which_the_plain_loop_is_stuck_is_no_measurement(benchmark: Benchmark) -> None:
    def process(ways: Sequence[str]) -> Iterator[dict[str, Any]]:
        raise TimeoutError("nothing for 600 s")

    with pytest.raises(SystemExit, match="resnet12 is stuck"):
        benchmark("speed")._times_of("resnet12", ["plain loop", "Loop"], process)


def test_a_silent_process_is_ended(benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = benchmark("common")
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho '{\"way\": 1}'\nexec sleep 60\n")
    interpreter.chmod(0o755)
    rows = common.rows_of_a_process(str(interpreter), "speed", [], called="it", limit=0.5)
    assert next(rows) == {"way": 1}
    with pytest.raises(TimeoutError, match="nothing for 0 s"):
        next(rows)


def test_slow_work_is_repeated_less(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    common = benchmark("common")
    lengths = {"quick": 0.1, "slow": 30.0}
    works = {name: (lambda name=name: name) for name in lengths}
    found = common.interleaved_seconds(works, 5, clock=lambda work: lengths[work()], patience=50.0, warm=True)
    assert {name: len(times) for name, times in found.items()} == {"quick": 5, "slow": 2}
    assert common.ratios([2.0, 6.0], [1.0, 2.0, 5.0]) == [2.0, 3.0]


def test_a_package_of_the_same_name_is_imported_aside(benchmark: Benchmark, tmp_path: Path) -> None:
    aside = benchmark("aside")
    for module in {path.replace(".", "/") for path in aside._PARTS.values()}:
        (tmp_path / "metalearn" / module).mkdir(parents=True, exist_ok=True)
        (tmp_path / "metalearn" / module / "__init__.py").write_text(
            f"from metalearn import whose\nname = {module!r}\n"
        )
    (tmp_path / "metalearn" / "__init__.py").write_text("whose = 'theirs'\n")
    found = aside.imported_aside(tmp_path)
    assert {part: module.whose for part, module in found.items()} == dict.fromkeys(aside._PARTS, "theirs")
    assert found["losses"].name == "loss/base"
    assert sys.modules["metalearn"] is metalearn
    assert importlib.import_module("metalearn.losses") is metalearn.losses
    assert str(tmp_path) not in sys.path
    with pytest.raises(ModuleNotFoundError, match="parallel-metalearn is not installed"):
        aside.imported_aside(tmp_path / "none")


def test_jax_computes_the_same(benchmark: Benchmark) -> None:
    pytest.importorskip("jax", reason="JAX is in the environment of scripts/peers.sh, which checks this too")
    speed = benchmark("speed_parts")
    for problem in (
        tiny(benchmark),
        images(benchmark),
        *(sequences(benchmark, name) for name in ("lstm", "transformer")),
    ):
        for way in ("JAX jit(vmap)", "JAX jit(map)"):
            assert "relative_error" in (row := speed.checked(speed.WAYS[way], problem, "cpu")[0]), row
            assert "wrong" not in row


def glyphs() -> Glyphs:
    return Glyphs(ways=2, shots=1, query_shots=2, num_alphabets=3, characters=3, drawings=4)


class _Taskset:
    """A learn2learn Taskset that draws what a source does."""

    def __init__(self, source: Glyphs, bias: float = 0.0) -> None:
        self.source, self.bias = source, bias

    def sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        episode = self.source.episodes("train", [0])
        (x, y), (query_x, query_y) = episode.support, episode.query
        rows = torch.tensor([0, 2, 3, 1, 4, 5])  # of a class: one support image, then two query images
        return torch.cat([x[0], query_x[0]])[rows] + self.bias, torch.cat([y[0], query_y[0]])[rows]


def test_the_rate_of_drawing_beside_learn2learn(benchmark: Benchmark) -> None:
    sampling, sizes = benchmark("sampling"), {"ways": 2, "shots": 1, "query_shots": 2}
    source = glyphs()
    drawn = sampling.learn2learns(_Taskset(source), 3, **sizes)()
    expected = source.episodes("train", [0, 0, 0])
    for (x, y), (other_x, other_y) in zip(drawn[:2], expected[:2], strict=True):
        torch.testing.assert_close(x, other_x)
        assert torch.equal(y, other_y)
    row = sampling.rate_of(source, 3, 2, _Taskset(source), **sizes)
    assert {"tasks", *sizes, "metalearn", "learn2learn", "times_learn2learn"} == set(row)
    ours, theirs = (row[way]["episodes_per_second"] for way in ("metalearn", "learn2learn"))
    times = row["times_learn2learn"]
    assert ours["lowest"] / theirs["highest"] <= times["median"] <= ours["highest"] / theirs["lowest"]
    assert "times learn2learn's" in sampling.CASE.lines("rate", row)
    assert "times_learn2learn" not in sampling.rate_of(source, 3, 2, **sizes)


def test_other_episodes_are_not_timed(benchmark: Benchmark) -> None:
    sampling, source = benchmark("sampling"), glyphs()
    with pytest.raises(SystemExit, match="other episodes"):
        sampling.rate_of(source, 3, 2, _Taskset(source, bias=0.5), ways=2, shots=1, query_shots=2)
    episodes = source.episodes("train", [0])
    with pytest.raises(SystemExit, match="other episodes"):
        sampling.require_same_form(episodes, Episodes(episodes.query, episodes.query))


@pytest.mark.parametrize(
    ("name", "ways"), [("speed.json", None), ("widths.json", ["Loop", "Vmap", "Loop pieces", "Vmap pieces"])]
)
def test_the_page_has_the_numbers_of_the_report(name: str, ways: list[str] | None, benchmark: Benchmark) -> None:
    folder = SCRIPTS.parent / "experiments" / "speed"
    report, page = json.loads((folder / name).read_text()), (folder / "README.md").read_text()
    table = benchmark("speed_table").page(report["measured"]["cases"], ways)
    assert benchmark("common").between_marks(page, name, table) == page
