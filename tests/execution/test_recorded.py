"""What is recorded is copied in and out: with a stand-in for CUDA graphs, which a CPU does not have.

On a GPU `scripts/gpu_checks.py` compares recorded meta-gradients with the eager loop's.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import UsageError, tree
from metalearn.compilation import programs
from metalearn.execution import Loop, Vmap, choose, recorded
from metalearn.metagrad import Unrolled
from metalearn.testing import assert_close
from tests import problems
from tests.metagrad.test_agreement import _problem as problem_of_model


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in: a launch runs the work again and writes to where it has written when it was recorded."""
    told: list[str] = []

    def record(work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        told.append("recorded")
        found = work()

        def launch() -> None:
            told.append("launched")
            for place, value in zip(tree.tensors(found), tree.tensors(work()), strict=True):
                place.copy_(value)

        return found, launch

    monkeypatch.setattr(recorded, "record", record)
    monkeypatch.setattr(recorded, "check_cuda_graphs", lambda device: None)
    monkeypatch.setattr(programs, "by_inductor", programs.as_it_is)
    return told


@pytest.mark.parametrize("compiled", ["pieces", "whole"])
def test_every_call_is_of_its_own_arguments(compiled: Any, launches: list[str]) -> None:
    problem, meta = problem_of_model("accumulator", "sgd, momentum learned")
    eager = Loop().value_and_grad(Unrolled(), problem)
    gradient = Vmap(compiled=compiled, cuda_graphs=True).value_and_grad(Unrolled(), problem)
    episodes = problems.values()
    given: list[tuple[dict[str, Tensor], Any]] = [
        ({name: value * scale if value.dim() else value for name, value in meta.items()}, moved)
        for scale, moved in ((1.0, episodes), (1.1, episodes), (0.9, tree.map_tensors(lambda x: x.flip(0), episodes)))
    ]
    # Looked at after all calls: what one of them has found is not written over by the next.
    found = [gradient(*arguments) for arguments in given]
    for outcome, arguments in zip(found, given, strict=True):
        expected = eager(*arguments)
        assert_close((outcome.value, outcome.grads), (expected.value, expected.grads), tolerance=1e-10)
        torch.testing.assert_close(outcome.aux, expected.aux, rtol=1e-10, atol=1e-12)
    assert launches == ["recorded", "launched", "launched", "launched"]


def test_another_number_of_tasks_is_another_recording(launches: list[str]) -> None:
    problem, meta = problem_of_model("plain", "sgd")
    gradient = Vmap(compiled="pieces", cuda_graphs=True).value_and_grad(Unrolled(), problem)
    episodes = problems.values()
    for some in (episodes, tree.map_tensors(lambda x: x[:2], episodes), episodes):
        expected = Loop().value_and_grad(Unrolled(), problem)(meta, some)
        assert_close(gradient(meta, some).grads, expected.grads, tolerance=1e-10)
    assert launches == ["recorded", "launched", "recorded", "launched", "launched"]


def test_mistakes() -> None:
    problem, meta = problem_of_model("plain", "sgd")
    with pytest.raises(UsageError, match=r"cuda_graphs=true is of compiled code: set execution\.compile=true"):
        Vmap(cuda_graphs=True)
    with pytest.raises(UsageError, match="convolutions=products is of compiled code"):
        Vmap(convolutions="products")
    with pytest.raises(UsageError, match="Did you mean 'products'"):
        Vmap(compiled="pieces", convolutions="product")  # type: ignore[arg-type]
    on_a_cpu = "cuda_graphs=true is of CUDA devices, but this runs on the cpu"
    with pytest.raises(UsageError, match=on_a_cpu):
        Vmap(compiled="pieces", cuda_graphs=True).value_and_grad(Unrolled(), problem)(meta, problems.values())
    with pytest.raises(UsageError, match=on_a_cpu):
        choose("vmap", model=torch.nn.Linear(1, 1), device="cpu", compile="whole", cuda_graphs=True)
