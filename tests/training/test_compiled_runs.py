"""Runs that are compiled indeed: the same numbers as the eager ones, the same bits when they are resumed."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import algorithms, compile_ahead, execution, losses
from metalearn import train as command
from metalearn.compilation import functions
from metalearn.config import read_config
from metalearn.training import Interrupted, train
from metalearn.training.ahead import CompilingProcess
from metalearn.training.interrupts import StopFlag

# Torch's compiler uses, as it is imported, what torch warns of.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

TINY = (
    "task=sinusoid", "model.hidden=[4]", "inner.num_steps=1", "meta.num_steps=6", "meta.batch_size=2", "eval.every=0",
    "eval.num_episodes=5", "eval.num_inner_steps=3", "logger=none", "device=cpu", "execution.compile=true",
    "execution.switch_at=3",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each piece is compiled once for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


def content(folder: Path) -> bytes:
    (path,) = (folder / "checkpoints" / "last").glob("tensors-*.safetensors")
    return path.read_bytes()


def test_compiled_in_pieces_is_the_eager_run_and_resumed_is_uninterrupted(tmp_path: Path, make_experiment: Any) -> None:
    algorithm = algorithms.MAML(loss=losses.mean_squared_error, inner_lr=0.01, num_inner_steps=3)
    made = partial(make_experiment, algorithm=algorithm, num_steps=8)
    eager = train(made(), tmp_path / "eager").data
    pieces = made(execution=execution.Vmap(compiled="pieces"), switch_at=2)
    compiled = train(pieces, tmp_path / "compiled").data
    for name, expected in eager["test"]["loss"].items():
        assert compiled["test"]["loss"][name] == pytest.approx(expected, rel=1e-4)
    record = json.loads((tmp_path / "compiled" / "execution.json").read_text())
    assert record["switched"][0]["since"] == 2
    assert 0 <= record["switched"][0]["relative_error"] < 1e-5
    assert compiled["protocol"]["compiled"][0]["since"] == 2
    stop = StopFlag()

    def after_the_validation_of_step_4(step: int, means: Any) -> None:
        stop.requested = step == 4

    with pytest.raises(Interrupted):
        train(pieces, tmp_path / "parts", stop=stop, on_validation=after_the_validation_of_step_4)
    train(pieces, tmp_path / "parts", resume=True)
    assert content(tmp_path / "parts") == content(tmp_path / "compiled")


def test_running_statistics_compile_once(tmp_path: Path, make_experiment: Any, monkeypatch: Any) -> None:
    compilations: list[None] = []
    original = functions.Compiled._compile

    def counted(self: Any, args: Any) -> Any:
        compilations.append(None)
        return original(self, args)

    monkeypatch.setattr(functions.Compiled, "_compile", counted)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(1, 4, bias=False),  # a bias has no gradient here, and Adam would make steps of its rounding
            torch.nn.BatchNorm1d(4),
            torch.nn.Linear(4, 1),
        )
    made = partial(make_experiment, module=module, num_steps=4, eval_every=0)
    eager = train(made(), tmp_path / "eager").data
    compiled = train(made(execution=execution.Vmap(compiled="whole"), switch_at=0), tmp_path / "compiled").data
    assert len(compilations) == 1
    assert compiled["test"]["loss"]["mean"] == pytest.approx(eager["test"]["loss"]["mean"], rel=1e-4)


def test_a_process_of_its_own_compiles_for_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    assert command.main([*TINY, "hydra.run.dir=one"]) == 0
    record = json.loads(Path("one/execution.json").read_text())
    assert (record["compiled"], record["switched"][0]["since"]) == ("whole", 3)
    assert record["switched"][0]["ahead_seconds"] > 0
    # What it left in the cache is what the run took.
    compiled_here = torch._dynamo.utils.counters["inductor"]["fxgraph_cache_miss"]
    assert command.main([*TINY, "hydra.run.dir=two"]) == 0
    assert torch._dynamo.utils.counters["inductor"]["fxgraph_cache_miss"] == compiled_here
    one, two = (json.loads(Path(name, "results.json").read_text())["test"] for name in ("one", "two"))
    assert one == two
    assert compile_ahead.main(["one", json.dumps({"meta.batch_size": 0}), "1"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"].startswith("meta.batch_size=0")
    assert asdict(read_config(Path("one")).execution)["switch_at"] == 3


def sleeping() -> CompilingProcess:
    child = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('up', flush=True); sys.stdin.read()"
    return CompilingProcess([sys.executable, "-c", child])


def group(process: CompilingProcess) -> int:
    return process._process.pid


@pytest.mark.skipif(sys.platform == "win32", reason="there are no groups of processes")
def test_a_closed_compiler_leaves_no_process_behind() -> None:
    process = sleeping()
    while b"up" not in os.pread(process._output.fileno(), 10, 0):
        time.sleep(0.01)
    assert process.poll() is None
    os.killpg(group(process), 0)  # it is there
    process.close()
    for _ in range(200):  # whoever takes the orphans over has to notice
        try:
            os.killpg(group(process), 0)
        except ProcessLookupError:
            break
        states = subprocess.run(["ps", "-o", "stat=", "-g", str(group(process))], capture_output=True, text=True)
        if all(each.startswith("Z") for each in states.stdout.split()):
            break
        time.sleep(0.01)
    else:
        pytest.fail("a process of the compiler's group is still running")


def test_a_compiler_ends_with_a_run_that_is_killed() -> None:
    process = CompilingProcess([sys.executable, "-m", "metalearn.compile_ahead", "nowhere", "{}"])
    process._process.stdin.close()  # as the end of the run closes it
    assert process._process.wait(30) == 1
    process.close()


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("""print('noise'); print('{"error": "", "seconds": 1}')""", ""),
        ("""print('{"error": "no compiler", "seconds": 1}')""", "no compiler"),
        ("import sys; print('it broke'); sys.exit(7)", "the process that compiled ended with code 7: it broke"),
        ("import os; os._exit(9)", "the process that compiled ended with code 9: it said nothing"),
    ],
)
def test_what_a_compiler_said(program: str, error: str) -> None:
    process = CompilingProcess([sys.executable, "-c", program])
    while (found := process.poll()) is None:
        time.sleep(0.01)
    process.close()
    assert found.error == error
    assert found.seconds > 0


def test_no_compiler_on_the_machine_is_told_in_a_line(
    tmp_path: Path, make_experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder

    def none() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match=r"compiled execution needs a C\+\+ compiler"):
        train(make_experiment(execution=execution.Vmap(compiled="whole"), switch_at=3), tmp_path / "fixed")
    assert not (tmp_path / "fixed" / "checkpoints").exists()
