"""The developers' scripts run, on what a machine without a GPU can show of them."""

import importlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from metalearn.tasks import Glyphs
from tests.test_configs import composed

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def script(name: str) -> ModuleType:
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))  # as it is for `python scripts/NAME.py`
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Torch's compiler uses, as it is imported, what torch warns of.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_the_gpu_suites_checks_pass_on_a_cpu(tmp_path: Path) -> None:
    assert script("gpu_suite").main(["--device", "cpu", "--out", str(tmp_path), "--checks-only"]) == 0
    report = json.loads((tmp_path / "suite.json").read_text())
    assert all(check["passed"] for check in report["checks"].values())
    assert report["checks"]["certified"]["error"] < 1e-6
    assert len(report["checks"]["gradients"]) == 7
    assert len(report["checks"]["compiled"]) == 2
    assert set(report["checks"]["modules"]) == {"passed", "lstm", "gru", "attention", "convolution"}


def test_a_failed_check_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = script("gpu_suite")

    def wrong(device: torch.device) -> dict[str, object]:
        raise AssertionError("relative error 1e-1")

    monkeypatch.setattr(sys.modules["gpu_checks"], "CHECKS", {"wrong": wrong})
    assert suite.main(["--device", "cpu", "--out", str(tmp_path), "--checks-only"]) == 1
    assert json.loads((tmp_path / "suite.json").read_text())["checks"]["wrong"]["error"] == "relative error 1e-1"


def test_without_a_gpu_the_suite_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script("gpu_suite").main(["--out", str(tmp_path)]) == 2
    assert "there is no GPU here" in capsys.readouterr().err


@pytest.mark.slow
def test_a_row_stops_in_time_and_goes_on(tmp_path: Path) -> None:
    suite = script("gpu_suite")
    tiny = ["eval.num_episodes=4", "eval.val_episodes=0", "logger=none"]
    row = suite.Row("sinusoid", ("task=sinusoid",), "0.358", "Finn et al. 2017")
    options = {"folder": tmp_path / "row", "device": "cpu"}
    long = suite.run_row(row, extra=[*tiny, "meta.num_steps=1000000", "meta.checkpoint_every=5"], seconds=12, **options)
    assert long["status"] == "unfinished"
    assert long["steps"] > 0
    again = suite.run_row(row, extra=[], seconds=12, **options)
    assert again["steps"] > long["steps"]
    short = suite.run_row(row, extra=[*tiny, "meta.num_steps=2"], seconds=200, folder=tmp_path / "short", device="cpu")
    assert short["status"] == "finished"
    assert short["test"]["loss"]["num_episodes"] == 4
    assert short["published"] == "0.358"


def test_the_suites_benchmark_stops_in_time_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Callable[[str], ModuleType]
) -> None:
    suite = script("gpu_suite")
    assert set(suite.SPEED) <= set(benchmark("speed_cases").CASES)
    bench = tmp_path / "bench.py"
    monkeypatch.setattr(suite, "BENCH", bench)
    options = {"out": tmp_path, "device": "cpu", "peers": None}
    bench.write_text("import time; time.sleep(60)")
    assert suite.run_speed("sinusoid-5", seconds=1, **options) == "unfinished"
    bench.write_text("raise SystemExit(3)")
    assert suite.run_speed("sinusoid-5", seconds=30, **options) == "failed with exit code 3"
    (tmp_path / "speed.json").write_text(json.dumps({"measured": {"cases": {"sinusoid-5": {}}}}))
    assert suite.run_speed("sinusoid-5", seconds=30, **options) == "finished"
    assert suite.run_speed("sinusoid-50", seconds=30, **options) == "failed with exit code 3"
    arguments = ["--device", "cpu", "--out", str(tmp_path), "--rows", "--speed", "sinusoid-5", "sinusoid-50"]
    monkeypatch.setattr(sys.modules["gpu_checks"], "CHECKS", {})
    assert suite.main(arguments) == 1
    report = json.loads((tmp_path / "suite.json").read_text())
    assert report["speed"] == {"sinusoid-5": "finished", "sinusoid-50": "failed with exit code 3"}


def test_every_row_names_an_experiment() -> None:
    experiments = {path.stem for path in (SCRIPTS.parent / "configs" / "experiment").glob("*.yaml")}
    rows = script("gpu_suite").ROWS
    assert len({row.name for row in rows}) == len(rows) == 36
    for row in rows:
        assert row.overrides[0].removeprefix("experiment=") in experiments
        if "5shot_" in row.name:
            continue  # it differs in a number from that of one shot
        config = composed(*row.overrides)
        ways, shots = re.fullmatch(r".*_(\d+)way_(\d)shot.*", row.name).groups()
        assert (config.task["ways"], config.task["shots"]) == (int(ways), int(shots))


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of the benchmarks, as scripts/bench.py sees it."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_the_shares_of_the_sampling_benchmark(tmp_path: Path, benchmark: Callable[[str], ModuleType]) -> None:
    bench, sampling = script("bench"), benchmark("sampling")

    def tiny(options: Namespace) -> dict[str, object]:
        source = Glyphs(ways=2, shots=1, query_shots=1, num_alphabets=3, characters=3, drawings=3)
        return {"source": sampling.share_of(source, 4, options.repeats)}

    bench.CASES["tiny"] = replace(sampling.CASE, measure=tiny)
    assert bench.main(["tiny", "--repeats", "2", "--json", str(tmp_path / "tiny.json")]) == 0
    measured = json.loads((tmp_path / "tiny.json").read_text())["measured"]["source"]
    ratio = measured["draw_seconds"]["median"] / measured["step_seconds"]["median"]
    assert measured["share"] == pytest.approx(ratio)


