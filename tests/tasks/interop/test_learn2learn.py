"""learn2learn's tasks as a source and a source as learn2learn's tasks: against a double always, and the real package.

The tests marked `learn2learn` need the package, which scripts/install_learn2learn.sh builds; the integration does so
and runs them, and a run without it says that they are left out.
"""

import importlib
import os
import random as python_random
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from metalearn.errors import UsageError
from metalearn.tasks import ClassificationSource, Learn2Learn, Sinusoid, from_taskset, to_taskset
from metalearn.tasks.interop.learn2learn import learn2learn_module

ROOT = Path(__file__).resolve().parents[3]
NUM_CLASSES, NUM_EXAMPLES, WAYS, SAMPLES = 12, 9, 4, 5


class Description:
    """Of one example, as learn2learn's DataDescription."""

    def __init__(self, index: int, load: Any) -> None:
        self.index, self.transforms = index, [load]


class Double:
    """The interface of a learn2learn Taskset, with Python's, NumPy's and torch's global generators in use as there.

    The number of a class is in every value of an example's input, and the number of the example too.
    """

    def __init__(
        self,
        *,
        num_tasks: int = -1,
        offset: int = 0,
        samples: int = SAMPLES,
        ways: int = WAYS,
        remap: bool = True,
        noise: bool = False,
        collate: Any = default_collate,
        make: Any = lambda value: torch.full((1, 2, 2), float(value)),
        uneven: bool = False,
    ) -> None:
        self.num_tasks, self.task_collate, self.sampled_descriptions = num_tasks, collate, {}
        self.offset, self.samples, self.ways, self.remap, self.noise = offset, samples, ways, remap, noise
        self.make, self.uneven = make, uneven

    def sample_task_description(self) -> list[Description]:
        chosen = python_random.sample(range(NUM_CLASSES), self.ways)
        rows = [(n, row) for n in chosen for row in python_random.sample(range(NUM_EXAMPLES), self.samples)]
        rows = rows[1:] if self.uneven else rows
        labels = python_random.sample(chosen, self.ways) if self.remap else list(range(NUM_CLASSES))

        def load(index: int) -> tuple[Any, int]:
            number, row = divmod(index, NUM_EXAMPLES)
            example = self.make(self.offset + number * 10 + row)
            return (example + torch.rand(1) + np.random.rand() if self.noise else example), labels.index(number)

        return [Description(number * NUM_EXAMPLES + row, load) for number, row in sorted(rows)]

    def get_task(self, description: list[Description]) -> Any:
        return self.task_collate([each.transforms[0](each.index) for each in description])

    def __getitem__(self, index: int) -> Any:
        if index not in self.sampled_descriptions:
            self.sampled_descriptions[index] = self.sample_task_description()
        return self.get_task(self.sampled_descriptions[index])


