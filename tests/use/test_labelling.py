"""Folders of images are labelled as the learner labels the same images, and what is wrong with a folder is told."""

import csv
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.errors import UsageError
from metalearn.use import Labelled, Learner, as_text, draw_gallery, label_images, write_csv
from tests import pictures

CLASSES = ("circle", "cross", "zigzag")


@pytest.fixture
def support(tmp_path: Path) -> Path:
    return pictures.write(tmp_path / "support", dict.fromkeys(CLASSES, range(3)))


@pytest.fixture
def query(tmp_path: Path) -> Path:
    return pictures.write(tmp_path / "query", dict.fromkeys(CLASSES, range(3, 6)))


@pytest.fixture
def labelled(glyph_learner: Learner, support: Path, query: Path) -> Labelled:
    return label_images(glyph_learner, support, query, num_inner_steps=20)


def zipped(folder: Path, inside: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, inside + file.relative_to(folder).as_posix())
    return path


def test_the_labels_are_the_learners(labelled: Labelled, glyph_learner: Learner, support: Path, query: Path) -> None:
    examples = sorted(support.glob("*/*.png"))
    adapted = glyph_learner.adapt(examples, [each.parent.name for each in examples], num_inner_steps=20)
    images = sorted(query.glob("*/*.png"))
    assert labelled.query.names == tuple(each.relative_to(query).as_posix() for each in images)
    np.testing.assert_array_equal(labelled.probabilities.numpy(), adapted.predict_proba(images))
    assert labelled.labels == tuple(adapted.predict(images))
    assert labelled.accuracy == np.mean(
        [label == each.parent.name for label, each in zip(labelled.labels, images, strict=True)]
    )
    assert labelled.classes == CLASSES


def test_the_very_images_adapted_to_are_labelled_right(glyph_learner: Learner, support: Path) -> None:
    found = label_images(glyph_learner, support, support, num_inner_steps=150)
    assert found.accuracy == 1.0
    assert min(found.confidences) > 0.5


def test_a_zip_is_the_folder(labelled: Labelled, glyph_learner: Learner, support: Path, query: Path) -> None:
    found = label_images(glyph_learner, zipped(support, "wrapped/"), zipped(query), num_inner_steps=20)
    assert torch.equal(found.probabilities, labelled.probabilities)
    assert found.labels == labelled.labels


def test_images_without_a_class_are_labelled_too(glyph_learner: Learner, support: Path, query: Path) -> None:
    flat = query.parent / "flat"
    (flat / "unsorted").mkdir(parents=True)
    shutil.copy(query / "circle" / "circle 3.png", flat / "b.png")
    shutil.copy(query / "cross" / "cross 3.png", flat / "unsorted" / "a.png")
    found = label_images(glyph_learner, support, flat)
    assert found.query.names == ("b.png", "unsorted/a.png")
    assert found.right == (None, None)
    assert found.accuracy is None
    assert "accuracy" not in as_text(found)
    single = label_images(glyph_learner, support, flat / "b.png")
    assert single.query.names == ("b.png",)


def test_a_class_is_known_by_the_nearest_folder_with_its_name(
    glyph_learner: Learner, support: Path, query: Path
) -> None:
    (query / "more" / "cross" / "mine").mkdir(parents=True)
    shutil.copy(query / "cross" / "cross 3.png", query / "more" / "cross" / "mine" / "x.png")
    found = label_images(glyph_learner, support, query)
    assert dict(zip(found.query.names, found.query.classes, strict=True))["more/cross/mine/x.png"] == "cross"


def test_inverted_turns_the_ink_round(glyph_learner: Learner, support: Path, query: Path) -> None:
    as_trained = label_images(glyph_learner, support, query)
    other = label_images(glyph_learner, support, query, inverted=False)
    assert torch.equal(other.query.pixels, 255 - as_trained.query.pixels)
    assert as_trained.query.pixels.float().mean() < 128  # ink is high and there is little of it


def test_the_csv(labelled: Labelled, tmp_path: Path) -> None:
    write_csv(labelled, tmp_path / "out" / "predictions.csv")
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "label", "confidence", "p_circle", "p_cross", "p_zigzag", "true_label"]
    assert [row["file"] for row in rows] == list(labelled.query.names)
    assert [row["label"] for row in rows] == list(labelled.labels)
    for row, shares in zip(rows, labelled.probabilities.tolist(), strict=True):
        assert [float(row[f"p_{name}"]) for name in CLASSES] == pytest.approx(shares, abs=1e-4)
        assert row["confidence"] == row[f"p_{row['label']}"]
        assert row["true_label"] == row["file"].partition("/")[0]


