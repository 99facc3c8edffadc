import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


def spoiled(**changes: Any) -> Any:
    """A card's file with changes; an argument's `__` goes into a part of it."""
    card = TaskCard(
        name="a", kind="regression", input_shape=(2, 3), num_outputs=2, inputs=Scale(mean=(0.0,) * 6, std=(1.0,) * 6)
    )
    return {**card._to_dict(), "format": "metalearn-task", "version": 1, **changes}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"inputs": {"mean": [0.0], "std": [1.0]}}, r"inputs has 1 means, expected 6"),
    ({"targets": {"mean": [0.0], "std": [1.0]}}, r"targets has 1 means, expected 2"),
    ({"inputs": {"mean": [0.0] * 6, "std": [1.0] * 5 + [0.0]}}, "std that is not above 0"),
    ({"inputs": {"mean": [0.0] * 6, "std": [float("inf")] * 6}}, "std that is not above 0 and finite"),
    ({"inputs": {"mean": [float("nan")] * 6, "std": [1.0] * 6}}, "mean that is no finite number"),
    ({"label_names": ["a"]}, "1 label_names for num_outputs=2"),
    ({"image_format": ImageFormat((2, 3)).to_dict()}, r"image_format makes pictures \[3, 2, 3\]"),
    ({"input_shape": [2.5, 3]}, "expected whole numbers of at least 1"),
    ({"input_shape": [0, 3]}, "expected whole numbers of at least 1"),
    ({"num_outputs": "2"}, "num_outputs is '2'"),
    ({"kind": "both"}, "kind is 'both'"),
    ({"scaled_uint8": "yes"}, "scaled_uint8 is 'yes'"),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG, ids=[each for _, each in WRONG])
def test_what_fits_no_model_is_refused_in_a_file_and_of_a_source(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    data = spoiled(**changes)
    (tmp_path / TASK).write_text(json.dumps(data))
    with pytest.raises(UsageError, match=rf"task.json can not be read \(.*{expected}"):
        TaskCard.read(tmp_path)
    scales = {name: data[name] for name in ("inputs", "targets")}
    picture = data["image_format"] and ImageFormat.from_dict(data["image_format"])
    source = SimpleNamespace(**{**data, "standardisation": scales, "image_format": picture})
    with pytest.raises(UsageError, match=rf"the task source 'a' .* says of itself what can not be: .*{expected}"):
        TaskCard.of(source)


def test_a_file_of_before_the_latest_entries_is_read(tmp_path: Path) -> None:
    data = spoiled()
    for name in ("scaled_uint8", "differs", "sources"):
        del data[name]
    (tmp_path / TASK).write_text(json.dumps(data))
    card = TaskCard.read(tmp_path)
    assert card is not None
    assert (card.scaled_uint8, card.differs, card.sources) == (None, (), ())


def test_scaling_there_and_back() -> None:
    scale = Scale(mean=(10.0, -1.0), std=(4.0, 0.5))
    raw = torch.tensor([[10.0, -1.0], [14.0, 0.0]])
    assert scale.apply(raw).tolist() == [[0.0, 0.0], [1.0, 2.0]]
    torch.testing.assert_close(scale.undo(scale.apply(raw)), raw)