def numbers(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes and the rows that examples `[..., 1, 2, 2]` show."""
    values = inputs[..., 0, 0, 0].round().long()
    return values // 10, values % 10


@pytest.mark.parametrize("remap", [True, False])
@pytest.mark.parametrize("query_shots", [None, 2])
def test_an_episode_is_a_task_split_class_by_class(remap: bool, query_shots: int | None) -> None:
    source = from_taskset(Double(remap=remap), shots=2, query_shots=query_shots)
    episodes = source.episodes("train", range(6))
    num_query = query_shots or SAMPLES - 2
    assert (source.splits, source.num_outputs, source.input_shape) == (("train",), WAYS, (1, 2, 2))
    assert episodes.support[1].tolist() == [[way for way in range(WAYS) for _ in range(2)]] * 6
    assert episodes.query[1].tolist() == [[way for way in range(WAYS) for _ in range(num_query)]] * 6
    support, query = numbers(episodes.support[0]), numbers(episodes.query[0])
    for task in range(6):
        for way in range(WAYS):
            own = [
                (n, row)
                for n, row in zip(*(each[task, way * 2 : way * 2 + 2].tolist() for each in support), strict=True)
            ]
            part = slice(way * num_query, (way + 1) * num_query)
            other = [(n, row) for n, row in zip(*(each[task, part].tolist() for each in query), strict=True)]
            assert len({n for n, _ in own + other}) == 1
            assert len(set(own + other)) == 2 + num_query


def test_labels_are_the_tasksets_own_or_dealt_out() -> None:
    own = from_taskset(Double(), shots=1)
    assert len({tuple(numbers(own.episodes("train", [i]).support[0])[0][0].tolist()) for i in range(20)}) == 20
    raw = from_taskset(Double(remap=False), shots=1).episodes("train", range(40)).support[0]
    classes = numbers(raw)[0]
    assert not torch.equal(classes, classes.sort(dim=1).values)  # a low class is not always a low label
    assert (classes[:, 0] < classes[:, 1]).float().mean() < 0.75


@pytest.mark.parametrize("num_tasks", [-1, 7])
def test_an_episode_depends_on_split_index_and_seed_alone(num_tasks: int) -> None:
    def make() -> Any:
        return {"train": Double(num_tasks=num_tasks, noise=True), "test": Double(num_tasks=num_tasks, noise=True)}

    one, tasksets = from_taskset(make(), shots=1), make()
    other = from_taskset(tasksets, shots=1)
    expected = one.episodes("train", range(5), seed=3)
    python_random.seed(99)
    torch.manual_seed(99)
    tasksets["train"][2], other.episodes("test", range(9))  # what is drawn before does not matter
    got = other.episodes("train", [4, 2], seed=3)
    for part, whole in ((got.support[0], expected.support[0]), (got.query[0], expected.query[0])):
        assert torch.equal(part, whole[[4, 2]])
    assert torch.equal(got.key, expected.key[[4, 2]])  # type: ignore[index, arg-type]
    for different in (other.episodes("train", [4, 2]), other.episodes("test", [4, 2], seed=3)):
        assert not torch.equal(different.support[0], got.support[0])
    assert not torch.equal(got.support[0][0], got.support[0][1])


def test_the_global_generators_are_left_alone() -> None:
    source = from_taskset(Double(noise=True), shots=1)
    before = python_random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    source.episodes("train", range(3))
    assert python_random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state()[1].tolist() == before[2]


def tasks_of(source: Any, indices: range, seed: int = 0) -> list[tuple[int, ...]]:
    support, query = (numbers(each[0]) for each in source.episodes("train", indices, seed=seed)[:2])
    return [
        tuple(sorted((support[0][i] * 10 + support[1][i]).tolist() + (query[0][i] * 10 + query[1][i]).tolist()))
        for i in range(len(indices))
    ]


def test_a_finite_taskset_is_gone_through_round_by_round() -> None:
    source = from_taskset(Double(num_tasks=6), shots=1)
    rounds = [tasks_of(source, range(start, start + 6)) for start in (0, 6, 12)]
    assert len(set(rounds[0])) == 6
    assert set(rounds[0]) == set(rounds[1]) == set(rounds[2])
    assert len({tuple(each) for each in rounds}) > 1
    assert set(tasks_of(source, range(6), seed=1)) == set(rounds[0])
    assert source.protocol()["num_tasks"] == {"train": 6}


def test_tasks_that_all_were_drawn_are_the_tasks() -> None:
    taskset = Double(num_tasks=6)
    drawn = {tuple(sorted(taskset[i][0][:, 0, 0, 0].long().tolist())) for i in range(6)}
    assert set(tasks_of(from_taskset(taskset, shots=1), range(6))) == drawn
    some = Double(num_tasks=6)
    some[0], some[4]
    assert tasks_of(from_taskset(some, shots=1), range(6)) == tasks_of(
        from_taskset(Double(num_tasks=6), shots=1), range(6)
    )


def as_picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((2, 2, 3), value, dtype=np.uint8))


def lists(pairs: list[tuple[Any, int]]) -> tuple[list[Any], torch.Tensor]:
    return [each[0] for each in pairs], torch.tensor([each[1] for each in pairs])


@pytest.mark.parametrize(
    ("make", "collate", "channels"),
    [
        (lambda value: torch.full((1, 2, 2), value, dtype=torch.uint8), default_collate, 1),
        (as_picture, default_collate, 3),
        (as_picture, lists, 3),
        (lambda value: as_picture(value).convert("L"), lists, 1),
        (lambda value: np.full((1, 2, 2), value / 255, dtype=np.float64), default_collate, 1),
    ],
    ids=["bytes", "PIL", "PIL in lists", "grey PIL", "float64"],
)
def test_pictures_and_bytes_become_floats(make: Any, collate: Any, channels: int) -> None:
    source = from_taskset(Double(make=make, collate=collate), shots=1)
    inputs = source.episodes("train", range(3)).query[0]
    assert source.input_shape == (channels, 2, 2)
    assert inputs.dtype == torch.float32
    expected = from_taskset(Double(), shots=1).episodes("train", range(3)).query[0] / 255
    torch.testing.assert_close(inputs, expected.expand_as(inputs))


def test_splits_of_other_ways_are_padded() -> None:
    source = from_taskset({"train": Double(ways=4), "validation": Double(ways=3)}, shots=1, name="mine")
    assert source.splits == ("train", "val")
    assert (source.name, source.num_outputs) == ("mine", 4)
    val = source.episodes("val", range(2))
    assert val.support[2].outputs.tolist() == [[True, True, True, False]] * 2  # type: ignore[misc]
    assert val.query[2].examples.all()  # type: ignore[misc]
    assert val.support[0].shape == (2, 3, 1, 2, 2)
    assert len(source.episodes("train", range(2)).support) == 3
    assert source.protocol()["ways"] == {"train": 4, "val": 3}


def test_a_taskset_source_moves_and_tells_its_card() -> None:
    source = from_taskset(Double(), shots=2)
    moved = source.to("cpu")
    assert moved is not source
    assert torch.equal(moved.episodes("train", [1]).support[0], source.episodes("train", [1]).support[0])
    card = source.protocol()
    assert (card["dataset"], card["ways"], card["shots"], card["query_shots"]) == ("taskset", WAYS, 2, SAMPLES - 2)
    assert card["num_tasks"] == {"train": "unlimited"}


class Changing(Double):
    """Whose tasks are not alike."""

    def sample_task_description(self) -> list[Description]:
        self.samples = python_random.choice([SAMPLES, SAMPLES + 1])
        return super().sample_task_description()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: from_taskset([1, 2], shots=1), "are list, which has no method 'sample_task_description'"),
        (lambda: from_taskset({}, shots=1), "No taskset was given"),
        (lambda: from_taskset(Double(uneven=True), shots=1), "from 4 to 5 examples a class"),
        (lambda: from_taskset(Double(), shots=SAMPLES), "need at least 6 examples a class, and .* has 5"),
        (lambda: from_taskset(Double(), shots=2, query_shots=4), "shots=2 and query_shots=4 need at least 6"),
        (lambda: from_taskset(Double(), shots=0), "`shots` must be a whole number of at least 1"),
        (lambda: from_taskset(Double(ways=1), shots=1), "has 1 class: expected 2 or more"),
        (
            lambda: from_taskset(Double(ways=13), shots=1),
            "No task of split 'train' can be drawn .*as many classes as ways",
        ),
        (
            lambda: from_taskset({"train": Double(), "test": Double(make=lambda v: torch.ones(3) * v)}, shots=1),
            r"inputs of several shapes: \{'train': \(1, 2, 2\), 'test': \(3,\)\}",
        ),
        (lambda: from_taskset(Changing(), shots=1).episodes("train", range(20)), "Make the taskset's tasks alike"),
        (lambda: from_taskset(Double(collate=lambda pairs: pairs[0][0]), shots=1), r"expected \(inputs, labels\)"),
        (lambda: from_taskset(Double(), shots=1).episodes("val", [0]), "Unknown split 'val'"),
    ],
)
def test_mistakes_are_told(make: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text) as raised:
        make()
    assert str(raised.value).count("\n") <= 1


def test_a_missing_package_is_told_with_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn.vision.benchmarks", None)
    with pytest.raises(UsageError, match=r"not installed.*scripts/install_learn2learn\.sh") as raised:
        Learn2Learn(name="omniglot")
    assert str(raised.value).count("\n") == 1


def test_the_script_installs_what_the_extra_names() -> None:
    script = (ROOT / "scripts" / "install_learn2learn.sh").read_text(encoding="utf-8")
    installed = re.search(r"^dependencies=\((.*)\)", script, re.M)
    extra = re.search(r"^learn2learn = \[(.*)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert installed is not None
    assert extra is not None
    assert re.findall(r'"([^"]+)"', installed[1]) == re.findall(r'"([^"]+)"', extra[1])
    assert "scripts/install_learn2learn.sh" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def glyph_like(shots: int = 2, query_shots: int = 2, **changes: Any) -> ClassificationSource:
    """Images that say their class and drawing."""
    values = (
        torch.arange(NUM_CLASSES * NUM_EXAMPLES).reshape(NUM_CLASSES, NUM_EXAMPLES, 1, 1, 1).expand(-1, -1, 1, 2, 2)
    )
    by_split = {"train": values.to(torch.uint8), "test": values.to(torch.uint8)}
    return ClassificationSource(
        name="numbers", classes=by_split, shots=shots, query_shots=query_shots, **{"ways": WAYS, **changes}
    )


def usual_split(data: torch.Tensor, labels: torch.Tensor, *, shots: int, ways: int) -> tuple[torch.Tensor, ...]:
    """How learn2learn's examples split a task (examples/vision/maml_omniglot.py, fast_adapt)."""
    adaptation = np.zeros(data.size(0), dtype=bool)
    adaptation[np.arange(shots * ways) * 2] = True
    evaluation = torch.from_numpy(~adaptation)
    chosen = torch.from_numpy(adaptation)
    return data[chosen], labels[chosen], data[evaluation], labels[evaluation]


@pytest.mark.parametrize(("shots", "query_shots"), [(1, 1), (2, 2), (1, 5), (3, 4)])
def test_the_usual_split_gets_support_and_query(shots: int, query_shots: int) -> None:
    source = glyph_like(shots, query_shots)
    tasks, episodes = to_taskset(source, "test", seed=4), source.episodes("test", range(3), seed=4)
    for index in range(3):
        data, labels = tasks[index]
        x, y, query_x, query_y = usual_split(data, labels, shots=shots, ways=WAYS)
        assert torch.equal(x, episodes.support[0][index])
        assert torch.equal(y, episodes.support[1][index])
        rows = {(int(label), float(value)) for label, value in zip(query_y, query_x[:, 0, 0, 0], strict=True)}
        assert rows == {
            (int(label), float(value))
            for label, value in zip(episodes.query[1][index], episodes.query[0][index][:, 0, 0, 0], strict=True)
        }
        if shots == query_shots:  # learn2learn's own order, class after class
            assert labels.tolist() == sorted(labels.tolist())


def test_padding_is_taken_off_and_regressions_go_too() -> None:
    data, labels = to_taskset(glyph_like(shots=[1, 3], query_shots=3, ways=[2, 4]), "train")[5]  # type: ignore[arg-type]
    assert len(data) == len(labels)
    assert (labels >= 0).all()
    source = Sinusoid(shots=3, query_shots=4)
    data, values = to_taskset(source, "val", seed=1)[2]
    support, query, _ = source.episodes("val", [2], seed=1)
    assert torch.equal(data[[0, 2, 4]], support[0][0])
    assert torch.equal(values[[1, 3, 5, 6]], query[1][0])


def test_a_view_counts_and_samples_as_learn2learn_does() -> None:
    endless, five = to_taskset(glyph_like(), "train"), to_taskset(glyph_like(), "train", num_tasks=5)
    assert (len(endless), len(five), len(list(five))) == (1, 5, 5)
    for index, (data, _) in enumerate(five):
        assert torch.equal(data, endless[index][0])
    python_random.seed(3)
    drawn = [endless.sample()[0] for _ in range(4)]
    python_random.seed(3)
    assert all(torch.equal(endless.sample()[0], each) for each in drawn)
    assert len({tuple(each.flatten().tolist()) for each in drawn}) == 4
    forever = iter(endless)
    assert torch.equal([next(forever) for _ in range(7)][6][0], endless[6][0])
    with pytest.raises(IndexError, match="task 5 of 5"):
        five[5]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: to_taskset(glyph_like(shots=3, query_shots=1), "train"), "Set query_shots to at least shots"),
        (lambda: to_taskset(glyph_like(), "train", num_tasks=0), "`num_tasks` must be -1"),
        (lambda: to_taskset(glyph_like(), "valid"), "Unknown split 'valid'"),
    ],
)
def test_what_has_no_view_is_told(make: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make()


# What follows needs the real package.


@pytest.fixture(scope="module")
def l2l() -> ModuleType:
    learn2learn_module("vision.benchmarks")
    return importlib.import_module("learn2learn")


@pytest.fixture(scope="module")
def cifarfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """learn2learn's processed CIFAR-FS, with a few classes and images of the real CIFAR-100."""
    archive = Path(os.environ.get("METALEARN_DATA", "")).expanduser() / "cifar100" / "cifar100_png.zip"
    if not archive.is_file():
        pytest.fail(
            f"The tests need the real CIFAR-100, and {archive} is not there. Set METALEARN_DATA.", pytrace=False
        )
    classes = {"train": ["apple", "bear", "bed", "bee", "beetle", "bicycle"], "val": ["bus", "can", "cloud", "clock"]}
    root = tmp_path_factory.mktemp("learn2learn")
    with zipfile.ZipFile(archive) as images:
        names = images.namelist()
        for split, chosen in {**classes, "test": ["crab", "cup", "fox", "girl"]}.items():
            for name in chosen:
                folder = root / "cifarfs" / "processed" / split / name
                folder.mkdir(parents=True)
                for member in [each for each in names if each.startswith(f"{name}/")][:8]:
                    (folder / Path(member).name).write_bytes(images.read(member))
    return root


def real_taskset(l2l: ModuleType, **changes: Any) -> Any:
    values = torch.arange(NUM_CLASSES * NUM_EXAMPLES)
    inputs = ((values // NUM_EXAMPLES) * 10 + values % NUM_EXAMPLES).float()[:, None, None, None].expand(-1, 1, 2, 2)
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(inputs, values // NUM_EXAMPLES))
    transforms = [
        l2l.data.transforms.NWays(dataset, WAYS),
        l2l.data.transforms.KShots(dataset, SAMPLES),
        l2l.data.transforms.LoadData(dataset),
        l2l.data.transforms.RemapLabels(dataset),
        l2l.data.transforms.ConsecutiveLabels(dataset),
    ]
    return l2l.data.Taskset(dataset, transforms, **changes)


@pytest.mark.learn2learn
@pytest.mark.parametrize("num_tasks", [-1, 9])
def test_a_real_taskset_is_a_source(l2l: ModuleType, num_tasks: int) -> None:
    source = from_taskset(real_taskset(l2l, num_tasks=num_tasks), shots=2)
    used = real_taskset(l2l, num_tasks=num_tasks)
    used.sample()
    expected, got = source.episodes("train", range(5)), from_taskset(used, shots=2).episodes("train", [3])
    assert torch.equal(got.support[0][0], expected.support[0][3])
    assert torch.equal(got.query[0][0], expected.query[0][3])
    classes = numbers(expected.query[0])[0].reshape(5, WAYS, SAMPLES - 2)
    assert (classes == classes[:, :, :1]).all()
    assert all(len(set(task[:, 0].tolist())) == WAYS for task in classes)


@pytest.mark.learn2learn
def test_the_split_is_learn2learns_own(l2l: ModuleType) -> None:
    taskset = real_taskset(l2l, num_tasks=3)
    tasks = [taskset[index] for index in range(3)]  # all drawn, so these are the tasks
    source = from_taskset(taskset, shots=2)
    for index in range(3):
        (x, y), (query_x, query_y) = source.episodes("train", [index])[:2]
        split = [
            l2l.data.partition_task(*task, shots=2)
            for task in tasks
            if set(task[0][:, 0, 0, 0].tolist()) == {*x[0, :, 0, 0, 0].tolist(), *query_x[0, :, 0, 0, 0].tolist()}
        ]
        (own_x, own_y), (own_query_x, own_query_y) = split[0]
        for got, expected in ((x, own_x), (y, own_y), (query_x, own_query_x), (query_y, own_query_y)):
            assert torch.equal(got[0], expected)


@pytest.mark.learn2learn
def test_a_benchmark_by_its_name(l2l: ModuleType, cifarfs: Path) -> None:
    source = Learn2Learn(name="cifarfs", root=cifarfs, ways=3, shots=1, query_shots=4)
    assert source.splits == ("train", "val", "test")
    assert (source.input_shape, source.num_outputs) == ((3, 32, 32), 3)
    again = Learn2Learn(name="cifarfs", root=cifarfs, ways=3, shots=1, query_shots=4)
    for split in source.splits:
        episodes = source.episodes(split, range(3))
        assert episodes.query[0].shape == (3, 12, 3, 32, 32)
        assert 0 <= float(episodes.query[0].min()) < float(episodes.query[0].max()) <= 1
        assert torch.equal(again.episodes(split, [2]).query[0][0], episodes.query[0][2])
    assert source.protocol()["dataset"] == "cifarfs"
    assert source.class_names["val"] == ("bus", "can", "clock", "cloud")


@pytest.mark.learn2learn
def test_a_benchmark_trains_from_the_command_line(l2l: ModuleType, cifarfs: Path, tmp_path: Path) -> None:
    from metalearn import train

    sizes = ["task.ways=3", "task.query_shots=2", "meta.num_steps=2", "meta.batch_size=2", "model.filters=4"]
    quiet = ["eval.num_episodes=4", "eval.val_episodes=2", "device=cpu", "logger=none", f"hydra.run.dir={tmp_path}"]
    assert train.main(["task=learn2learn", "task.name=cifarfs", f"task.root={cifarfs}", *sizes, *quiet]) == 0
    assert (tmp_path / "results.json").is_file()


@pytest.mark.learn2learn
def test_a_benchmark_that_is_not_there_is_told(
    l2l: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"has no tasksets 'omniglott'\. Did you mean 'omniglot'"):
        Learn2Learn(name="omniglott", root=tmp_path)

    def offline(*args: Any, **kwargs: Any) -> Mapping[str, Any]:
        raise ConnectionError("no network")

    monkeypatch.setattr("learn2learn.vision.datasets.cifarfs.download_file", offline)
    monkeypatch.setattr("learn2learn.vision.datasets.cifarfs.download_file_from_google_drive", offline)
    with pytest.raises(UsageError, match=r"could not load or download 'cifarfs' in .*no network.*\n.*task\.root"):
        Learn2Learn(name="cifarfs", root=tmp_path / "new")


@pytest.mark.learn2learn
def test_code_for_learn2learn_adapts_on_a_source(l2l: ModuleType) -> None:
    """learn2learn's MAML with its usual split gives the adapted loss that plain autograd gives on our sets."""
    source, shots, lr = glyph_like(shots=2, query_shots=2), 2, 0.1
    tasks, loss = to_taskset(source, "train", seed=7), torch.nn.CrossEntropyLoss()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, WAYS))
    maml = l2l.algorithms.MAML(model, lr=lr)
    for index in range(3):
        learner = maml.clone()
        x, y, query_x, query_y = usual_split(*tasks[index], shots=shots, ways=WAYS)
        for _ in range(2):
            learner.adapt(loss(learner(x), y))
        got = loss(learner(query_x), query_y)
        assert got.item() == pytest.approx(plain_maml(source, model, index, lr=lr), rel=1e-5)
        got.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def plain_maml(source: ClassificationSource, model: torch.nn.Sequential, index: int, *, lr: float) -> float:
    episodes, loss = source.episodes("train", [index], seed=7), torch.nn.functional.cross_entropy
    weight, bias = model[1].weight.detach().clone(), model[1].bias.detach().clone()
    for _ in range(2):
        weight.requires_grad_(), bias.requires_grad_()
        value = loss(episodes.support[0][0].flatten(1) @ weight.T + bias, episodes.support[1][0])
        steps = torch.autograd.grad(value, (weight, bias))
        weight, bias = (old.detach() - lr * step for old, step in zip((weight, bias), steps, strict=True))
    return loss(episodes.query[0][0].flatten(1) @ weight.T + bias, episodes.query[1][0]).item()