def test_every_way_of_the_ensemble_benchmark_does_the_same_work(benchmark: Callable[[str], ModuleType]) -> None:
    ensemble = benchmark("ensemble")
    for name in ensemble.NETS:
        results = [ensemble.evaluation(name, 3, way)() for way in ensemble.WAYS]
        outputs = [result[0] if isinstance(result, tuple) else result for result in results]
        for output in outputs:
            torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")


@LINUX
def test_the_ensemble_benchmark_measures_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Callable[[str], ModuleType]
) -> None:
    bench, ensemble = script("bench"), benchmark("ensemble")
    monkeypatch.setattr(ensemble, "NETS", {name: net for name, net in ensemble.NETS.items() if name.startswith("mlp")})
    monkeypatch.setattr(ensemble, "WAYS", {way: ensemble.WAYS[way] for way in ("list of modules", "one call")})
    bench.CASES["tiny"] = replace(ensemble.CASE, measure=lambda options: ensemble.measure(options, copies=[500]))
    paths = {"--json": tmp_path / "tiny.json", "--picture": tmp_path / "tiny.png"}
    assert bench.main(["tiny", "--repeats", "1", *(str(part) for pair in paths.items() for part in pair)]) == 0
    (by_copies,) = json.loads(paths["--json"].read_text())["measured"].values()
    row = by_copies["500"]["one call"]
    modules = by_copies["500"]["list of modules"]
    assert row["speedup"] == pytest.approx(modules["seconds"]["median"] / row["seconds"]["median"])
    # The activations of 500 copies are 500 x 32 x 64 floats a layer: 4 MB, several of them at once.
    assert row["peak_megabytes"] > 8 > modules["peak_megabytes"]
    assert paths["--picture"].stat().st_size > 1000


def test_every_exact_way_of_the_memory_benchmark_is_the_plain_loops_gradient(
    benchmark: Callable[[str], ModuleType],
) -> None:
    memory, loops = benchmark("memory"), benchmark("loops")
    expected = loops.plain(loops.one_image_task(2))()
    for way in memory.EXACT:
        assert loops.error(memory.gradient_of(way, 2)(), expected) < memory.MOST_ERROR, way
    of_a_rate = memory.gradient_of("ForwardMode, a learned rate alone", 2)()
    assert loops.error(of_a_rate, memory._by_the_rate(2)) < memory.MOST_ERROR
    assert loops.error(memory.gradient_of("FirstOrder", 2)(), expected) > 1e-2, "the comparison can fail"


def test_a_wrong_gradient_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, benchmark: Callable[[str], ModuleType]
) -> None:
    memory = benchmark("memory")
    assert memory._check("Unrolled")["way"] == "Unrolled"
    monkeypatch.setitem(memory.EXACT, "Unrolled", memory.FirstOrder())
    with pytest.raises(SystemExit, match="another gradient than the plain loop"):
        memory._check("Unrolled")


@LINUX
def test_the_memory_benchmark_measures_checks_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Callable[[str], ModuleType]
) -> None:
    bench, memory = script("bench"), benchmark("memory")

    def here(interpreter: str, what: str, ways: Sequence[str]) -> Iterator[dict[str, object]]:
        for way in ways if what != "predict" else ():
            if what == "check":
                yield memory._in_a_new_process(memory._check, way)[0]
            else:
                yield from (memory._in_a_new_process(memory._measure, way, steps)[0] for steps in memory.STEPS)
        if what == "predict":
            yield from memory._predictions()

    monkeypatch.setattr(memory, "STEPS", (2, 8))
    monkeypatch.setattr(memory, "CHECKED", (1,))
    monkeypatch.setattr(memory, "OURS", ("plain loop", "Unrolled", "Stepwise(every=1)"))
    monkeypatch.setattr(memory, "EXACT", {way: memory.EXACT[way] for way in ("Unrolled", "Stepwise(every=1)")})
    monkeypatch.setattr(memory, "_parts", here)
    paths = {"--json": tmp_path / "tiny.json", "--picture": tmp_path / "tiny.png"}
    assert bench.main(["memory", *(str(part) for pair in paths.items() for part in pair)]) == 0
    measured = json.loads(paths["--json"].read_text())["measured"]
    unrolled, stepwise = (measured[way]["8"] for way in ("Unrolled", "Stepwise(every=1)"))
    # Six more steps' graphs are about 40 MB; six more states are 3.
    assert unrolled["peak_megabytes"] > measured["Unrolled"]["2"]["peak_megabytes"] + 25
    assert stepwise["peak_megabytes"] < unrolled["peak_megabytes"] - 20
    assert stepwise["predicted_megabytes"] == pytest.approx(unrolled["predicted_megabytes"] - 41, abs=3)
    assert stepwise["times_unrolled"] == pytest.approx(stepwise["seconds"] / unrolled["seconds"])
    assert paths["--picture"].stat().st_size > 1000


