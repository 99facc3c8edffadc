"""`check_task`: our own sources pass it, and every kind of mistake is found, told with its fix, and is the only one."""

import random as python_random
import time
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from metalearn import Episodes, UsageError, random
from metalearn.tasks import ClassificationSource, Glyphs, Mixture, Sinusoid
from metalearn.tasks.base import episode_keys
from metalearn.tasks.padding import pad_examples
from metalearn.testing import TaskReport, check_task
from metalearn.types import Present

SPLITS = ("train", "val", "test")
NAMES = {split: [f"{split} {number}" for number in range(8)] for split in SPLITS}


class Clouds:
    """A right source, from nothing: three classes of points around centres of their own."""

    name = "clouds"
    kind: Any = "classification"
    input_shape: Any = (2,)
    num_outputs: Any = 3
    splits: Any = SPLITS
    class_names: Any = NAMES

    def keys(self, split: str, indices: Any, seed: int) -> Tensor:
        return episode_keys(split, indices, seed=seed, splits=SPLITS)

    def sets(self, keys: Tensor) -> list[list[Any]]:
        centres = random.normal(random.fold_in(keys, 0), (1, 3, 2))
        points = centres + 0.1 * random.normal(random.fold_in(keys, 1), (7, 3, 2))
        labels = torch.arange(3).repeat(len(keys), 7, 1)
        return [[points[:, part].flatten(1, 2), labels[:, part].flatten(1)] for part in (slice(0, 2), slice(2, 7))]

    def episodes(self, split: str, indices: Any, *, seed: int = 0) -> Any:
        keys = self.keys(split, indices, seed)
        support, query = self.sets(keys)
        return Episodes(tuple(support), tuple(query), keys)

    def to(self, device: Any) -> Any:
        return self

    def protocol(self) -> Any:
        return {"dataset": self.name, "ways": 3}


class Lines(Clouds):
    """A right regression."""

    name, kind, num_outputs, class_names = "lines", "regression", 1, None

    def sets(self, keys: Tensor) -> list[list[Any]]:
        x = random.normal(random.fold_in(keys, 0), (9, 2))
        y = x @ random.normal(random.fold_in(keys, 1), (2, 1))
        return [[x[:, :4], y[:, :4]], [x[:, 4:], y[:, 4:]]]


