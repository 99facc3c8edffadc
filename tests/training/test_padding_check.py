"""A model that mixes examples is not given padded episodes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.functional import functionalize
from metalearn.models import Conv4
from metalearn.tasks import ClassificationSource
from metalearn.training.padding_check import check_padding

ROWS = torch.randn(12, 9, 6, generator=torch.Generator().manual_seed(0))


def check(module: nn.Module, rows: Tensor = ROWS, **sizes: Any) -> None:
    options: dict[str, Any] = {"ways": 3, "shots": 1, "query_shots": 2, **sizes}
    source = ClassificationSource(name="rows", classes={"train": rows}, **options)
    check_padding(source.episodes("train", range(8)), functionalize(module), seed=0)


class Mixing(nn.Module):
    """Treats rows one by one, and then adds what `mix` makes of the set, times a gate that begins at `gate`."""

    def __init__(self, mix: Callable[[nn.Module, Tensor], Any], *, gate: float = 1.0) -> None:
        super().__init__()
        self.head, self.mix = nn.Linear(6, 3), mix
        self.gate = nn.Parameter(torch.tensor(gate))
        self.register_buffer("memory", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.gate * self.mix(self, x))


def remembers(module: Any, x: Tensor) -> float:
    module.memory.copy_(x.mean(0))
    return 0.0


def spoils(module: nn.Module, x: Tensor) -> Tensor:
    """Not a number once the padding differs from the first row; else nothing."""
    return (x[-1:] - x[:1]).abs().sum() * 0 / (x[-1:] == x[:1]).all()


MIXES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "the mean": lambda module, x: -x.mean(0),
    "the number of rows": lambda module, x: x * len(x),
    "a sum by the number of rows": lambda module, x: x.sum(0) / len(x),
    "the largest": lambda module, x: x.amax(0),
    "the last row": lambda module, x: x[-1],
    "in training alone": lambda module, x: x.mean(0) * module.training,
    "in evaluation alone": lambda module, x: x.mean(0) * (not module.training),
    "a buffer": remembers,
    "nothing but a NaN": spoils,
}


@pytest.mark.parametrize("gate", [1.0, 0.0])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_model_that_mixes_rows_is_refused(mix: Callable[[nn.Module, Tensor], Any], gate: float) -> None:
    """Also where the mixing begins with a gate that is closed: it will open in training."""
    with pytest.raises(UsageError, match=r"Mixing mixes the examples of a set .* one number of ways and shots"):
        check(Mixing(mix, gate=gate), shots=[1, 4])


class Attending(nn.Module):
    """Attention over the examples, whose last layer begins with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + torch.softmax(self.query(x) @ x.T, -1) @ self.value(x))


def test_a_mixing_layer_that_begins_with_zeros_is_refused() -> None:
    with pytest.raises(UsageError, match="mixes the examples"):
        check(Attending(), shots=[1, 4])


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 3),
    "batch norm and dropout": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    ),
    "batch norm of the set": lambda: nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("sizes", [{"shots": [1, 4]}, {"ways": [2, 3]}, {"shots": [1, 4], "imbalanced": True}])
def test_models_that_treat_rows_one_by_one_pass(make: Callable[[], nn.Module], sizes: dict[str, Any]) -> None:
    check(make(), **sizes)


def test_the_models_of_this_library_pass_on_images() -> None:
    images = torch.randint(0, 256, (12, 9, 1, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    check(Conv4(input_shape=(1, 20, 20), num_outputs=3), images // 32 * 32, shots=[1, 4], ways=[2, 3])


def test_without_padding_any_model_passes() -> None:
    check(Mixing(MIXES["the mean"]))
