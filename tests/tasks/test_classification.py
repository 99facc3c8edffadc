"""Episodes of a source whose pixels say which class and which drawing they are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.tasks import ClassificationSource
from metalearn.tasks.classes import Classes
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
    return ClassificationSource(name="labelled", classes=images, **options)  # type: ignore[arg-type]


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
    drawn = ClassificationSource(name="white", classes={"train": images}, ways=2, query_shots=1).episodes("train", [0])
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
    added = ClassificationSource(name="labelled", classes=images, ways=5, shots=2, query_shots=3)
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
        ({"shots": 6, "query_shots": 7}, "need 13 examples a class, and class number 0 of labelled has 12 in split"),
        ({"ways": 1}, "`ways` must be a whole number of at least 2, got 1"),
        ({"shots": 0}, "`shots` must be a whole number of at least 1, got 0"),
        ({"query_shots": 1.5}, r"`query_shots` .* got 1.5"),
        ({"shots": True}, "`shots`"),
        ({"ways": [5, 3]}, r"`ways`=\[5, 3\] is a range in the wrong order. Write \[3, 5\]"),
        ({"shots": [1, 2, 3]}, "must be a number, or the lowest and the highest"),
        ({"shots": "13"}, "must be a number, or the lowest and the highest"),
        ({"shots": [1, 10]}, "shots=10 and query_shots=3 need 13 examples"),
        ({"imbalanced": True}, r"imbalanced=true needs a range of shots, such as \[1, 5\], got shots=2"),
    ],
)
def test_impossible_episodes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        source(**changes)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "examples of one shape"),
        ({"train": torch.zeros(3, 3, 1, 4, 4, dtype=torch.float64)}, "must be uint8 .* or float32, got torch.float64"),
        ({"train": torch.zeros(3, 3, 4, 4, dtype=torch.uint8)}, "must be uint8"),
        ({"train": torch.zeros(3, 3, 1, 4, 5, dtype=torch.uint8)}, "square"),
    ],
)
def test_other_images_are_refused(images: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ClassificationSource(name="bad", classes=images, ways=2, query_shots=1, rotations=True)


def test_bad_arguments_of_episodes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Unknown split 'trian' of episodes. Did you mean 'train'\?"):
        source().episodes("trian", [0])
    for indices in ([0.5], torch.tensor(3), [True], [[1, 2]]):
        with pytest.raises(UsageError, match="`indices` must be a list of integers"):
            source().episodes("train", indices)  # type: ignore[arg-type]


def ragged(**changes: object) -> ClassificationSource:
    """Eight classes with 3 … 10 examples: the first pixel is the class, the second the example."""
    counts = torch.arange(3, 11)
    rows = torch.cat([torch.stack([torch.full((n,), c), torch.arange(n)], 1) for c, n in enumerate(counts.tolist())])
    classes = Classes(rows.to(torch.float32), counts, tuple("abcdefgh"))
    options: dict[str, object] = {"ways": 4, "shots": 1, "query_shots": 2, **changes}
    return ClassificationSource(name="ragged", classes={"train": classes}, **options)  # type: ignore[arg-type]


def test_classes_of_several_sizes_are_drawn_from_whole_and_in_bounds() -> None:
    episodes = ragged().episodes("train", range(2000))
    rows = torch.cat([episodes.support[0], episodes.query[0]], 1).flatten(0, 1).to(torch.int64)
    seen = {tuple(row) for row in rows.tolist()}
    assert seen == {(c, e) for c in range(8) for e in range(3 + c)}
    for task in range(50):
        drawn = torch.cat([episodes.support[0][task], episodes.query[0][task]])
        assert len(drawn.unique(dim=0)) == 4 * 3


def test_a_class_that_is_too_small_is_named() -> None:
    with pytest.raises(UsageError, match=r"need 4 examples a class, and class 'a' of ragged has 3 in split 'train'"):
        ragged(shots=2)


RANGES = {"ways": {"ways": [2, 5]}, "shots": {"shots": [1, 4]}, "both": {"ways": [2, 5], "shots": [1, 4]}}


@pytest.mark.parametrize("changes", [*RANGES.values(), {"shots": [1, 4], "imbalanced": True}])
def test_ranges_draw_episodes_of_several_sizes(changes: dict[str, object]) -> None:
    several = source(query_shots=2, **changes)
    episodes = several.episodes("train", range(400))
    low_ways, high_ways = changes.get("ways", [5, 5])  # type: ignore[misc]
    low_shots, high_shots = changes.get("shots", [2, 2])  # type: ignore[misc]
    assert several.num_outputs == high_ways
    counts = set()
    for task in range(400):
        inputs, labels, present = (episodes.support[0][task], episodes.support[1][task], episodes.support[2])  # type: ignore[misc]
        rows, outputs = present.examples[task], present.outputs[task]
        ways, real = int(outputs.sum()), labels[rows]
        assert bool(outputs[:ways].all())
        assert bool(rows[: int(rows.sum())].all()), "real rows come first"
        assert bool((labels[~rows] == -100).all())
        assert torch.equal(inputs[~rows], inputs[:1].expand_as(inputs[~rows]))
        each = real.bincount(minlength=ways)
        assert len(each) == ways
        assert low_ways <= ways <= high_ways
        assert low_shots <= int(each.min()) <= int(each.max()) <= high_shots
        counts.add((ways, tuple(each.tolist()) if changes.get("imbalanced") else int(each[0])))
        if not changes.get("imbalanced"):
            assert len(each.unique()) == 1
        query = episodes.query[1][task][episodes.query[2].examples[task]]  # type: ignore[misc]
        assert query.bincount().tolist() == [2] * ways
    expected = (high_ways - low_ways + 1) * (high_shots - low_shots + 1)
    assert len(counts) == expected if not changes.get("imbalanced") else len(counts) > 200


def test_an_episode_of_a_range_is_that_of_its_index_alone() -> None:
    several = source(ways=[2, 5], shots=[1, 4], imbalanced=True, rotations=True)
    batch, alone = several.episodes("train", [3, 11, 5], seed=2), several.episodes("train", [11], seed=2)
    for one, other in zip(tree.tensors(alone), tree.tensors(batch), strict=True):
        assert torch.equal(one[0], other[1])


def test_the_card_says_the_ranges() -> None:
    card = source(ways=[2, 5], shots=[1, 4], imbalanced=True).protocol()
    assert (card["ways"], card["shots"], card["imbalanced_shots"]) == ([2, 5], [1, 4], True)


def test_a_large_class_is_drawn_from_without_ranking_all_of_it() -> None:
    # Above random's bound of populations: Floyd's algorithm.
    rows = torch.arange(40_000, dtype=torch.float32)[:, None]
    classes = Classes(rows, torch.tensor([30_000, 10_000]))
    big = ClassificationSource(name="big", classes={"train": classes}, ways=2, shots=2, query_shots=3)
    episodes = big.episodes("train", range(3000))
    drawn = torch.cat([episodes.support[0].unflatten(1, (2, 2)), episodes.query[0].unflatten(1, (2, 3))], 2)[..., 0]
    first = torch.where(drawn.amax(-1, keepdim=True) < 30_000, drawn, -1)
    assert bool(((drawn < 30_000).all(-1) | (drawn >= 30_000).all(-1)).all())
    assert first.max() > 29_900
    assert all(len(set(row)) == 5 for row in drawn.flatten(0, 1)[:500].tolist())


@pytest.mark.parametrize("name", ["imbalanced", "rotations"])
@pytest.mark.parametrize("value", ["yes", "no", 1, None])
def test_what_is_true_or_false_is_a_truth_value(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"`{name}` must be true or false, got {value!r}"):
        source(**{name: value, "shots": (1, 2)})
