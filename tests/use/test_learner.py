"""What a learner predicts is what its run was tested to predict, whatever form examples and labels come in."""

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import metalearn
from metalearn import tree
from metalearn.errors import UsageError
from metalearn.training.results import summarise
from metalearn.training.task_card import Scale
from metalearn.types import Episodes
from metalearn.use import Learner


def first(episodes: Episodes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Support and query set of the first task."""
    (x, y, *_), (query, truth, *_) = episodes.support, episodes.query
    return x[0], y[0], query[0], truth[0]


def ink_on_paper(pixels: Tensor) -> list[Image.Image]:
    """Inputs in [0, 1] with ink = 1 as pictures of black on white."""
    return [Image.fromarray(each) for each in (255 - (pixels[:, 0] * 255).round()).to(torch.uint8).numpy()]


@pytest.mark.parametrize("num_inner_steps", [None, 0, 1, 3])
def test_the_accuracy_is_that_of_results_json(
    glyph_run: Path, glyph_learner: Learner, glyph_episodes: Episodes, num_inner_steps: int | None
) -> None:
    values = []
    for x, y, query, truth in zip(*glyph_episodes.support, *glyph_episodes.query, strict=True):
        adapted = glyph_learner.adapt(x, y, num_inner_steps=num_inner_steps)
        values.append((adapted.predict(query) == truth).float().mean())
    results = json.loads((glyph_run / "results.json").read_text())
    wanted = results["test_by_step"]["accuracy"][3 if num_inner_steps is None else num_inner_steps]
    assert summarise(torch.stack(values)) == wanted


def test_the_regression_error_is_that_of_results_json(
    sinusoid_run: Path, sinusoid_learner: Learner, test_episodes: Callable[[Path], Episodes]
) -> None:
    episodes = test_episodes(sinusoid_run)
    values = [
        (sinusoid_learner.adapt(x, y).predict(query) - truth).square().mean()
        for x, y, query, truth in zip(*episodes.support, *episodes.query, strict=True)
    ]
    results = json.loads((sinusoid_run / "results.json").read_text())
    # The run's tasks go through vmap, which sums in another order.
    assert torch.stack(values).mean().item() == pytest.approx(results["test"]["loss"]["mean"], rel=1e-5)


def test_fewer_classes_are_a_smaller_problem_not_a_harder_one(glyph_learner: Learner, glyph_episodes: Episodes) -> None:
    x, y, query, _ = first(glyph_episodes)
    keep = y < 3
    adapted = glyph_learner.adapt(x[keep], y[keep], num_inner_steps=2)

    def loss_fn(params: Any, buffers: Any, batch: Any) -> Tensor:
        return F.cross_entropy(glyph_learner.model(params, buffers, batch[0])[0][:, :3], batch[1])

    model, meta = glyph_learner.model, glyph_learner.meta
    by_hand = metalearn.adapt(
        loss_fn, tree.select(meta, "init."), model.buffers, (x[keep], y[keep]),
        optimizer=metalearn.optim.sgd(0.1), num_inner_steps=2,
    )  # fmt: skip
    expected = model(by_hand.params, by_hand.buffers, query)[0][:, :3]
    torch.testing.assert_close(adapted.outputs(query), expected, rtol=1e-4, atol=1e-5)
    shares = adapted.predict_proba(query)
    assert shares.shape == (len(query), 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(len(query)))
    assert set(adapted.predict(query).tolist()) <= {0, 1, 2}


NAMES: list[tuple[str, Callable[[list[int]], Any]]] = [
    ("text", lambda y: [f"class {each}" for each in y]),
    ("ints", lambda y: y),
    ("negative ints", lambda y: [each - 2 for each in y]),
    ("array", lambda y: np.array(y, dtype=np.int32)),
    ("array of text", lambda y: np.array([f"{each}" for each in y], dtype=object)),
    ("NumPy numbers", lambda y: [np.int64(each) for each in y]),
    ("tensor", lambda y: torch.tensor(y)),
    ("pairs", lambda y: [(each, "a") for each in y]),
    ("floats", lambda y: [each / 2 for each in y]),
]


@pytest.mark.parametrize("named", [each for _, each in NAMES], ids=[name for name, _ in NAMES])
def test_labels_are_whatever_one_calls_them(
    named: Callable[[list[int]], Any], glyph_learner: Learner, glyph_episodes: Episodes
) -> None:
    x, y, query, _ = first(glyph_episodes)
    plain = glyph_learner.adapt(x, y)
    labels = named(y.tolist())
    adapted = glyph_learner.adapt(x, labels)
    np.testing.assert_allclose(np.asarray(adapted.predict_proba(query)), plain.predict_proba(query), atol=1e-6)
    predicted = adapted.predict(query)
    assert isinstance(predicted, Tensor if isinstance(labels, Tensor) else np.ndarray)
    of = {tuple(np.atleast_1d(label)): number for label, number in zip(labels, y.tolist(), strict=True)}
    assert [of[tuple(np.atleast_1d(each))] for each in predicted] == plain.predict(query).tolist()
    assert len(adapted.classes_) == 5


def test_classes_are_sorted_whatever_order_they_come_in(glyph_learner: Learner, glyph_episodes: Episodes) -> None:
    x, y, query, _ = first(glyph_episodes)
    adapted = glyph_learner.adapt(x.flip(0), ["edcba"[each] for each in y.flip(0).tolist()])
    assert adapted.classes_.tolist() == list("abcde")
    assert glyph_learner.adapt(x, ["a", 1, 2, "b", "a", 1, 2, "b", "a", "a"]).classes_.tolist() == ["a", 1, 2, "b"]
    assert (adapted.classes_[adapted.predict_proba(query).argmax(1)] == adapted.predict(query)).all()


def test_every_form_of_the_same_pictures_gives_the_same(
    glyph_learner: Learner, glyph_episodes: Episodes, tmp_path: Path
) -> None:
    x, y, query, _ = first(glyph_episodes)
    pixels = (x * 255).round().to(torch.uint8)
    files = []
    for number, picture in enumerate(ink_on_paper(x)):
        picture.save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")
    expected = glyph_learner.adapt(x, y).outputs(query)
    forms: dict[str, Any] = {
        "float array": x.numpy(),
        "double": x.double(),
        "uint8 tensor": pixels,
        "uint8 array": pixels.numpy(),
        "list of tensors": list(x),
        "list of arrays": list(x.numpy()),
        "paths": files,
        "names": [str(each) for each in files],
        "pictures": ink_on_paper(x),
        "colour": [each.convert("RGB") for each in ink_on_paper(x)],
        "printed": [each.convert("CMYK") for each in ink_on_paper(x)],
    }
    for name, form in forms.items():
        assert torch.equal(glyph_learner.adapt(form, y).outputs(query), expected), name


def test_a_picture_of_another_size_and_orientation_is_made_to_fit(glyph_learner: Learner, tmp_path: Path) -> None:
    tall = Image.new("L", (60, 90), "white")
    tall.paste(0, (10, 20, 30, 70))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    tall.rotate(90, expand=True).save(tmp_path / "on_its_side.png", exif=exif)
    with Image.open(tmp_path / "on_its_side.png") as picture:
        both = [tall, picture]
        found = metalearn.use.inputs.as_inputs(both, glyph_learner.task)
    assert found.shape == (2, 1, 28, 28)
    torch.testing.assert_close(found[0], found[1])
    assert found[0].max() == 1


MISTAKES: list[tuple[str, Callable[[Tensor, Tensor], tuple[Any, Any]], str]] = [
    ("one example", lambda x, y: (x[0], y), r"x has shape \[1, 28, 28\].*\[example, 1, 28, 28\].*x\[None\]"),
    ("no channel", lambda x, y: (x[:, 0], y), r"x\[:, None\]"),
    ("channels last", lambda x, y: (x.permute(0, 2, 3, 1), y), "Channels come first"),
    ("other size", lambda x, y: (x[..., :20], y), "Resize the images"),
    ("flat", lambda x, y: (x.flatten(1), y), r"x has shape \[10, 784\]"),
    ("nothing", lambda x, y: (x[:0], y[:0]), "no examples"),
    ("NaN", lambda x, y: (x.where(x < 1, torch.nan), y), "NaN"),
    ("complex", lambda x, y: (x.to(torch.complex64), y), "real numbers"),
    ("text", lambda x, y: (np.array(["a", "b"]), y), "a can not be read"),
    ("objects", lambda x, y: (np.array([object()]), y), "no number"),
    ("ragged", lambda x, y: ([[1.0], [1.0, 2.0]], y), "no array of numbers"),
    ("tensors of two shapes", lambda x, y: ([x[0], x[0, 0]], y), "different shapes"),
    ("a path", lambda x, y: ("picture.png", y), "a single picture"),
    ("a missing path", lambda x, y: (["nowhere.png"], y), "nowhere.png can not be read"),
    ("mixed pictures", lambda x, y: ([Image.new("L", (3, 3)), 5], y), r"x\[1\] is a int among pictures"),
    ("a picture of floats", lambda x, y: ([Image.new("F", (3, 3))], y), "mode 'F'"),
    ("too few labels", lambda x, y: (x, y[:3]), "3 labels for 10 examples"),
    ("labels in a table", lambda x, y: (x, y[:, None]), r"y has shape \[10, 1\]"),
    ("one text", lambda x, y: (x, "abcdeabcde"), "single text"),
    ("a missing label", lambda x, y: (x, ["a"] * 9 + [None]), "label 9 is missing"),
    ("a NaN label", lambda x, y: (x, [1.0] * 9 + [float("nan")]), "label 9 is missing"),
    ("a list as label", lambda x, y: (x, [["a"]] * 10), "a list, which can be no label"),
    ("one class", lambda x, y: (x, ["a"] * 10), "one class only, 'a'"),
    ("too many classes", lambda x, y: (x, list(range(10))), "10 classes.*at most 5.*task.ways=10"),
]


@pytest.mark.parametrize(("change", "expected"), [each[1:] for each in MISTAKES], ids=[each[0] for each in MISTAKES])
def test_what_does_not_fit_is_told(
    change: Callable[[Tensor, Tensor], tuple[Any, Any]],
    expected: str,
    glyph_learner: Learner,
    glyph_episodes: Episodes,
) -> None:
    x, y, _, _ = first(glyph_episodes)
    with pytest.raises(UsageError, match=expected):
        glyph_learner.adapt(*change(x, y))


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "3"])
def test_inner_steps_are_counted_in_whole_numbers(wrong: Any, sinusoid_learner: Learner) -> None:
    with pytest.raises(UsageError, match="num_inner_steps"):
        sinusoid_learner.adapt([[0.0]], [0.0], num_inner_steps=wrong)
    with pytest.raises(UsageError, match="batch_size"):
        sinusoid_learner.adapt([[0.0]], [0.0]).predict([[0.0]], batch_size=-1)


X, Y = [[0.0], [1.0], [-2.0]], [0.5, 1.5, -1.0]


def test_a_regression_answers_in_the_form_of_its_targets(sinusoid_learner: Learner) -> None:
    flat = sinusoid_learner.adapt(X, Y).predict(X)
    assert isinstance(flat, np.ndarray)
    assert flat.shape == (3,)
    column = sinusoid_learner.adapt(np.array(X), np.array(Y)[:, None]).predict(X)
    assert column.shape == (3, 1)
    tensor = sinusoid_learner.adapt(torch.tensor(X), torch.tensor(Y)).predict(torch.tensor(X))
    assert isinstance(tensor, Tensor)
    assert np.array_equal(column[:, 0], flat)
    assert np.array_equal(tensor.numpy(), flat)
    assert sinusoid_learner.adapt(X, [[each] for each in Y]).predict(X).shape == (3, 1)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (Y[:2], r"y has shape \[2\], expected \[3, 1\] or \[3\]"),
        ([[1.0, 2.0]] * 3, r"y has shape \[3, 2\], expected \[3, 1\]"),
        ([0.0, float("nan"), 1.0], "NaN"),
        (["a", "b", "c"], "must hold numbers"),
    ],
)
def test_targets_that_do_not_fit_are_told(y: Any, expected: str, sinusoid_learner: Learner) -> None:
    with pytest.raises(UsageError, match=expected):
        sinusoid_learner.adapt(X, y)


def test_a_regression_has_no_classes(sinusoid_learner: Learner) -> None:
    adapted = sinusoid_learner.adapt(X, Y)
    with pytest.raises(UsageError, match="is a regression and has no classes"):
        adapted.predict_proba(X)
    with pytest.raises(UsageError, match="is a regression and has no classes"):
        _ = adapted.classes_
    with pytest.raises(UsageError, match="not read from image files"):
        sinusoid_learner.adapt([Image.new("L", (3, 3))], [0.0])


def test_standardised_tasks_are_used_in_the_units_of_the_data(sinusoid_learner: Learner) -> None:
    scaled = replace(
        sinusoid_learner.task, inputs=Scale(mean=(10.0,), std=(4.0,)), targets=Scale(mean=(-3.0,), std=(2.0,))
    )
    in_units = replace(sinusoid_learner, task=scaled)
    x, y = torch.tensor(X), torch.tensor(Y)
    found = in_units.adapt(x * 4 + 10, y * 2 - 3).predict(x * 4 + 10)
    torch.testing.assert_close(found, sinusoid_learner.adapt(x, y).predict(x) * 2 - 3)


def test_a_diverged_adaptation_is_told(sinusoid_learner: Learner) -> None:
    adapted = sinusoid_learner.adapt([[1e6], [-1e6]], [1e6, -1e6], num_inner_steps=30)
    with pytest.raises(UsageError, match="not finite after 30 inner steps"):
        adapted.predict([[0.0]])


def test_parts_of_a_query_set_are_the_whole_where_examples_are_independent(
    sinusoid_learner: Learner, glyph_learner: Learner, glyph_episodes: Episodes
) -> None:
    grid = torch.linspace(-5, 5, 11)[:, None]
    adapted = sinusoid_learner.adapt(X, Y)
    np.testing.assert_allclose(adapted.predict(grid, batch_size=3), adapted.predict(grid), rtol=1e-6)
    assert not sinusoid_learner.transductive
    x, y, query, _ = first(glyph_episodes)
    transductive = glyph_learner.adapt(x, y)
    assert glyph_learner.transductive
    assert not torch.allclose(transductive.outputs(query), transductive.outputs(query, batch_size=5))


def test_nothing_in_a_learner_changes_or_has_a_gradient(glyph_learner: Learner, glyph_episodes: Episodes) -> None:
    x, y, query, _ = first(glyph_episodes)
    before = tree.map_tensors(Tensor.clone, (glyph_learner.meta, glyph_learner.model.buffers))
    outputs = glyph_learner.adapt(x.requires_grad_(), y).outputs(query)
    x.requires_grad_(False)
    assert not outputs.requires_grad
    after = tree.tensors((glyph_learner.meta, glyph_learner.model.buffers))
    assert all(torch.equal(*pair) for pair in zip(tree.tensors(before), after, strict=True))
    with pytest.raises(AttributeError):
        glyph_learner.step = 3  # type: ignore[misc]
    assert copy.deepcopy(glyph_learner) is glyph_learner


def test_both_kinds_of_learner_survive_pickling(glyph_learner: Learner, glyph_episodes: Episodes) -> None:
    x, y, query, _ = first(glyph_episodes)
    adapted = glyph_learner.adapt(x, y)
    restored: Learner = pickle.loads(pickle.dumps(glyph_learner))
    assert torch.equal(restored.adapt(x, y).outputs(query), adapted.outputs(query))
    assert torch.equal(pickle.loads(pickle.dumps(adapted)).outputs(query), adapted.outputs(query))
    assert repr(restored) == repr(glyph_learner)


def test_the_repr_says_what_it_is(glyph_learner: Learner, glyph_run: Path) -> None:
    for part in ("'glyphs'", "MAML", "Conv4", "checkpoint='best'", str(glyph_run), "num_inner_steps=3"):
        assert part in repr(glyph_learner)
    assert "num_inner_steps=7" in repr(glyph_learner.with_inner_steps(7))
