"""The invented world is reproducible, as hard as it should be, and split by alphabet."""

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import random
from metalearn.errors import UsageError
from metalearn.tasks import Mixture
from metalearn.tasks.glyphs import Glyphs, draw_world
from metalearn.tasks.glyphs.alphabets import appearance_distances, draw_alphabets
from metalearn.tasks.glyphs.drawing import SIDE, ink

SMALL: dict[str, Any] = {"num_alphabets": 12, "characters": 10}


@pytest.fixture(scope="module")
def glyphs() -> Glyphs:
    return Glyphs(**SMALL)


@pytest.fixture(scope="module")
def world() -> Tensor:
    return draw_world(0, 12, 10, 20)


def test_the_same_seed_draws_the_same_bits_and_another_seed_another_world(world: Tensor) -> None:
    generator_state = torch.random.get_rng_state()
    assert torch.equal(draw_world(0, 12, 10, 20), world)
    assert torch.equal(torch.random.get_rng_state(), generator_state)
    differing = (draw_world(1, 12, 10, 20) != world).any(-1).any(-1)
    assert differing.all()


def test_an_alphabet_is_the_same_in_a_world_of_any_size(world: Tensor) -> None:
    assert torch.equal(draw_world(0, 3, 10, 20), world[:3])


def test_the_bits_do_not_depend_on_the_default_dtype_or_on_the_threads(world: Tensor) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(threads % 2 + 1)
        assert torch.equal(draw_world(0, 12, 10, 20), world)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("rotations", [True, False])
def test_counts_and_shapes(rotations: bool) -> None:
    source = Glyphs(**SMALL, rotations=rotations, drawings=18, ways=3, shots=2, query_shots=4)
    assert {split: tuple(images.shape) for split, images in source.images.items()} == {
        "train": (80, 18, 1, 28, 28),
        "val": (10, 18, 1, 28, 28),
        "test": (30, 18, 1, 28, 28),
    }
    assert all(images.dtype == torch.uint8 for images in source.images.values())
    assert source.num_classes("train") == (320 if rotations else 80)
    assert source.input_shape == (1, 28, 28)
    assert source.num_outputs == 3
    protocol = source.protocol()
    assert protocol["dataset"] == "glyphs"
    assert protocol["alphabets"] == {"train": 8, "val": 1, "test": 3}
    assert protocol["drawings_per_class"] == 18
    assert protocol["glyph_seed"] == 0


@pytest.mark.parametrize("num_alphabets", [3, 4, 5, 12])
def test_splits_share_no_alphabet_and_together_hold_all(num_alphabets: int) -> None:
    source = Glyphs(num_alphabets=num_alphabets, characters=6, drawings=16)
    members = {split: set(numbers.tolist()) for split, numbers in source.alphabets.items()}
    assert all(members.values())
    assert sum(len(part) for part in members.values()) == num_alphabets
    assert set.union(*members.values()) == set(range(num_alphabets))
    world = draw_world(0, num_alphabets, 6, 16)
    for split, numbers in source.alphabets.items():
        assert torch.equal(source.images[split][:, :, 0], world[numbers[::6]].flatten(0, 1))


def test_lines_are_as_thin_as_those_of_omniglot(world: Tensor) -> None:
    share = world.to(torch.float64).mean((-2, -1)) / 255
    assert 0.065 < share.mean() < 0.095  # the real Omniglot at 28 x 28 has 0.084
    assert share.min() > 0.01
    assert share.max() < 0.30
    edge = torch.cat([world[..., 0, :], world[..., -1, :], world[..., 0], world[..., -1]], -1)
    assert edge.max() < 128


def test_the_pen_draws_a_line_of_the_profile_it_promises() -> None:
    x = torch.linspace(4, 24, 101, dtype=torch.float64)
    line = torch.stack([x, torch.full_like(x, 14.5)], -1)[None]
    image = ink(line, torch.full((1, 101), 0.2, dtype=torch.float64), torch.tensor([1.5], dtype=torch.float64))[0]
    offset = torch.arange(SIDE, dtype=torch.float64) - 14
    expected = 255 * (1.05 * (-0.5 * (offset / 1.5).square()).exp()).clamp(max=1)
    torch.testing.assert_close(image[:, 14].to(torch.float64), expected, atol=1.0, rtol=0.01)


