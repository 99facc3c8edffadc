"""Mixtures: every episode is one of a component's own, drawn by weight, padded where the components differ."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from metalearn.errors import UsageError
from metalearn.tasks import ClassificationSource, Mixture, Omniglot, Sinusoid
from metalearn.tasks.classes import Classes
from metalearn.testing import check_task
from metalearn.types import Episodes

SHAPE = (1, 4, 4)
SPLITS = ("vinyals", "lake")


def classes(num_classes: int, value: int, names: str = "") -> Classes:
    """Every pixel says which data set an image is of."""
    pixels = torch.full((num_classes, 6, *SHAPE), value, dtype=torch.uint8)
    pixels[..., 0, 0] = torch.arange(6, dtype=torch.uint8)[None, :, None]
    grid = Classes.of(pixels)
    return Classes(grid.examples, grid.counts, tuple(f"{names}{n}" for n in range(num_classes)) if names else ())


def images(
    value: int, *, ways: int | Sequence[int] = 3, shots: int = 1, query_shots: int = 2, **more: object
) -> ClassificationSource:
    splits = more.pop("splits", ("train", "val", "test"))
    names = str(more.pop("names", ""))
    by_split = {
        split: classes(8, value + number, f"{names}{split}-" if names else "")
        for number, split in enumerate(splits)  # type: ignore[arg-type]
    }
    return ClassificationSource(
        name=str(more.pop("name", f"set{value}")), classes=by_split, ways=ways, shots=shots, query_shots=query_shots
    )


def mixture(**changes: object) -> Mixture:
    return Mixture({"a": (images(10, **changes), 3), "b": (images(20), 1)})  # type: ignore[arg-type]


def task(episodes: Episodes, number: int) -> list[torch.Tensor]:
    sets = [*episodes.support[:2], *episodes.query[:2]]
    return [each[number] for each in sets] + ([] if episodes.key is None else [episodes.key[number]])


def test_every_episode_is_its_components_own() -> None:
    mixed, parts = mixture(), {"a": images(10), "b": images(20)}
    drawn = mixed.episodes("val", range(40), seed=5)
    names = mixed.chosen("val", range(40), seed=5)
    assert set(names) == {"a", "b"}
    for index, name in enumerate(names):
        own = parts[name].episodes("val", [index], seed=5)
        for got, expected in zip(task(drawn, index), task(own, 0), strict=True):
            assert torch.equal(got, expected)
    assert len(drawn.support) == len(drawn.query) == 2  # nothing to pad


def test_an_episode_depends_on_its_index_alone() -> None:
    mixed = mixture(ways=2)
    whole = mixed.episodes("train", range(20))
    for order in ([7, 3, 19], [3], torch.tensor([11, 3])):
        some = mixed.episodes("train", order)
        for position, index in enumerate(torch.as_tensor(order).tolist()):
            for got, expected in zip(task(some, position), task(whole, index), strict=True):
                assert torch.equal(got, expected)
    assert mixed.chosen("train", range(50)) != mixed.chosen("train", range(50), seed=1)
    assert mixed.chosen("train", range(50)) != mixed.chosen("val", range(50))


def test_weights_are_kept() -> None:
    num_draws = 4000
    counts = Counter(mixture().chosen("train", range(num_draws)))
    # Four standard deviations of a binomial count.
    assert abs(counts["a"] - 0.75 * num_draws) < 4 * (num_draws * 0.75 * 0.25) ** 0.5
    never = Mixture([(images(10), 0), (images(20), 2.5), (images(30), 0)])
    assert set(never.chosen("train", range(500))) == {"set20"}


def test_one_call_of_each_source_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed, calls = mixture(), []
    episodes = ClassificationSource.episodes

    def counted(self: ClassificationSource, split: str, indices: Sequence[int], *, seed: int = 0) -> Episodes:
        calls.append(self.name)
        return episodes(self, split, indices, seed=seed)

    monkeypatch.setattr(ClassificationSource, "episodes", counted)
    mixed.episodes("train", range(64))
    assert sorted(calls) == ["set10", "set20"]


def test_a_mixture_in_a_mixture_chooses_on_its_own() -> None:
    inner = Mixture({"a": (images(10), 1), "b": (images(20), 1)})
    outer = Mixture({"a": (inner, 1), "b": (images(30), 1)})
    values = outer.episodes("train", range(600)).support[0][:, 0, 0, 1, 1].mul(255).round().long()
    counts = Counter(values.tolist())
    assert counts.keys() == {10, 20, 30}
    for value, share in ((10, 0.25), (20, 0.25), (30, 0.5)):
        assert abs(counts[value] - share * 600) < 4 * (600 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(
    ("changes", "rows"), [({"ways": 2}, (3, 6)), ({"ways": 5, "shots": 2}, (10, 10)), ({"query_shots": 4}, (3, 12))]
)
def test_sources_of_other_sizes_are_padded(changes: dict[str, int], rows: tuple[int, int]) -> None:
    mixed, own = mixture(**changes), {"a": images(10, **changes), "b": images(20)}
    assert mixed.num_outputs == max(each.ways for each in own.values())
    for batch in (range(12), [i for i, name in enumerate(mixed.chosen("train", range(30))) if name == "b"]):
        drawn = mixed.episodes("train", list(batch))
        for index, name in enumerate(mixed.chosen("train", list(batch))):
            expected = own[name].episodes("train", [list(batch)[index]])
            for (x, y, present), (own_x, own_y), size in (
                (drawn.support, expected.support, rows[0]),
                (drawn.query, expected.query, rows[1]),
            ):
                real = present.examples[index]
                assert x.shape[1:] == (size, *SHAPE)  # whatever happened to be drawn
                assert torch.equal(x[index][real], own_x[0])
                assert torch.equal(y[index][real], own_y[0])
                assert (y[index][~real] == -100).all()
                assert real.tolist() == sorted(real.tolist(), reverse=True)
                assert present.outputs[index].tolist() == [way < own[name].ways for way in range(mixed.num_outputs)]


def test_padded_components_stay_padded() -> None:
    mixed = mixture(ways=[2, 4])
    drawn = mixed.episodes("train", range(20))
    own = images(10, ways=[2, 4]).episodes("train", range(20))
    for index in [i for i, name in enumerate(mixed.chosen("train", range(20))) if name == "a"]:
        assert drawn.query[2].outputs[index].tolist() == own.query[2].outputs[index].tolist()  # type: ignore[misc]
        assert torch.equal(drawn.query[1][index][: own.query[1].shape[1]], own.query[1][index])


def test_regressions_of_other_numbers_of_points() -> None:
    mixed = Mixture([(Sinusoid(shots=5), 1), (Sinusoid(shots=10, amplitude=(1.0, 2.0)), 1)])
    assert list(mixed.components) == ["sinusoid", "sinusoid-2"]
    drawn = mixed.episodes("train", range(10))
    counts = drawn.support[2].examples.sum(1)  # type: ignore[misc]
    assert counts.tolist() == [5 if n == "sinusoid" else 10 for n in mixed.chosen("train", range(10))]
    assert drawn.support[2].outputs.all()  # type: ignore[misc]
    assert (drawn.support[1][~drawn.support[2].examples] == 0).all()  # type: ignore[misc]


def test_a_mixture_is_a_task_source_as_it_should_be() -> None:
    check_task(Mixture([(Sinusoid(shots=5), 1), (Sinusoid(amplitude=(1.0, 2.0)), 2)]))


def test_a_source_without_keys_gets_the_mixtures() -> None:
    class Keyless(Sinusoid):
        def episodes(self, split: str, indices: Sequence[int] | torch.Tensor, *, seed: int = 0) -> Episodes:
            return super().episodes(split, indices, seed=seed)._replace(key=None)

    drawn = Mixture([(Keyless(), 1), (Sinusoid(), 1)]).episodes("train", range(12))
    assert drawn.key is not None
    assert len(drawn.key.unique()) == 12


def test_no_episodes_are_an_empty_batch() -> None:
    assert mixture().episodes("train", []).support[0].shape == (0, 3, *SHAPE)


def test_a_split_is_drawn_from_those_that_have_it() -> None:
    mixed = Mixture({"a": (images(10, splits=("train",)), 1), "b": (images(20), 1)})
    assert mixed.splits == ("train", "val", "test")
    assert set(mixed.chosen("test", range(50))) == {"b"}
    assert set(mixed.chosen("train", range(50))) == {"a", "b"}
    with pytest.raises(UsageError, match="Split 'val' is only in sources of weight 0"):
        Mixture({"a": (images(10, splits=("train",)), 1), "b": (images(20), 0)})


def test_the_card_and_the_device() -> None:
    mixed = mixture(shots=2)
    card = mixed.protocol()
    assert card["components"]["a"] == {"weight": 0.75, **images(10, shots=2).protocol()}
    assert (card["ways"], card["query_shots"], "shots" in card) == (3, 2, False)
    moved = mixed.to("cpu")
    assert moved is not mixed
    assert torch.equal(moved.episodes("val", [3]).query[0], mixed.episodes("val", [3]).query[0])


def test_classes_that_have_names_keep_them() -> None:
    mixed = Mixture({"a": (images(10, names="x-"), 1), "b": (images(20), 1)})
    assert mixed.class_names["train"][:2] == ("a/x-train-0", "a/x-train-1")
    assert mixed.image_format is None


def named(train: str, test: str) -> ClassificationSource:
    splits = {"train": classes(8, 1, train), "test": classes(8, 2, test)}
    return ClassificationSource(name="named", classes=splits, ways=2, query_shots=1)


def test_a_class_in_two_splits_of_two_sources_is_refused() -> None:
    one, two = named("p", "q"), named("r", "p")
    with pytest.raises(
        UsageError, match=r"Class 'p0' is in 'train' of 'one' and in 'test' of 'two' \(8 such classes\)"
    ):
        Mixture({"one": (one, 1), "two": (two, 1)})
    with pytest.raises(UsageError, match="'train' of 'one' and in 'test' of 'two'"):
        Mixture({"first": (Mixture({"one": (one, 1)}), 1), "two": (two, 1)})
    assert Mixture({"one": (one, 1), "two": (two, 1)}, allow_shared_classes=True).episodes("train", [0])
    assert Mixture({"one": (one, 1), "two": (named("p", "q"), 1)}).episodes("train", [0])


def test_two_ways_to_split_omniglot_do_not_mix(omniglot_root: Path, shared_cache: Path) -> None:
    vinyals, lake = (Omniglot(root=omniglot_root, cache_dir=shared_cache, split=each, query_shots=1) for each in SPLITS)
    with pytest.raises(UsageError, match=r"Class '.+/character\d\d' is in 'train' of 'omniglot' and in 'val' of"):
        Mixture([(vinyals, 1), (lake, 1)])
    assert Mixture([(vinyals, 1), (vinyals, 1)]).class_names.keys() == {"train", "val", "test"}


def odd_shape() -> ClassificationSource:
    pixels = torch.zeros(4, 4, 3, 4, 4, dtype=torch.uint8)
    return ClassificationSource(name="colour", classes={"train": pixels}, ways=2, query_shots=1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Mixture([]), "at least one"),
        (lambda: Mixture([images(10)]), r"must be \(source, weight\)"),  # type: ignore[list-item]
        (lambda: Mixture([(images(10), -1)]), "weight of 'set10' must be a number of at least 0, got -1"),
        (lambda: Mixture([(images(10), float("nan"))]), "must be a number of at least 0, got nan"),
        (lambda: Mixture({"a": (images(10), 0)}), "are all 0"),
        (lambda: Mixture([(images(10), 1), (Sinusoid(), 1)]), "'sinusoid' does not .* its kind is regression"),
        (
            lambda: Mixture({"x": (odd_shape(), 1), "a": (images(10), 1), "b": (images(20), 1)}),
            r"'x' does not .* input_shape is \(3, 4, 4\), that of 'a', 'b' is \(1, 4, 4\).*image_size",
        ),
        (lambda: mixture().episodes("trian", [0]), "Did you mean 'train'"),
    ],
)
def test_mistakes_are_told(make: object, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("sources", [None, 5, "glyphs"])
def test_no_sources_are_refused(sources: object) -> None:
    with pytest.raises(UsageError, match="A mixture is of"):
        Mixture(sources)  # type: ignore[arg-type]
