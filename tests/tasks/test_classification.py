"""Episodes of a source whose pixels say which class and which drawing they are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metalearn.errors import UsageError
from metalearn.tasks import ClassificationSource
from metalearn.tasks.classification import rotate

NUM_CLASSES, NUM_DRAWINGS = 30, 12


def labelled_images(offset: int = 0) -> torch.Tensor:
    """Pixel (0, 0) is the class, (0, 1) the drawing: readable in whatever turn the image comes."""
    images = torch.zeros(NUM_CLASSES, NUM_DRAWINGS, 1, 5, 5, dtype=torch.uint8)
    images[..., 0, 0] = (torch.arange(NUM_CLASSES, dtype=torch.uint8) + 1 + offset)[:, None, None]
    images[..., 0, 1] = torch.arange(NUM_DRAWINGS, dtype=torch.uint8)[:, None] + 200
    return images


def source(**changes: object) -> ClassificationSource:
    options: dict[str, object] = {"ways": 5, "shots": 2, "query_shots": 3, **changes}
    images = {"train": labelled_images(), "test": labelled_images(offset=100)}
    return ClassificationSource(name="labelled", images=images, **options)  # type: ignore[arg-type]


def read_pixels(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Class and drawing of every unrotated example."""
    pixels = (inputs * 255).round().long()
    return pixels[..., 0, 0, 0], pixels[..., 0, 0, 1]


def test_shapes_types_and_range() -> None:
    episodes = source().episodes("train", range(7))
    assert episodes.support[0].shape == (7, 10, 1, 5, 5)
    assert episodes.query[0].shape == (7, 15, 1, 5, 5)
    assert episodes.support[0].dtype == torch.float32
    assert episodes.query[1].dtype == torch.int64
    assert episodes.key is not None
    assert episodes.key.shape == (7,)
    assert episodes.key.dtype == torch.int64
    assert float(episodes.query[0].max()) <= 1


def test_white_is_exactly_one() -> None:
    images = torch.full((4, 4, 1, 2, 2), 255, dtype=torch.uint8)
    drawn = ClassificationSource(name="white", images={"train": images}, ways=2, query_shots=1).episodes("train", [0])
    assert torch.equal(drawn.support[0], torch.ones(1, 2, 1, 2, 2))


def test_same_episode_whenever_and_with_whomever_it_is_asked_for() -> None:
    whole = source(rotations=True).episodes("train", range(40), seed=3)
    again = source(rotations=True).episodes("train", torch.tensor([31, 4]), seed=3)
    for batch, part in zip(
        (*whole.support, *whole.query, whole.key), (*again.support, *again.query, again.key), strict=True
    ):
        assert torch.equal(batch[[31, 4]], part)


def test_index_seed_and_split_each_make_another_episode() -> None:
    first = source(shots=5).episodes("train", [0]).support[0]
    assert not torch.equal(first, source(shots=5).episodes("train", [1]).support[0])
    assert not torch.equal(first, source(shots=5).episodes("train", [0], seed=1).support[0])
    chosen = read_pixels(first)[0] - 1
    other = read_pixels(source(shots=5).episodes("test", [0]).support[0])[0] - 101
    assert not torch.equal(chosen, other)


def test_an_added_split_changes_no_episode_of_the_others() -> None:
    images = {"extra": labelled_images(50), "train": labelled_images()}
    added = ClassificationSource(name="labelled", images=images, ways=5, shots=2, query_shots=3)
    assert torch.equal(added.episodes("train", [5]).query[0], source().episodes("train", [5]).query[0])


def test_a_label_is_one_class_and_an_episode_repeats_none() -> None:
    episodes = source().episodes("train", range(200))
    support, query = read_pixels(episodes.support[0])[0], read_pixels(episodes.query[0])[0]
    for classes, labels, each in ((support, episodes.support[1], 2), (query, episodes.query[1], 3)):
        assert (torch.nn.functional.one_hot(labels, 5).sum(1) == each).all()
        assert torch.equal(classes, support.reshape(200, 5, 2)[:, :, 0].gather(1, labels))
    assert all(len(set(row)) == 5 for row in support[:, ::2].tolist())


def test_support_and_query_share_no_drawing() -> None:
    episodes = source(shots=4, query_shots=8).episodes("train", range(50))
    support, query = read_pixels(episodes.support[0])[1], read_pixels(episodes.query[0])[1]
    drawings = torch.cat([support.reshape(50, 5, 4), query.reshape(50, 5, 8)], dim=-1) - 200
    assert torch.equal(drawings.sort(dim=-1).values, torch.arange(12).expand(50, 5, 12))