def test_the_picture_shows_wrong_labels_in_red(labelled: Labelled, tmp_path: Path) -> None:
    shares = torch.eye(3).repeat_interleave(3, 0)
    all_right = Labelled(**{**vars(labelled), "probabilities": shares})
    all_wrong = Labelled(**{**vars(labelled), "probabilities": shares.roll(1, 1)})
    counts = {}
    for name, each in (("right", all_right), ("wrong", all_wrong)):
        draw_gallery(each, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB")).astype(int), 2, 0)
        counts[name] = ((red > green + 80) & (red > blue + 80)).sum(), ((green > red + 60) & (green > blue + 60)).sum()
    assert counts["right"][0] == 0 < counts["right"][1]
    assert counts["wrong"][1] == 0 < counts["wrong"][0]


def test_more_images_than_the_picture_and_the_table_show(glyph_learner: Learner, support: Path, tmp_path: Path) -> None:
    many = pictures.write(tmp_path / "many", {"line": range(60)})
    found = label_images(glyph_learner, support, many, batch_size=16)
    draw_gallery(found, tmp_path / "many.png")
    assert "… and 40 more" in as_text(found)
    assert len(as_text(found).splitlines()) == 1 + 20 + 1


def test_names_in_any_script_and_with_signs_of_formulas(glyph_learner: Learner, tmp_path: Path) -> None:
    for name, shape in (("$x_", "cross"), ("圆", "circle")):
        pictures.write(tmp_path / "drawn", {shape: range(2)})
        (tmp_path / "support").mkdir(exist_ok=True)
        (tmp_path / "drawn" / shape).rename(tmp_path / "support" / name)
    found = label_images(glyph_learner, tmp_path / "support", tmp_path / "support")
    draw_gallery(found, tmp_path / "gallery.png")
    write_csv(found, tmp_path / "found.csv")
    assert "p_$x_,p_圆,true_label" in (tmp_path / "found.csv").read_text(encoding="utf-8")


def empty_class(support: Path, query: Path) -> None:
    (support / "square").mkdir()


def no_class(support: Path, query: Path) -> None:
    for name in CLASSES:
        shutil.rmtree(support / name)


def loose_only(support: Path, query: Path) -> None:
    shutil.copy(support / "circle" / "circle 0.png", support / "a.png")
    no_class(support, query)


def loose_too(support: Path, query: Path) -> None:
    shutil.copy(support / "circle" / "circle 0.png", support / "a.png")


def one_class(support: Path, query: Path) -> None:
    for name in CLASSES[1:]:
        shutil.rmtree(support / name)


def too_many(support: Path, query: Path) -> None:
    pictures.write(support, dict.fromkeys(("line", "square", "wave"), range(1)))


def corrupt(support: Path, query: Path) -> None:
    (support / "cross" / "cross 1.png").write_bytes(b"no image")


def truncated(support: Path, query: Path) -> None:
    path = query / "cross" / "cross 4.png"
    path.write_bytes(path.read_bytes()[:60])


def no_images(support: Path, query: Path) -> None:
    shutil.rmtree(query)
    query.mkdir()
    (query / "notes.txt").write_text("not an image")


def no_query(support: Path, query: Path) -> None:
    shutil.rmtree(query)


FOLDERS: list[tuple[Callable[[Path, Path], None], str]] = [
    (empty_class, "the class 'square' in support=.* has no image"),
    (no_class, "has no images: it needs one sub-folder"),
    (loose_only, "1 images and no sub-folder"),
    (loose_too, r"outside its classes, such as a.png"),
    (one_class, r"has 1 classes \(circle\); the run takes 2 to 5"),
    (too_many, r"has 6 classes \(.*\); the run takes 2 to 5. Leave some out, or train with task.ways=6"),
    (corrupt, "cross 1.png is not a readable image.*on_bad_image=skip"),
    (truncated, "cross 4.png is not a readable image.*on_bad_image=skip"),
    (no_images, "query=.* has no images"),
    (no_query, "query=.* is not there"),
]


@pytest.mark.parametrize(("spoil", "expected"), FOLDERS, ids=[each.__name__ for each, _ in FOLDERS])
def test_what_is_wrong_with_a_folder_is_told(
    spoil: Callable[[Path, Path], None], expected: str, glyph_learner: Learner, support: Path, query: Path
) -> None:
    spoil(support, query)
    with pytest.raises(UsageError, match=expected) as caught:
        label_images(glyph_learner, support, query)
    assert len(str(caught.value).splitlines()) == 1


def test_bad_images_are_skipped_and_counted(glyph_learner: Learner, support: Path, query: Path) -> None:
    corrupt(support, query)
    truncated(support, query)
    found = label_images(glyph_learner, support, query, on_bad_image="skip")
    assert found.support.skipped == ("cross/cross 1.png",)
    assert found.query.skipped == ("cross/cross 4.png",)
    assert (len(found.support.names), len(found.query.names)) == (8, 8)
    assert "skipped in query: 1 files that are no image (cross/cross 4.png)" in as_text(found)
    for number in range(3):
        (support / "cross" / f"cross {number}.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no image of the class 'cross' in support=.* can be read"):
        label_images(glyph_learner, support, query, on_bad_image="skip")


def test_a_regression_labels_nothing(sinusoid_learner: Learner, support: Path, query: Path) -> None:
    with pytest.raises(UsageError, match=r"the run is a regression \(sinusoid\)"):
        label_images(sinusoid_learner, support, query)