def test_characters_of_an_alphabet_differ_however_they_are_turned() -> None:
    programs = draw_alphabets(random.key(torch.arange(12)), 20)
    distances = appearance_distances(programs) + 9 * torch.eye(20, dtype=torch.float64)
    assert distances.min() > 0.3  # 0 is the same picture, 1.41 two without a common pixel


def test_drawings_of_a_character_are_closer_than_those_of_different_ones(world: Tensor) -> None:
    flat = torch.nn.functional.avg_pool2d(world.flatten(0, 2)[:, None].float() / 255, 4).reshape(12, 10, 20, -1)
    pairs = torch.cdist(flat.flatten(1, 2), flat.flatten(1, 2))
    character = torch.arange(10).repeat_interleave(20)
    same = character[:, None] == character
    within = pairs[:, same & ~torch.eye(200, dtype=torch.bool)].mean(-1)
    between = pairs[:, ~same].mean(-1)
    assert (within < 0.92 * between).all()  # in every alphabet; the real Omniglot's have 0.67 to 0.91
    assert 0.75 < within.mean() / between.mean() < 0.88  # the real Omniglot: 0.82


def test_the_nearest_neighbour_in_pixels_is_far_from_chance_and_far_from_solving_it(glyphs: Glyphs) -> None:
    episodes = glyphs.episodes("train", range(400))
    (support, _), (query, labels) = episodes.support, episodes.query
    accuracy = (torch.cdist(query.flatten(2), support.flatten(2)).argmin(-1) == labels).float().mean()
    assert 0.36 < accuracy < 0.58  # on the test classes of the real Omniglot: 0.43


def test_an_episode_holds_one_character_a_label_and_no_drawing_twice(glyphs: Glyphs) -> None:
    upright = {turn: torch.rot90(glyphs.images["test"], turn, (-2, -1)) for turn in range(4)}
    rows = {
        image.numpy().tobytes(): (character, turn)
        for turn, images in upright.items()
        for character, drawings in enumerate(images)
        for image in drawings
    }
    assert len(rows) == 4 * 30 * 20
    episodes = glyphs.episodes("test", range(8))
    inputs = torch.cat([episodes.support[0], episodes.query[0]], 1)
    labels = torch.cat([episodes.support[1], episodes.query[1]], 1)
    for images, targets in zip((inputs * 255).round().to(torch.uint8), labels, strict=True):
        keys = [image.numpy().tobytes() for image in images]
        assert len(set(keys)) == len(keys)
        classes = {(rows[key], int(target)) for key, target in zip(keys, targets, strict=True)}
        assert len(classes) == len({name for name, _ in classes}) == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_alphabets": 2}, "`num_alphabets` must be a whole number of at least 3, got 2"),
        ({"characters": 0}, "`characters` must be"),
        ({"drawings": -1}, "`drawings` must be"),
        ({"glyph_seed": "zero"}, "`glyph_seed` must be a whole number, got 'zero'"),
        ({"ways": 1000}, "ways=1000 is more than the"),
        ({"shots": 10}, "need 25 examples"),
    ],
)
def test_a_mistake_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Glyphs(**{"num_alphabets": 3, "characters": 4, **changed})


def test_an_alphabet_that_two_worlds_split_in_other_ways_is_seen_in_a_mixture() -> None:
    sizes = {"characters": 4, "drawings": 8, "ways": 2, "query_shots": 2}
    larger, smaller = Glyphs(num_alphabets=12, **sizes), Glyphs(num_alphabets=6, **sizes)
    assert len({name for names in larger.class_names.values() for name in names}) == 12 * 4
    assert set(larger.class_names["train"]) & set(smaller.class_names["test"])
    with pytest.raises(UsageError, match="world 0, alphabet"):
        Mixture([(larger, 1), (smaller, 1)])
    Mixture([(larger, 1), (Glyphs(num_alphabets=6, glyph_seed=1, **sizes), 1)])


def test_episodes_of_several_sizes() -> None:
    several = Glyphs(num_alphabets=3, characters=6, drawings=8, ways=[2, 4], shots=[1, 3], query_shots=2)
    support = several.episodes("train", range(30)).support
    assert len(support) == 3
    assert set(support[2].outputs.sum(1).tolist()) == {2, 3, 4}