def small_classes() -> ClassificationSource:
    images = torch.randint(0, 256, (30, 8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = {"train": images[:10], "val": images[10:20], "test": images[20:]}
    return ClassificationSource(name="mine", classes=parts, ways=5, shots=1, query_shots=3)


SOURCES: dict[str, Callable[[], Any]] = {
    "from nothing": Clouds,
    "a regression from nothing": Lines,
    "sinusoid": Sinusoid,
    "classes": small_classes,
    "padded": lambda: Mixture([(Sinusoid(shots=3, query_shots=4), 1), (Sinusoid(shots=5), 1)]),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_a_right_source_passes(make: Callable[[], Any]) -> None:
    report = check_task(make())
    assert isinstance(report, TaskReport)
    assert report.splits == SPLITS
    assert report.milliseconds_per_episode > 0
    assert "no mistake" in str(report)


def test_the_share_of_a_meta_step_is_told_for_images_alone() -> None:
    share = check_task(Glyphs()).share_of_meta_step
    assert share is not None
    assert 0 < share < 1
    assert check_task(Clouds()).share_of_meta_step is None


def changed(base: type = Clouds, **changes: Any) -> type:
    """A source with other attributes or methods, in this module so that it can be pickled."""
    made = type("Made", (base,), changes)
    made.__module__, made.__qualname__ = __name__, "Made"
    globals()["Made"] = made
    return made


def sets_with(change: Callable[[list[list[Any]]], None], base: type = Clouds) -> type:
    """A source whose sets `[[inputs, targets], [inputs, targets]]` are changed in place."""

    def sets(self: Any, keys: Tensor) -> list[list[Any]]:
        found: list[list[Any]] = base.sets(self, keys)
        change(found)
        return found

    return changed(base, sets=sets)


def put(part: int, position: int, value: Callable[[Any], Any]) -> Callable[[list[list[Any]]], None]:
    def change(sets: list[list[Any]]) -> None:
        sets[part][position] = value(sets[part][position])

    return change


def episodes_with(episodes: Callable[..., Any], base: type = Clouds) -> type:
    return changed(base, episodes=episodes)


def padded(change: Callable[[Present, Tensor], tuple[Any, Tensor]]) -> type:
    def padding(sets: list[list[Any]]) -> None:
        inputs, targets, present = pad_examples(tuple(sets[0]), num_examples=9, num_outputs=3, own_outputs=3)
        present, targets = change(Present(present.examples.clone(), present.outputs.clone()), targets)
        sets[0] = [inputs, targets, present]

    return sets_with(padding)


def both(change: Callable[[Any], Any], position: int) -> Callable[[list[list[Any]]], None]:
    def apply(sets: list[list[Any]]) -> None:
        for part in (0, 1):
            put(part, position, change)(sets)

    return apply


def global_torch(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    found = Clouds.episodes(self, split, indices, seed=seed)
    return found._replace(support=(found.support[0] + torch.rand(()), found.support[1]))


def global_numpy(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    numpy.random.seed(seed)
    return Clouds.episodes(self, split, indices, seed=seed + int(numpy.random.randint(1)))


def global_python(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    python_random.random()
    return Clouds.episodes(self, split, indices, seed=seed)


def a_position(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    self.position = getattr(self, "position", 0) + 1
    return Clouds.episodes(self, split, indices, seed=seed + self.position)


def the_global_seed(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    return Clouds.episodes(self, split, indices, seed=seed + torch.initial_seed() % 1000)


def the_first_index(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    return Clouds.episodes(self, split, [index + 100 * int(indices[0]) for index in indices], seed=seed)


def the_order(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    return Clouds.episodes(self, split, sorted(int(index) for index in indices), seed=seed)


def the_size(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    return Clouds.episodes(self, split, indices, seed=seed + (1 < len(indices) < 16))


def few_indices(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    return Clouds.episodes(self, split, [index % 3 for index in indices], seed=seed)


def no_seed(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    return Clouds.episodes(self, split, indices)


def no_split(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    return Clouds.episodes(self, "train", indices, seed=seed)


def only_ranges(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    return Clouds.episodes(self, split, range(indices.start, indices.stop), seed=seed)


def raising(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    if split == "val":
        raise KeyError("no val")
    return Clouds.episodes(self, split, indices, seed=seed)


def exiting(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    raise SystemExit


def narrower_when_small(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    found = Clouds.episodes(self, split, indices, seed=seed)
    return found._replace(support=(found.support[0][..., :1], found.support[1])) if len(indices) == 1 else found


def fewer_when_small(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    return Clouds.episodes(self, split, indices[:4] if len(indices) == 8 else indices, seed=seed)


def with_key(key: Callable[[Tensor], Any]) -> type:
    def episodes(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
        found = Clouds.episodes(self, split, indices, seed=seed)
        return found._replace(key=key(found.key))

    return episodes_with(episodes)


def leaking(sets: list[list[Any]]) -> None:
    sets[1][0] = torch.cat([sets[0][0][:, :1], sets[1][0][:, 1:]], dim=1)
    sets[1][1] = torch.cat([sets[0][1][:, :1], sets[1][1][:, 1:]], dim=1)


def same_points_in_splits(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    """Other episodes in each split, out of the same few points."""
    found = Clouds.episodes(self, split, indices, seed=seed)
    table = torch.arange(42.0).reshape(21, 2)
    order = random.choose(found.key, 21, 21)
    labels = torch.arange(21) % 3
    return Episodes(
        (table[order[:, :9]], labels[:9].expand(len(order), 9)),
        (table[order[:, 9:]], labels[9:].expand(len(order), 12)),
        found.key,
    )


def other_after_pickling(self: Any) -> Any:
    return type(self), (), {"offset": 1}


def with_offset(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    return Clouds.episodes(self, split, indices, seed=seed + getattr(self, "offset", 0))


def elsewhere(self: Any, device: Any) -> Any:
    moved = type(self)()
    moved.offset = 1
    return moved


def raise_(error: Exception) -> Any:
    raise error


def nan(inputs: Tensor) -> Tensor:
    return torch.where(torch.arange(inputs.shape[1])[:, None] == 1, torch.nan, inputs)


FINDINGS: dict[str, tuple[Callable[[], type], str, str]] = {
    "no kind": (lambda: changed(kind="clustering"), "`kind` is 'clustering'", 'kind = "regression"'),
    "no name": (lambda: changed(name=3), "`name` is 3", "a text"),
    "splits as a text": (lambda: changed(splits="train"), "`splits` is 'train'", "a tuple of names"),
    "input_shape as a number": (lambda: changed(input_shape=2), "`input_shape` is 2", "input_shape = (2,)"),
    "one output": (lambda: changed(num_outputs=1), "`num_outputs` is 1 in a classification", "2 or more"),
    "no protocol": (lambda: changed(protocol=None), "no method `protocol`", "def protocol(self)"),
    "no episodes": (lambda: changed(episodes=None), "no method `episodes`", "def episodes(self, split, indices"),
    "raises": (lambda: episodes_with(raising), "episodes('val', range(0, 16), seed=0) raised KeyError", "traceback"),
    "only ranges": (lambda: episodes_with(only_ranges), "raised AttributeError", "any list of whole numbers"),
    "a plain tuple": (
        lambda: episodes_with(lambda self, split, indices, *, seed=0: (1, 2)),
        "returned a tuple of 2 (1 …), expected metalearn.Episodes",
        "Return Episodes(",
    ),
    "a set of one": (
        lambda: sets_with(lambda sets: sets[0].pop()),
        "the support set is a tuple of 1",
        "support=(x, y)",
    ),
    "labels as texts": (
        lambda: sets_with(put(0, 1, lambda labels: [["cat"] * 6] * len(labels))),
        "the support targets are a list of 16",
        "class names become numbers from 0",
    ),
    "an array": (lambda: sets_with(put(1, 0, Tensor.numpy)), "the query inputs are a ndarray", "torch.as_tensor"),
    "no task axis": (
        lambda: sets_with(put(0, 0, lambda inputs: inputs[0])),
        "the support inputs have shape [6, 2], expected [16, example, 2]",
        "torch.stack the tasks",
    ),
    "another shape": (
        lambda: sets_with(both(lambda inputs: torch.cat([inputs, inputs], -1), 0)),
        "the support inputs have shape [16, 6, 4], expected [16, example, 2]",
        "set input_shape = (4,)",
    ),
    "too few tasks": (
        lambda: sets_with(both(lambda part: part[:1], 0)),
        "have shape [1, 6, 2], expected [16, example, 2]",
        "one episode for every entry of `indices`",
    ),
    "an empty set": (
        lambda: sets_with(lambda sets: (put(0, 0, lambda x: x[:, :0])(sets), put(0, 1, lambda y: y[:, :0])(sets))),
        "the support inputs have shape [16, 0, 2]",
        "at least one example",
    ),
    "bytes": (
        lambda: sets_with(both(lambda inputs: (inputs * 20 + 128).to(torch.uint8), 0)),
        "the support inputs are torch.uint8, expected torch.float32",
        "/ 255",
    ),
    "float64": (lambda: sets_with(both(Tensor.double, 0)), "inputs are torch.float64", ".to(torch.float32)"),
    "not a number": (lambda: sets_with(put(0, 0, nan)), "32 of the 192 values of the support inputs", "missing values"),
    "labels from 1": (lambda: sets_with(both(lambda y: y + 1, 1)), "run from 1 to 3, expected 0 … 2", "anew from 0"),
    "negative labels": (lambda: sets_with(both(lambda y: y - 1, 1)), "run from -1 to 1, expected 0 … 2", "from 0"),
    "float labels": (lambda: sets_with(both(Tensor.float, 1)), "labels are torch.float32", 'kind = "regression"'),
    "int32 labels": (lambda: sets_with(both(Tensor.int, 1)), "labels are torch.int32", "labels.long()"),
    "one-hot labels": (
        lambda: sets_with(both(lambda y: torch.nn.functional.one_hot(y, 3), 1)),
        "labels have shape [16, 6, 3], expected [16, 6]",
        "argmax(-1)",
    ),
    "an absent class": (
        lambda: sets_with(put(0, 1, lambda y: y.clamp_max(1))),
        "the query set of task 0 has class 2, of which the support set has no example",
        "of the same classes",
    ),
    "targets without width": (
        lambda: sets_with(both(lambda y: y.squeeze(-1), 1), Lines),
        "targets have shape [16, 4], expected [16, 4, 1]",
        "unsqueeze(-1)",
    ),
    "targets that are labels": (lambda: sets_with(both(Tensor.long, 1), Lines), "targets are torch.int64", "float()"),
    "infinite targets": (
        lambda: sets_with(both(lambda y: y / torch.zeros(()), 1), Lines),
        "64 of the 64 values of the support targets are not finite",
        "division by zero",
    ),
    "a graph": (
        lambda: sets_with(put(0, 0, lambda x: x.clone().requires_grad_())),
        "the support set requires grad",
        "Detach it: return x.detach()",
    ),
    "an exit": (lambda: episodes_with(exiting), "raised SystemExit", "traceback"),
    "a later batch of another shape": (
        lambda: episodes_with(narrower_when_small),
        "in episodes('train', [15], seed=0), the support inputs have shape [1, 6, 1], expected [1, example, 2]",
        "input_shape",
    ),
    "a later batch with fewer tasks": (
        lambda: episodes_with(fewer_when_small),
        "the support inputs have shape [4, 6, 2], expected [8, example, 2]",
        "one episode for every entry",
    ),
    "a mask of numbers": (
        lambda: padded(lambda present, y: (present._replace(examples=present.examples.long()), y)),
        "torch.int64 [16, 9] as `examples`, expected torch.bool [16, 9]",
        "pad_examples",
    ),
    "padding first": (
        lambda: padded(lambda present, y: (present._replace(examples=present.examples.flip(1)), y.flip(1))),
        "has padding before a real row",
        "Real rows come first",
    ),
    "padding with labels": (
        lambda: padded(lambda present, y: (present, y.clamp_min(0))),
        "padded rows of the support set have other targets than -100",
        "Set the targets of padding to -100",
    ),
    "labels of no class": (
        lambda: padded(lambda present, y: (present._replace(outputs=present.outputs & (torch.arange(3) < 2)), y)),
        "labels that its `Present.outputs` says are no classes",
        "Mark in `outputs`",
    ),
    "a short key": (lambda: with_key(lambda key: key[:3]), "`key` is torch.int64 [3]", "episode_keys"),
    "one key for all": (lambda: with_key(torch.zeros_like), "`key` is the same for several episodes", "episode_keys"),
    "torch's generator": (
        lambda: episodes_with(global_torch),
        "global generator of torch.",
        "default_rng([seed, index])",
    ),
    "numpy's generator": (lambda: episodes_with(global_numpy), "global generator of numpy.", "metalearn.random"),
    "Python's generator": (lambda: episodes_with(global_python), "global generator of random.", "metalearn.random"),
    "a position": (lambda: episodes_with(a_position), "two calls of episodes('train', …)", "no position"),
    "the global seed": (lambda: episodes_with(the_global_seed), "depends on the global seeds", "metalearn.random"),
    "the first index": (lambda: episodes_with(the_first_index), "asked for alone", "Episode i has to depend on i"),
    "the order": (lambda: episodes_with(the_order), "asked for in another order", "its place among them"),
    "the size": (lambda: episodes_with(the_size), "asked for in a smaller batch", "other entries of `indices`"),
    "few indices": (lambda: episodes_with(few_indices), "only 3 of 16 episodes", "an episode of its own"),
    "no seed": (lambda: episodes_with(no_seed), "the same for seed=0 and seed=1", "Draw from the seed too"),
    "no split": (lambda: episodes_with(no_split), "'train' and 'val' have the same episodes", "from the split too"),
    "leakage": (
        lambda: sets_with(leaking),
        "16 of 240 query examples of 'train' are in the support set",
        "without replacement",
    ),
    "a leaking regression": (lambda: sets_with(leaking, Lines), "16 of 80 query examples", "without replacement"),
    "shared classes": (
        lambda: changed(class_names={**NAMES, "test": ["train 3", *NAMES["test"]]}),
        "1 classes are in 'train' and in 'test' ('train 3')",
        "Give every class to one split",
    ),
    "shared examples": (
        lambda: changed(episodes=same_points_in_splits, class_names=None),
        "21 of 21 different examples of 'val' are in 'train' too",
        "Give every class to one split",
    ),
    "a lambda": (
        lambda: changed(__init__=lambda self: setattr(self, "f", lambda: 0)),
        "can not be pickled",
        "no lambda",
    ),
    "another after pickling": (
        lambda: changed(episodes=with_offset, __reduce__=other_after_pickling),
        "after pickling, the episodes of 'train' are other ones",
        "__getstate__",
    ),
    "to another class": (
        lambda: changed(to=lambda self, device: Clouds()),
        "to('cpu') returned a Clouds, so what",
        "Write type(self)(…)",
    ),
    "to nothing": (lambda: changed(to=lambda self, device: None), "to('cpu') returned None", "`self` if it has"),
    "to an error": (lambda: changed(to=lambda self, device: 1 / 0), "to('cpu') raised ZeroDivisionError", "itself"),
    "to another": (lambda: changed(to=elsewhere, episodes=with_offset), "after to('cpu') the episodes", "every device"),
    "a tensor in the protocol": (
        lambda: changed(protocol=lambda self: {"ways": torch.tensor(3)}),
        "protocol() returned what JSON can not hold (Object of type Tensor",
        "int(…) of a tensor",
    ),
    "no protocol's dict": (
        lambda: changed(protocol=lambda self: [1]),
        "a list of 1 (1 …), not a dict",
        "Return a dict",
    ),
    "a raising protocol": (
        lambda: changed(protocol=lambda self: raise_(KeyError("x"))),
        "protocol() raised KeyError",
        "Return a dict",
    ),
}


@pytest.mark.parametrize(("make", "text", "fix"), FINDINGS.values(), ids=FINDINGS)
def test_a_mistake_is_found_with_its_fix_and_is_the_only_one(make: Callable[[], type], text: str, fix: str) -> None:
    source = make()()
    with pytest.raises(AssertionError) as caught:
        check_task(source)
    told = str(caught.value)
    assert told.startswith("Made has a mistake:\n  1. ")
    assert text in told
    assert fix in told
    assert len(told.splitlines()) == 2


def test_all_mistakes_are_told_at_once() -> None:
    both_of_them = changed(
        protocol=lambda self: {1, 2}, to=lambda self, device: None, class_names=dict.fromkeys(SPLITS, ["one"] * 9)
    )
    with pytest.raises(
        AssertionError, match=r"Made has 3 mistakes:\n  1\. class leakage: .*\n  2\. devices: .*\n  3\. p"
    ):
        check_task(both_of_them())


def test_what_a_source_raises_is_the_cause() -> None:
    with pytest.raises(AssertionError) as caught:
        check_task(episodes_with(raising)())
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_mistake_of_every_split_is_told_once() -> None:
    with pytest.raises(AssertionError, match="in the episodes of 'train' and 'val' and 'test', the support labels run"):
        check_task(sets_with(both(lambda y: y + 1, 1))())


def test_global_generators_are_left_as_they_were() -> None:
    states = torch.get_rng_state(), numpy.random.get_state()[1].copy(), python_random.getstate()
    check_task(small_classes())
    with pytest.raises(AssertionError):
        check_task(episodes_with(global_python)())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (numpy.random.get_state()[1] == states[1]).all()
    assert python_random.getstate() == states[2]


def test_duplicates_in_the_data_may_be_allowed() -> None:
    source = sets_with(leaking)()
    with pytest.raises(AssertionError, match="allow_duplicates=True"):
        check_task(source)
    assert check_task(source, allow_duplicates=True).warnings == ()


def slow(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    start = time.process_time()
    while time.process_time() - start < 0.1 * len(indices) / 16:
        pass
    return Clouds.episodes(self, split, indices, seed=seed)


def waiting(self: Any, split: str, indices: Any, *, seed: int = 0) -> Any:
    time.sleep(0.1 * len(indices) / 16)
    return Clouds.episodes(self, split, indices, seed=seed)


WARNINGS: dict[str, tuple[Callable[[], type], str]] = {
    "no key": (lambda: with_key(lambda key: None), "have no `key`"),
    "few classes": (
        lambda: changed(class_names={s: NAMES[s][:4] for s in SPLITS}),
        "'train' has 4 classes for episodes of 3",
    ),
    "no class names": (lambda: changed(class_names=None), "Add class_names"),
    "waiting": (lambda: episodes_with(waiting), "Sampling waits"),
    "no validation": (lambda: changed(splits=("train", "test")), "There is no split 'val': a run chooses"),
    "no test": (lambda: changed(splits=("train", "val")), "There is no split 'test': a run ends with a test on it"),
    "slow": (lambda: episodes_with(slow), "minutes for 1,000 meta steps of 25 tasks"),
}


@pytest.mark.parametrize(("make", "text"), WARNINGS.values(), ids=WARNINGS)
def test_what_may_be_unintended_is_a_warning(make: Callable[[], type], text: str) -> None:
    source = make()()
    report = check_task(source)
    assert any(text in warning for warning in report.warnings)
    assert len({warning.partition(" ")[0] for warning in report.warnings}) <= 3
    assert check_task(Clouds()).warnings == ()


def test_what_is_asked_of_the_checker_itself() -> None:
    with pytest.raises(UsageError, match="Did you mean 'train'"):
        check_task(Clouds(), splits=["trian"])
    with pytest.raises(UsageError, match="at least 4"):
        check_task(Clouds(), num_episodes=2)