def test_a_part_that_fails_stops_the_benchmark(benchmark: Callable[[str], ModuleType]) -> None:
    memory = benchmark("memory")
    with pytest.raises(SystemExit, match="check failed"):
        list(memory._parts(sys.executable, "check", ["no such way"]))


def test_every_way_of_the_optimizers_benchmark_is_the_same_optimizer(benchmark: Callable[[str], ModuleType]) -> None:
    updates = benchmark("updates")
    assert [sum(math.prod(shape) for shape in shapes) for shapes in updates.SIZES.values()] == [
        6400, 112_261, 11_689_512, 4_000_000,
    ]  # fmt: skip
    for name in updates.HYPERS:
        ways = updates.ways_of(name, with_peers=False, with_compiled=False)
        found = {way: updates.errors(name, make) for way, make in ways.items()}
        updates.require_equal(name, found)
        with pytest.raises(SystemExit, match=f"{name} of metalearn is another optimizer"):
            updates.require_equal(name, {"metalearn": {"float32": 1e-7, "float64": 2e-9}})
    assert updates.errors("adam", lambda name, *given: updates.ours("adamw", *given))["float64"] > 1e-6


def test_every_inner_loop_of_the_optimizers_benchmark_is_the_one_by_hand(
    benchmark: Callable[[str], ModuleType],
) -> None:
    loops = benchmark("adam_loops")
    for model in loops.MODELS:
        for way, make in loops.WAYS.items():
            assert loops.error(make, model) <= loops.MOST_ERROR, (way, model)
    other = loops.plain_loop(lambda params: (None, lambda grads, state, params: (params, state)))
    assert loops.error(other, "MLP of 2 x 40") > 1e-2, "the comparison can fail"


def test_the_optimizers_benchmark_measures_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Callable[[str], ModuleType]
) -> None:
    bench, optimizers, updates = script("bench"), benchmark("optimizers"), benchmark("updates")
    monkeypatch.setitem(updates.SIZES, "tiny", [(2, 3), (4,)])

    def here(interpreter: str, arguments: Sequence[str]) -> Iterator[dict[str, object]]:
        assert list(arguments) == ["3"]
        yield from optimizers.update_rows(
            ["tiny"], ["sgd", "rmsprop"], repeats=3, with_peers=False, with_compiled=False
        )
        yield from optimizers.loop_rows(["MLP of 2 x 40"], repeats=3, with_peers=False)

    monkeypatch.setattr(optimizers, "_rows", here)
    paths = {"--json": tmp_path / "tiny.json", "--picture": tmp_path / "tiny.png"}
    assert bench.main(["optimizers", "--repeats", "3", *(str(part) for pair in paths.items() for part in pair)]) == 0
    measured = json.loads(paths["--json"].read_text())["measured"]
    assert list(measured["tiny"]) == ["sgd", "rmsprop"]
    assert "torch.optim, fused" in measured["tiny"]["sgd"]
    assert "torch.optim, fused" not in measured["tiny"]["rmsprop"]
    ours, theirs = (measured["tiny"]["sgd"][way] for way in ("metalearn", "torch.optim"))
    assert ours["times_ours"] == {"median": 1.0, "lowest": 1.0, "highest": 1.0}
    ratios = theirs["times_ours"]
    assert ratios["lowest"] <= theirs["seconds"]["highest"] / ours["seconds"]["lowest"]
    assert ratios["highest"] >= theirs["seconds"]["lowest"] / ours["seconds"]["highest"]
    assert list(measured[optimizers.LOOP]["MLP of 2 x 40"]) == ["metalearn", "metalearn.optim alone", "by hand"]
    assert paths["--picture"].stat().st_size > 1000


def test_a_measurement_that_fails_stops_the_benchmark(benchmark: Callable[[str], ModuleType]) -> None:
    with pytest.raises(SystemExit, match="the measurement failed"):
        list(benchmark("optimizers")._rows(sys.executable, ["no number"]))


@pytest.mark.parametrize("arguments", [[], [str(SCRIPTS.parent / "env")]])
def test_the_peers_environment_stays_out_of_the_checkout(arguments: list[str]) -> None:
    command = ["bash", str(SCRIPTS / "peers.sh"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": "false"})
    assert done.returncode == 2
    assert "outside" in done.stderr
    assert not (SCRIPTS.parent / "env").exists()