def test_splits_draw_from_their_own_classes_only_and_from_all_of_them_alike() -> None:
    for split, offset in (("train", 1), ("test", 101)):
        classes = read_pixels(source().episodes(split, range(3000)).support[0])[0] - offset
        counts = torch.bincount(classes.flatten(), minlength=NUM_CLASSES)
        assert len(counts) == NUM_CLASSES
        # 3,000 episodes draw a class 500 times each, standard deviation 20; two drawings of it are seen.
        assert ((counts / 2 - 500).abs() < 5 * 20).all()


def test_rotations_are_classes_of_their_own() -> None:
    turned = source(rotations=True)
    assert turned.num_classes("train") == 4 * NUM_CLASSES
    images = turned.episodes("train", range(300)).support[0]
    corners = torch.stack([torch.rot90(images, -turn, (-2, -1))[..., 0, 0, 0] > 0 for turn in range(4)])
    neighbours = torch.stack([torch.rot90(images, -turn, (-2, -1))[..., 0, 0, 1] > 0 for turn in range(4)])
    turn = (corners & neighbours).float().argmax(0)
    assert (torch.bincount(turn.flatten()) > 600).all()
    by_class = turn.reshape(300, 5, 2)
    assert torch.equal(by_class[..., 0], by_class[..., 1]), "the drawings of one class are turned alike"


@given(st.integers(1, 9), st.integers(1, 3), st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_rotate_equals_rot90(side: int, channels: int, turns: list[int]) -> None:
    images = torch.arange(len(turns) * channels * side * side).reshape(len(turns), channels, side, side)
    expected = torch.stack([torch.rot90(image, turn, (-2, -1)) for image, turn in zip(images, turns, strict=True)])
    assert torch.equal(rotate(images, torch.tensor(turns)), expected)


def test_to_keeps_the_episodes_and_leaves_the_original() -> None:
    original = source(rotations=True)
    moved = original.to("cpu")
    assert moved is not original
    assert torch.equal(moved.episodes("test", [3]).query[0], original.episodes("test", [3]).query[0])
    elsewhere = original.to("meta").episodes("train", [0, 1])  # fails if any tensor is made on another device
    assert {tensor.device.type for tensor in (*elsewhere.support, *elsewhere.query, elsewhere.key)} == {"meta"}
    assert original.images["train"].device.type == "cpu"


def test_no_indices_are_no_episodes() -> None:
    assert source().episodes("train", []).support[0].shape == (0, 10, 1, 5, 5)


def test_protocol_is_plain_data_that_nobody_can_spoil() -> None:
    card = source(rotations=True).protocol()
    assert card["classes"] == {"train": 120, "test": 120}
    assert (card["dataset"], card["ways"], card["shots"], card["query_shots"]) == ("labelled", 5, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 31}, r"ways=31 is more than the 30 classes of split 'train' of labelled. Choose ways <= 30"),
        ({"ways": 121, "rotations": True}, "120 classes"),
        ({"shots": 6, "query_shots": 7}, "need 13 drawings a class, and labelled has 12"),
        ({"ways": 1}, "`ways` must be a whole number of at least 2, got 1"),
        ({"shots": 0}, "`shots` must be a whole number of at least 1, got 0"),
        ({"query_shots": 1.5}, r"`query_shots` .* got 1.5"),
        ({"shots": True}, "`shots`"),
    ],
)
def test_impossible_episodes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        source(**changes)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "of one image shape"),
        ({"train": torch.zeros(3, 3, 1, 4, 4)}, "must be uint8"),
        ({"train": torch.zeros(3, 3, 4, 4, dtype=torch.uint8)}, "must be uint8"),
        ({"train": torch.zeros(3, 3, 1, 4, 5, dtype=torch.uint8)}, "square"),
    ],
)
def test_other_images_are_refused(images: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ClassificationSource(name="bad", images=images, ways=2, query_shots=1, rotations=True)


def test_bad_arguments_of_episodes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Unknown split 'trian' of episodes. Did you mean 'train'\?"):
        source().episodes("trian", [0])
    for indices in ([0.5], torch.tensor(3), [True], [[1, 2]]):
        with pytest.raises(UsageError, match="`indices` must be a list of integers"):
            source().episodes("train", indices)  # type: ignore[arg-type]
