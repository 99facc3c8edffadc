"""A model that mixes examples is not given padded episodes."""

import pytest
import torch
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.functional import functionalize
from metalearn.tasks import ClassificationSource
from metalearn.training.padding_check import check_padding

ROWS = torch.randn(12, 9, 6, generator=torch.Generator().manual_seed(0))


def source(**sizes: object) -> ClassificationSource:
    options: dict[str, object] = {"ways": 3, "shots": 1, "query_shots": 2, **sizes}
    return ClassificationSource(name="rows", classes={"train": ROWS}, **options)  # type: ignore[arg-type]


class MeanOfTheSet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - x.mean(0))


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 3),
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)),
        nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)),
    ],
)
@pytest.mark.parametrize("sizes", [{"shots": [1, 4]}, {"ways": [2, 3]}, {"shots": [1, 4], "imbalanced": True}])
def test_models_that_treat_rows_one_by_one_pass(module: nn.Module, sizes: dict[str, object]) -> None:
    check_padding(source(**sizes), functionalize(module).train(), split="train", seed=0)


def test_a_model_that_mixes_rows_is_refused() -> None:
    model = functionalize(MeanOfTheSet())
    with pytest.raises(UsageError, match=r"MeanOfTheSet mixes the examples of a set .* one number of ways and shots"):
        check_padding(source(shots=[1, 4]), model, split="train", seed=0)


def test_without_padding_any_model_passes() -> None:
    check_padding(source(), functionalize(MeanOfTheSet()), split="train", seed=0)
