"""A loss that counts padding is refused before the first step, by any algorithm that has a `loss`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import UsageError, algorithms, execution, losses
from metalearn.tasks import ClassificationSource
from metalearn.training import Experiment, evaluate, train

ROWS = {
    split: torch.randn(12, 9, 6, generator=torch.Generator().manual_seed(number))
    for number, split in enumerate(("train", "val", "test"))
}


def of_two(outputs: Tensor, targets: Tensor) -> Any:
    return F.cross_entropy(outputs, targets), {}


def of_all_rows(outputs: Tensor, targets: Tensor, present: Any = None) -> Any:
    return F.cross_entropy(outputs, targets.clamp_min(0)), {}


def with_a_metric_of_all_rows(outputs: Tensor, targets: Tensor, present: Any = None) -> Any:
    loss, metrics = losses.cross_entropy(outputs, targets, present)
    return loss, {**metrics, "share": (outputs.argmax(-1) == targets).float().mean()}


def of_all_classes(outputs: Tensor, targets: Tensor, present: Any = None) -> Any:
    return F.cross_entropy(outputs, targets), {}


REFUSED: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "two arguments": (of_two, {"shots": [1, 4]}, r"the loss of_two\(outputs.* the episodes of this task are padded"),
    "all rows": (of_all_rows, {"shots": [1, 4]}, "the loss of_all_rows counts padded rows"),
    "a metric": (with_a_metric_of_all_rows, {"shots": [1, 4]}, "the metric 'share' of .* counts padded rows"),
    "all classes": (of_all_classes, {"ways": [2, 3]}, "of_all_classes counts outputs that are no classes"),
}


@pytest.fixture
def make(make_experiment: Callable[..., Experiment]) -> Callable[..., Experiment]:
    def make(loss: Any, sizes: dict[str, Any], **changes: Any) -> Experiment:
        options: dict[str, Any] = {"ways": 3, "shots": 1, "query_shots": 2, **sizes}
        torch.manual_seed(0)  # an untrained model that predicts nothing right would hide a wrong metric
        return make_experiment(
            source=ClassificationSource(name="rows", classes=ROWS, **options),
            algorithm=algorithms.MAML(loss=loss, inner_lr=0.1),
            **{"module": nn.Linear(6, 3), "num_steps": 1, "eval_every": 0, **changes},
        )

    return make


@pytest.mark.parametrize(("loss", "sizes", "text"), REFUSED.values(), ids=REFUSED)
def test_a_loss_that_counts_padding_is_refused(
    loss: Any, sizes: dict[str, Any], text: str, tmp_path: Path, make: Callable[..., Experiment]
) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        train(make(loss, sizes), tmp_path)
    assert "(outputs, targets, present)" in str(caught.value)
    train(make(loss, {}), tmp_path)  # without padding it is right


def test_losses_that_mean_over_real_rows_pass(tmp_path: Path, make: Callable[..., Experiment]) -> None:
    """torch's own ignores the label of padding, which is exact where all episodes have all classes."""
    train(make(losses.cross_entropy, {"shots": [1, 4], "ways": [2, 3], "imbalanced": True}), tmp_path / "ours")
    train(make(of_all_classes, {"shots": [1, 4]}), tmp_path / "torch's")


def test_a_loop_shows_a_loss_no_padding(tmp_path: Path, make: Callable[..., Experiment]) -> None:
    train(make(of_all_rows, {"shots": [1, 4]}, execution=execution.Loop()), tmp_path)
    with pytest.raises(UsageError, match="takes no third argument"):
        train(make(of_two, {"shots": [1, 4]}, execution=execution.Loop()), tmp_path / "two")


def test_an_evaluation_on_padded_episodes_is_checked_too(tmp_path: Path, make: Callable[..., Experiment]) -> None:
    class Centred(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(0))

    plain, padded = (make(losses.cross_entropy, sizes, module=Centred(6, 3)) for sizes in ({}, {"shots": [1, 4]}))
    train(plain, tmp_path)
    evaluate(plain, tmp_path)
    with pytest.raises(UsageError, match="Centred mixes the examples"):
        evaluate(padded, tmp_path)
