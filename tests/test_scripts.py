"""The developers' scripts run, on what a machine without a GPU can show of them."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gpu_suites_checks_pass_on_a_cpu(tmp_path: Path) -> None:
    assert script("gpu_suite").main(["--device", "cpu", "--out", str(tmp_path), "--checks-only"]) == 0
    report = json.loads((tmp_path / "suite.json").read_text())
    assert all(check["passed"] for check in report["checks"].values())
    assert report["checks"]["certified"]["error"] < 1e-6
    assert len(report["checks"]["gradients"]) == 7
    assert set(report["checks"]["modules"]) == {"passed", "lstm", "gru", "attention", "convolution"}


def test_a_failed_check_is_reported(tmp_path: Path) -> None:
    suite = script("gpu_suite")

    def wrong(device: torch.device) -> dict[str, object]:
        raise AssertionError("relative error 1e-1")

    suite.CHECKS.clear()
    suite.CHECKS["wrong"] = wrong
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
    long = suite.run_row(row, extra=[*tiny, "meta.num_steps=1000000", "meta.checkpoint_every=5"], seconds=30, **options)
    assert long["status"] == "unfinished"
    assert long["steps"] > 0
    again = suite.run_row(row, extra=[], seconds=30, **options)
    assert again["steps"] > long["steps"]
    short = suite.run_row(row, extra=[*tiny, "meta.num_steps=2"], seconds=200, folder=tmp_path / "short", device="cpu")
    assert short["status"] == "finished"
    assert short["test"]["loss"]["num_episodes"] == 4
    assert short["published"] == "0.358"


def test_every_row_names_an_experiment() -> None:
    experiments = {path.stem for path in (SCRIPTS.parent / "configs" / "experiment").glob("*.yaml")}
    for row in script("gpu_suite").ROWS:
        assert row.overrides[0].removeprefix("experiment=") in experiments


def test_the_shares_of_the_sampling_benchmark(tmp_path: Path) -> None:
    bench = script("bench")
    bench.CASES["tiny"] = lambda repeats: {"source": _measured(bench, repeats)}
    assert bench.main(["tiny", "--repeats", "2", "--json", str(tmp_path / "tiny.json")]) == 0
    measured = json.loads((tmp_path / "tiny.json").read_text())["measured"]["source"]
    ratio = measured["draw_seconds"]["median"] / measured["step_seconds"]["median"]
    assert measured["share"] == pytest.approx(ratio)


def _measured(bench: ModuleType, repeats: int) -> dict[str, object]:
    from metalearn.tasks import Glyphs

    source = Glyphs(ways=2, shots=1, query_shots=1, num_alphabets=3, characters=3, drawings=3)
    return bench._share(source, 4, repeats)


def test_every_way_of_the_ensemble_benchmark_does_the_same_work() -> None:
    bench = script("bench")
    for name in bench.NETS:
        results = [bench._ensemble(name, 3, way)() for way in bench.WAYS]
        outputs = [result[0] if isinstance(result, tuple) else result for result in results]
        for output in outputs:
            torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")
def test_the_ensemble_benchmark_measures_time_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = script("bench")
    monkeypatch.setattr(bench, "NETS", {name: net for name, net in bench.NETS.items() if name.startswith("mlp")})
    monkeypatch.setattr(bench, "WAYS", {way: bench.WAYS[way] for way in ("list of modules", "one call")})
    bench.CASES["tiny"] = lambda repeats: bench.ensemble(repeats, copies=[500])
    bench.LINES["tiny"] = bench._lines_of_ensemble
    paths = {"--json": tmp_path / "tiny.json", "--picture": tmp_path / "tiny.png"}
    assert bench.main(["tiny", "--repeats", "1", *(str(part) for pair in paths.items() for part in pair)]) == 0
    (by_copies,) = json.loads(paths["--json"].read_text())["measured"].values()
    row = by_copies["500"]["one call"]
    modules = by_copies["500"]["list of modules"]
    assert row["speedup"] == pytest.approx(modules["seconds"]["median"] / row["seconds"]["median"])
    # The activations of 500 copies are 500 x 32 x 64 floats a layer: 4 MB, several of them at once.
    assert row["peak_megabytes"] > 8 > modules["peak_megabytes"]
    assert paths["--picture"].stat().st_size > 1000
