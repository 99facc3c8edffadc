from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from metalearn.errors import UsageError
from metalearn.tasks import Sinusoid
from metalearn.tasks.images.format import ImageFormat
from metalearn.training.task_card import TASK, Scale, TaskCard, write_task_card

CARDS = [
    TaskCard(name="a", kind="regression", input_shape=(2,), num_outputs=1),
    TaskCard(
        name="ü",
        kind="classification",
        input_shape=(3, 8, 9),
        num_outputs=5,
        image_format=ImageFormat((8, 9), color="rgb", inverted=True, fit="stretch"),
    ),
    TaskCard(
        name="table",
        kind="regression",
        input_shape=(2,),
        num_outputs=1,
        inputs=Scale(mean=(0.1, 1e-30), std=(1 / 3, 2.0)),
        targets=Scale(mean=(5.0,), std=(0.25,)),
    ),
]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_card_is_read_as_it_was_written(card: TaskCard, tmp_path: Path) -> None:
    card.write(tmp_path)
    assert TaskCard.read(tmp_path) == card


def test_the_card_of_a_source() -> None:
    assert TaskCard.of(Sinusoid()) == TaskCard(name="sinusoid", kind="regression", input_shape=(1,), num_outputs=1)
    scaled = Sinusoid()
    scaled.standardisation = {"inputs": {"mean": [1.0], "std": [2.0]}, "targets": None}  # type: ignore[attr-defined]
    assert TaskCard.of(scaled).inputs == Scale(mean=(1.0,), std=(2.0,))
    assert TaskCard.of(scaled).targets is None


def test_a_source_of_bare_episodes_has_none(tmp_path: Path) -> None:
    bare = SimpleNamespace(splits=("train",), episodes=None)
    write_task_card(bare, tmp_path)
    assert not (tmp_path / TASK).exists()
    assert TaskCard.read(tmp_path) is None
    with pytest.raises(UsageError, match="has no `kind`"):
        TaskCard.of(bare)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "metalearn-task", "version": 2}', "null"])
def test_a_damaged_card_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / TASK).write_text(content)
    with pytest.raises(UsageError, match=r"task.json can not be read \(.*Remove it"):
        TaskCard.read(tmp_path)


def test_scaling_there_and_back() -> None:
    scale = Scale(mean=(10.0, -1.0), std=(4.0, 0.5))
    raw = torch.tensor([[10.0, -1.0], [14.0, 0.0]])
    assert scale.apply(raw).tolist() == [[0.0, 0.0], [1.0, 2.0]]
    torch.testing.assert_close(scale.undo(scale.apply(raw)), raw)
