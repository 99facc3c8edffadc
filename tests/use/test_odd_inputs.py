"""Odd examples, labels and surroundings: they work as one would think, or are refused in a line."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import metalearn
from metalearn import FewShotClassifier, algorithms, functionalize, losses, train
from metalearn.errors import UsageError
from metalearn.models import MLP
from metalearn.tasks import ClassificationSource, Mixture
from metalearn.tasks.images.format import ImageFormat
from metalearn.training import TaskCard
from metalearn.training.results import summarise
from metalearn.training.task_card import Scale
from metalearn.types import Episodes
from metalearn.use import Learner, label_images
from tests import pictures

X, Y = [[0.0], [1.0], [-2.0]], [0.5, 1.5, -1.0]


def first(episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
    return episodes.support[0][0], episodes.support[1][0], episodes.query[0][0]


def learner_of(source: Any, module: torch.nn.Module) -> Learner:
    model = functionalize(module).eval()
    maml = algorithms.MAML(loss=losses.cross_entropy, inner_lr=0.1, num_inner_steps=1)
    return Learner(task=TaskCard.of(source), algorithm=maml, model=model, meta=maml.init(model))


@pytest.mark.parametrize("standardise", ["true", "false"])
def test_bytes_of_a_table_go_in_as_its_run_took_them(
    standardise: str, tmp_path: Path, test_episodes: Callable[[Path], Episodes]
) -> None:
    labels = np.arange(300) % 30
    noise = np.random.default_rng(0).integers(0, 120, (300, 1, 6, 6))
    features = (noise + labels[:, None, None, None] * 4).astype(np.uint8)
    np.savez(tmp_path / "table.npz", features=features, labels=labels)
    run = tmp_path / "run"
    task = ["task=arrays", f"task.root={tmp_path / 'table.npz'}", f"task.standardise={standardise}"]
    sizes = ["task.query_shots=3", "meta.num_steps=2", "eval.num_episodes=6", "eval.val_episodes=0"]
    quiet = ["eval.baseline=false", "device=cpu", "logger=none", f"hydra.run.dir={run}"]
    assert train.main([*task, *sizes, *quiet, "model.hidden=[8]", "inner.lr=0.01"]) == 0
    learner, episodes = metalearn.load(run, device="cpu"), test_episodes(run)

    def in_bytes(inputs: Tensor) -> Tensor:
        raw = inputs if learner.task.inputs is None else learner.task.inputs.undo(inputs.double())
        return raw.round().to(torch.uint8)

    values = []
    for x, y, query, truth in zip(*episodes.support, *episodes.query, strict=True):
        adapted = learner.adapt(in_bytes(x), y)
        torch.testing.assert_close(adapted.outputs(in_bytes(query)), learner_outputs(learner, x, y, query))
        values.append((adapted.predict(in_bytes(query)) == truth).float().mean())
    results = json.loads((run / "results.json").read_text())
    assert summarise(torch.stack(values)) == results["test"]["accuracy"]


def learner_outputs(learner: Learner, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """What the run itself computes from the inputs of an episode."""
    state = learner.algorithm.adapt(learner.model, learner.meta, learner.model.buffers, (x, y))
    return learner.algorithm.predict(learner.model, learner.meta, state, query).detach()


def source_of(dtype: torch.dtype, *, name: str = "mine", **options: Any) -> ClassificationSource:
    images = torch.randint(0, 256, (4, 6, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(dtype)
    return ClassificationSource(name=name, classes={"test": images}, ways=2, shots=1, query_shots=2, **options)


def test_bytes_are_scaled_only_where_it_is_known_that_training_did() -> None:
    x = torch.full((2, 1, 4, 4), 51, dtype=torch.uint8)
    card = TaskCard.of(source_of(torch.uint8))
    assert card.scaled_uint8 is True
    assert metalearn.use.inputs.as_inputs(x, card).unique().tolist() == pytest.approx([0.2])
    unknown = TaskCard.of(source_of(torch.float32))
    with pytest.raises(UsageError, match=r"x is uint8, and how the task 'mine' .* is not known. Give float32"):
        metalearn.use.inputs.as_inputs(x, unknown)
    as_they_are = replace(unknown, scaled_uint8=False)
    assert metalearn.use.inputs.as_inputs(x, as_they_are).unique().tolist() == [51]
    in_units = replace(unknown, inputs=Scale(mean=(1.0,) * 16, std=(50.0,) * 16))
    assert metalearn.use.inputs.as_inputs(x, in_units).unique().tolist() == [1]


def test_a_mixture_of_sources_that_differ_asks_for_one_of_them(tmp_path: Path) -> None:
    one, two = source_of(torch.uint8), source_of(torch.uint8, name="inverted")
    one.image_format, two.image_format = (ImageFormat((4, 4), color="grey", inverted=each) for each in (False, True))
    one.standardisation = {"inputs": {"mean": [1.0] * 16, "std": [2.0] * 16}}  # type: ignore[attr-defined]
    one.label_names = ("a", "b")  # type: ignore[attr-defined]
    inner = Mixture({"one": (one, 1), "two": (two, 1)}, allow_shared_classes=True)
    for mixture in (inner, Mixture({"inner": (inner, 1)})):
        assert mixture.differing == ("image_format", "standardisation", "label_names")
    card = TaskCard.of(inner)
    card.write(tmp_path)
    assert TaskCard.read(tmp_path) == card
    learner = learner_of(inner, MLP(input_shape=(1, 4, 4), num_outputs=2, hidden=(4,)))
    x, picture = torch.rand(2, 1, 4, 4), Image.new("L", (4, 4), 51)
    with pytest.raises(UsageError, match=r"\('one', 'two'\) .* read pictures differently. .*load\(run, source='one'\)"):
        learner.adapt([picture] * 2, ["a", "b"])
    with pytest.raises(UsageError, match="standardised their numbers differently"):
        learner.adapt(x, ["a", "b"])
    with pytest.raises(UsageError, match="name their classes differently"):
        replace(learner, task=replace(card, differs=("label_names",))).adapt(x, ["a", "b"])
    chosen = card.of_source("two")
    assert metalearn.use.inputs.as_inputs([picture], chosen).unique().tolist() == pytest.approx([0.8])
    assert replace(learner, task=chosen).adapt(x, ["x", "y"]).classes_.tolist() == ["x", "y"]
    with pytest.raises(UsageError, match="Did you mean 'two'"):
        card.of_source("tow")
    with pytest.raises(UsageError, match="no sources that take"):
        TaskCard.of(one).of_source("two")


def test_load_takes_the_source_of_a_mixture(glyph_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(glyph_run, tmp_path / "run"))
    card = TaskCard.read(run)
    assert card is not None
    other = replace(card, image_format=ImageFormat((28, 28), color="grey"))
    replace(card, image_format=None, differs=("image_format",), sources=(("a", card), ("b", other))).write(run)
    assert metalearn.load(run, device="cpu", source="b").task == other
    with pytest.raises(UsageError, match="Known: 'a', 'b'"):
        metalearn.load(run, device="cpu", source="zzz")


DTYPES = [torch.float64, torch.float32, torch.float16, torch.int32, torch.uint8, torch.int64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_come_back_in_their_own_dtype(dtype: Any, glyph_learner: Learner, glyph_episodes: Episodes) -> None:
    x, y, query = first(glyph_episodes)
    labels = y.to(dtype) + (0.1 if dtype.is_floating_point else 1)
    predicted = glyph_learner.adapt(x, labels).predict(query)
    assert predicted.dtype == dtype
    assert torch.isin(predicted, labels).all()


def test_values_come_back_in_the_precision_of_the_targets(sinusoid_learner: Learner) -> None:
    for given, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.int64, torch.float32),
    ):
        targets = torch.tensor([1.0, 2.0, 3.0]).to(given)
        assert sinusoid_learner.adapt(X, targets).predict(X).dtype == expected
    assert sinusoid_learner.adapt(X, [np.array([each]) for each in Y]).predict(X).shape == (3, 1)
    assert sinusoid_learner.adapt(X, [torch.tensor([each]) for each in Y]).predict(X).shape == (3, 1)
    assert sinusoid_learner.adapt(X, [torch.tensor(each) for each in Y]).predict(X).shape == (3,)


def test_labels_with_a_nul_stay_apart(glyph_learner: Learner, glyph_episodes: Episodes) -> None:
    x, y, query = first(glyph_episodes)
    adapted = glyph_learner.adapt(x, ["a" + "\0" * int(each) for each in y])
    assert adapted.classes_.tolist() == ["a" + "\0" * number for number in range(5)]
    assert set(adapted.predict(query)) <= set(adapted.classes_)


def halves(y: Tensor, make: Callable[[float], Any]) -> list[Any]:
    return [make(each / 2) for each in y.tolist()]


LABELS: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("tensors of one element", lambda y: halves(y, lambda each: torch.tensor([each])), "tensor with an axis"),
    ("tensors in pairs", lambda y: halves(y, lambda each: (torch.tensor(each), "a")), "tensor with an axis"),
    ("sparse", lambda y: y.to_sparse(), "y must hold real numbers in a dense tensor"),
    ("meta", lambda y: y.to("meta"), "y is on torch's device 'meta'"),
]


@pytest.mark.parametrize(("change", "expected"), [each[1:] for each in LABELS], ids=[each[0] for each in LABELS])
def test_labels_that_can_be_none(
    change: Callable[[Tensor], Any], expected: str, glyph_learner: Learner, glyph_episodes: Episodes
) -> None:
    x, y, _ = first(glyph_episodes)
    with pytest.raises(UsageError, match=expected):
        glyph_learner.adapt(x, change(y))
    by_value = glyph_learner.adapt(x, halves(y, torch.tensor))
    assert by_value.classes_.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (torch.tensor([1j, 2j, 3j]), "complex"),
        (np.array([1j, 2j, 3j]), "complex"),
        ([1j, 2j, 3j], "complex"),
        (torch.tensor(Y).to_sparse(), "dense tensor"),
        (torch.tensor(Y, device="meta"), "device 'meta'"),
    ],
)
def test_targets_that_are_no_real_numbers(y: Any, expected: str, sinusoid_learner: Learner) -> None:
    with pytest.raises(UsageError, match=expected):
        sinusoid_learner.adapt(X, y)


def test_odd_numbers_are_taken_or_told(sinusoid_learner: Learner) -> None:
    expected = sinusoid_learner.adapt(X, Y).predict(X)
    assert np.array_equal(
        sinusoid_learner.adapt(np.array(X, np.longdouble), np.array(Y, np.longdouble)).predict(X), expected
    )
    assert np.array_equal(sinusoid_learner.adapt(torch.tensor(X, requires_grad=True), Y).predict(iter(X)), expected)
    with pytest.raises(UsageError, match="device 'meta'"):
        sinusoid_learner.adapt(torch.tensor(X, device="meta"), Y)
    nested = [[torch.tensor(each[0], requires_grad=True)] for each in X]
    assert np.array_equal(sinusoid_learner.adapt(nested, Y).predict(nested), expected)
    vectors = [[torch.tensor([1.0, 2.0], requires_grad=True)] for _ in X]
    with pytest.raises(UsageError, match=r"x is no array of numbers|x has shape"):
        sinusoid_learner.adapt(vectors, Y)


def test_in_inference_mode_too(glyph_run: Path, glyph_learner: Learner, glyph_episodes: Episodes) -> None:
    x, y, query = first(glyph_episodes)
    expected = glyph_learner.adapt(x, y).outputs(query)
    with torch.inference_mode():
        inside = metalearn.load(glyph_run, device="cpu")
        adapted = inside.adapt(x.clone(), y.clone())
        assert torch.equal(adapted.outputs(query.clone()), expected)
        made = x.clone()
    assert torch.equal(inside.adapt(made, y).outputs(query), expected)


def test_a_regression_in_inference_mode(sinusoid_learner: Learner) -> None:
    expected = sinusoid_learner.adapt(X, Y).predict(X)
    with torch.inference_mode():
        x, y = torch.tensor(X), torch.tensor(Y)
        found = sinusoid_learner.adapt(x, y).predict(x)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_another_default_dtype_changes_nothing(
    glyph_run: Path, glyph_learner: Learner, glyph_episodes: Episodes
) -> None:
    x, y, query = first(glyph_episodes)
    expected = glyph_learner.adapt(x, y).outputs(query)
    torch.set_default_dtype(torch.float64)
    try:
        found = metalearn.load(glyph_run, device="cpu").adapt(x.double(), y).outputs(query.double())
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_one_example_has_no_spread() -> None:
    class Normalised(torch.nn.Sequential):
        def __init__(self) -> None:
            super().__init__(torch.nn.BatchNorm1d(2, track_running_stats=False), torch.nn.Linear(2, 2))

    card = TaskCard(name="rows", kind="classification", input_shape=(2,), num_outputs=2)
    model = functionalize(Normalised()).eval()
    maml = algorithms.MAML(loss=losses.cross_entropy, inner_lr=0.1, num_inner_steps=1)
    adapted = Learner(task=card, algorithm=maml, model=model, meta=maml.init(model)).adapt(
        torch.rand(4, 2), [0, 1, 0, 1]
    )
    with pytest.raises(UsageError, match=r"normalises by the set at hand, .* Give two or more at once"):
        adapted.predict(torch.rand(1, 2))


def truncated() -> Image.Image:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "PNG")
    return Image.open(io.BytesIO(stream.getvalue()[:500]))


def closed() -> Image.Image:
    picture = Image.new("L", (8, 8))
    picture.close()
    return picture


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (truncated, "picture 0 of x .* can not be used"),
        (closed, "picture 0 of x .* can not be used"),
        (lambda: Image.new("L", (0, 0)), "picture 0 of x has 0 x 0 pixels"),
        (lambda: Image.new("I", (3, 3)), "mode 'I'"),
        (lambda: Image.new("I;16B", (3, 3)), "mode 'I;16B'"),
        (lambda: "a\0b.png", "is no path of a file"),
    ],
)
def test_pictures_that_are_none(make: Callable[[], Any], expected: str, glyph_learner: Learner) -> None:
    with pytest.raises(UsageError, match=expected):
        glyph_learner.adapt([make()], ["a"])


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "LAB", "HSV", "YCbCr", "RGBX", "CMYK"])
def test_pictures_of_odd_modes(mode: str, glyph_learner: Learner) -> None:
    assert metalearn.use.inputs.as_inputs([Image.new(mode, (28, 28))], glyph_learner.task).shape == (1, 1, 28, 28)


def test_paths_come_in_any_collection(glyph_learner: Learner, tmp_path: Path) -> None:
    pictures.write(tmp_path, dict.fromkeys(("circle", "cross"), range(2)))
    files = sorted(tmp_path.glob("*/*.png"))
    expected = metalearn.use.inputs.as_inputs(files, glyph_learner.task)
    objects = np.empty(len(files), dtype=object)
    objects[:] = files
    for form in (iter(files), (each for each in files), np.array([str(each) for each in files]), objects):
        assert torch.equal(metalearn.use.inputs.as_inputs(form, glyph_learner.task), expected)


def test_a_query_folder_of_a_single_class_keeps_its_truth(glyph_learner: Learner, tmp_path: Path) -> None:
    support = pictures.write(tmp_path / "support", dict.fromkeys(("circle", "cross"), range(2)))
    drawn = pictures.write(tmp_path / "drawn", {"cross": range(2, 4)})
    (tmp_path / "query" / "cross").mkdir(parents=True)
    (drawn / "cross").rename(tmp_path / "query" / "cross" / "day1")
    assert label_images(glyph_learner, support, tmp_path / "query").query.classes == ("cross", "cross")


@pytest.mark.parametrize("name", ["photo.png", "page.zip", "archive.bin"])
def test_only_a_broken_zip_is_to_be_deleted(name: str, glyph_learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"PK\3\4 cut short" if name == "archive.bin" else b"<html>")
    with pytest.raises(UsageError, match=name) as caught:
        label_images(glyph_learner, path, tmp_path)
    assert ("Delete it" in str(caught.value)) == (name == "archive.bin")
    assert "zip" in str(caught.value)


def test_what_is_no_run_or_device_is_told(glyph_run: Path, glyph_learner: Learner) -> None:
    for run in (None, 3, ["a"]):
        with pytest.raises(UsageError, match="give the folder of a run"):
            metalearn.load(run)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"config.yaml is a file: give the folder of the run"):
        metalearn.load(glyph_run / "config.yaml")
    with pytest.raises(UsageError, match="'banana' is not a device"):
        glyph_learner.to("banana")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="'cuda' is not there"):
            glyph_learner.to("cuda")


def test_an_estimator_honours_or_refuses_what_goes_with_a_learner(
    glyph_learner: Learner, glyph_episodes: Episodes
) -> None:
    x, y, _ = first(glyph_episodes)
    flat = x.flatten(1).numpy(), y.numpy()
    with pytest.raises(UsageError, match="checkpoint='last', but run is a Learner of the checkpoint 'best'"):
        FewShotClassifier(glyph_learner, checkpoint="last").fit(*flat)
    with pytest.raises(UsageError, match="'banana' is not a device"):
        FewShotClassifier(glyph_learner, device="banana").fit(*flat)
    assert (
        FewShotClassifier(replace(glyph_learner, checkpoint="last"), checkpoint="last").fit(*flat).n_features_in_ == 784
    )


def test_the_callable_module_is_pickled() -> None:
    import metalearn.adapt

    assert pickle.loads(pickle.dumps(metalearn.adapt)) is metalearn.adapt
