"""A person's own folder of pictures as a source, and what is said about one that is not in order."""

import copy
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.errors import UsageError
from metalearn.tasks import ImageFolder
from metalearn.tasks.images import store
from metalearn.tasks.images.files import ImageTree
from metalearn.tasks.images.format import ImageFormat
from tests.tasks.pictures import TRUNCATED, encoded, noise, pixels_of, tree_files, write_folder, write_zip

SMALL = {"ways": 2, "shots": 1, "query_shots": 2}
NAMES = tuple(f"class{number}" for number in range(10))
COUNTS = {name: 3 + number for number, name in enumerate(NAMES)}
FILES = tree_files(COUNTS)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "own-cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "animals", FILES)


def images_of(source: ImageFolder, split: str, name: str) -> np.ndarray:
    """The stored images of a class, uint8 `[image, 3, 8, 8]`."""
    classes = source.classes[split]
    number = classes.names.index(name)
    start, count = int(classes.starts[number]), int(classes.counts[number])
    return classes.examples[start : start + count].numpy()


def test_every_class_holds_its_pictures(root: Path) -> None:
    source = ImageFolder(root=root, **SMALL)
    assert {split: len(names) for split, names in source.class_names.items()} == {"train": 6, "val": 2, "test": 2}
    assert sorted(name for names in source.class_names.values() for name in names) == list(NAMES)
    for split, names in source.class_names.items():
        for name in names:
            expected = [pixels_of(content) for file, content in FILES.items() if file.startswith(f"{name}/")]
            assert np.array_equal(images_of(source, split, name), np.stack(expected))


def test_episodes_are_of_a_splits_classes(root: Path) -> None:
    source = ImageFolder(root=root, **SMALL)
    episodes = source.episodes("test", range(20), seed=1)
    assert episodes.support[0].shape == (20, 2, 3, 8, 8)
    assert episodes.query[0].shape == (20, 4, 3, 8, 8)
    mine = {
        np.float32(image * np.float32(1 / 255)).tobytes()
        for name in source.class_names["test"]
        for image in images_of(source, "test", name)
    }
    drawn = {image.numpy().tobytes() for image in episodes.query[0].flatten(0, 1)}
    assert drawn <= mine
    assert len(drawn) > len(mine) // 2


def test_the_card(root: Path) -> None:
    card = ImageFolder(root=root, split_seed=3, **SMALL).protocol()
    assert card["dataset"] == "animals"
    assert (card["split_scheme"], card["split_seed"], card["split_fractions"]) == ("random", 3, [0.64, 0.16, 0.2])
    assert card["classes"] == {"train": 6, "val": 2, "test": 2}
    assert sum(card["images"].values()) == len(FILES)
    assert card["images_skipped"] == 0
    assert card["image_format"] == {"size": [8, 8], "color": "rgb", "inverted": False, "fit": "crop"}


def test_a_zip_gives_what_its_folder_gives(root: Path, tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "zips" / "animals.zip", {f"top/{name}": each for name, each in FILES.items()})
    one, other = ImageFolder(root=root, **SMALL), ImageFolder(root=str(archive), **SMALL)
    assert one.class_names == other.class_names
    assert one.name == other.name == "animals"
    for left, right in zip(one.episodes("train", range(5)).query, other.episodes("train", range(5)).query, strict=True):
        assert torch.equal(left, right)


def test_the_second_start_decodes_nothing_and_a_changed_file_everything(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ImageFolder(root=root, **SMALL)
    monkeypatch.setattr(store, "decoded", lambda *_, **__: pytest.fail("it was decoded before"))
    monkeypatch.setattr(ImageTree, "opened", lambda *_: pytest.fail("not even one is read"))
    again = ImageFolder(root=root, **SMALL)
    assert torch.equal(first.episodes("val", [3]).support[0], again.episodes("val", [3]).support[0])
    monkeypatch.undo()
    monkeypatch.setenv("METALEARN_CACHE", str(root.parent / "own-cache"))
    (root / "class0/00.png").write_bytes(noise(1234) + b"longer")
    split = next(split for split, names in first.class_names.items() if "class0" in names)
    assert np.array_equal(images_of(ImageFolder(root=root, **SMALL), split, "class0")[0], pixels_of(noise(1234)))


def test_one_store_serves_every_split_seed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ImageFolder(root=root, split_seed=0, **SMALL)
    monkeypatch.setattr(store, "decoded", lambda *_, **__: pytest.fail("it was decoded before"))
    other = ImageFolder(root=root, split_seed=1, **SMALL)
    assert first.class_names != other.class_names
    for split, names in other.class_names.items():
        for name in names:
            expected = [pixels_of(content) for file, content in FILES.items() if file.startswith(f"{name}/")]
            assert np.array_equal(images_of(other, split, name), np.stack(expected))
    assert len([path for path in (root.parent / "own-cache").iterdir() if path.is_dir()]) == 1


def test_by_sub_folders(tmp_path: Path) -> None:
    counts = {"train/b": 3, "train/a": 3, "val/c": 3, "val/d": 4, "test/deep/e": 3, "test/f": 5}
    source = ImageFolder(root=write_folder(tmp_path / "tree", tree_files(counts)), **SMALL)
    assert source.class_names == {"train": ("a", "b"), "val": ("c", "d"), "test": ("deep/e", "f")}
    card = source.protocol()
    assert (card["split_scheme"], card["images"]) == ("sub-folders", {"train": 6, "val": 7, "test": 8})
    assert "split_seed" not in card


def test_by_lists(root: Path) -> None:
    splits = {"train": ["class7", "class1"], "val": ["class2", "class3"], "test": ["class9", "class5"]}
    source = ImageFolder(root=root, splits=splits, **SMALL)
    assert source.class_names == {split: tuple(sorted(names)) for split, names in splits.items()}
    assert len(images_of(source, "test", "class9")) == COUNTS["class9"]
    card = source.protocol()
    assert (card["split_scheme"], card["classes_left_out"]) == ("class lists", 4)


def test_sizes_colours_and_what_comes_of_them(tmp_path: Path) -> None:
    files = {name: noise(seed, width=9 + seed % 5, height=12) for seed, name in enumerate(FILES)}
    root = write_folder(tmp_path / "tree", files)
    source = ImageFolder(root=root, image_size=6, color="grey", inverted=True, fit="stretch", **SMALL)
    assert source.input_shape == (1, 6, 6)
    assert source.image_format == ImageFormat((6, 6), color="grey", inverted=True, fit="stretch")
    expected = source.image_format.decode(files["class4/02.png"], "")
    split = next(split for split, names in source.class_names.items() if "class4" in names)
    assert np.array_equal(images_of(source, split, "class4")[2], expected)


def test_ranges_imbalance_rotations_and_augmentation_are_those_of_the_base_class(root: Path) -> None:
    source = ImageFolder(root=root, ways=[2, 4], shots=[1, 2], query_shots=1, imbalanced=True, rotations=True)
    card = source.protocol()
    assert (card["ways"], card["shots"], card["imbalanced_shots"]) == ([2, 4], [1, 2], True)
    assert card["classes"] == {"train": 24, "val": 8, "test": 8}
    assert len(source.episodes("train", [0]).support) == 3


def test_a_source_is_pickled_and_copied(root: Path) -> None:
    source = ImageFolder(root=root, **SMALL)
    for twin in (pickle.loads(pickle.dumps(source)), copy.deepcopy(source)):
        assert torch.equal(twin.episodes("val", [1]).query[0], source.episodes("val", [1]).query[0])


def test_skipped_pictures_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "class9/00.png").write_bytes(FILES["class9/00.png"][:TRUNCATED])
    (root / "class8/00.png").write_bytes(b"")
    (root / "class0/00.png").rename(root / "class9/zz.png")  # so that the first picture of all is a good one
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            source = ImageFolder(root=root, on_bad_image="skip", ways=2, shots=1, query_shots=1)
        assert [record.getMessage() for record in caplog.records] == [
            f"{root}: 2 images could not be read and were left out, {source.skipped[0]} first."
        ]
        assert set(source.skipped) == {"class8/00.png", "class9/00.png"}
        assert source.protocol()["images_skipped"] == 2
        assert sum(source.protocol()["images"].values()) == len(FILES) - 2


def test_the_size_is_that_of_the_classes_that_are_used(root: Path) -> None:
    write_folder(root, {f"aaa/{number}.png": noise(number, width=5, height=5) for number in range(3)})
    splits = {"train": ["class1", "class2"], "val": ["class3", "class4"], "test": ["class5", "class6"]}
    assert ImageFolder(root=root, splits=splits, **SMALL).input_shape == (3, 8, 8)


def test_a_bad_first_picture_does_not_hide_the_size(root: Path) -> None:
    (root / "class0/00.png").write_bytes(b"")
    source = ImageFolder(root=root, on_bad_image="skip", ways=2, shots=1, query_shots=1)
    assert (source.input_shape, source.skipped) == ((3, 8, 8), ("class0/00.png",))


# Each takes the root, spoils it, and returns what else is asked for.


def nothing(root: Path) -> dict[str, Any]:
    shutil.rmtree(root)
    return {}


def no_classes(root: Path) -> dict[str, Any]:
    shutil.rmtree(root)
    root.mkdir()
    return {}


def only_a_zip(root: Path) -> dict[str, Any]:
    shutil.rmtree(root)
    write_zip(root / "animals.zip", FILES)
    return {}


def no_folders(root: Path) -> dict[str, Any]:
    shutil.rmtree(root)
    write_folder(root, {"a.png": noise(0), "b.png": noise(1)})
    return {}


def an_empty_class(root: Path) -> dict[str, Any]:
    (root / "unicorn").mkdir()
    return {}


def one_image(root: Path) -> dict[str, Any]:
    write_folder(root, {"hermit/0.png": noise(0)})
    return {}


def too_many_shots(root: Path) -> dict[str, Any]:
    return {"shots": [1, 2]}


def a_corrupt_image(root: Path) -> dict[str, Any]:
    (root / "class5/03.png").write_bytes(FILES["class5/03.png"][:TRUNCATED])
    return {}


def a_class_of_corrupt_images(root: Path) -> dict[str, Any]:
    write_folder(root, {f"class0/{number:02d}.png": b"" for number in range(3)})
    return {"on_bad_image": "skip"}


def nothing_but_corrupt_images(root: Path) -> dict[str, Any]:
    write_folder(root, dict.fromkeys(FILES, b""))
    return {"on_bad_image": "skip"}


def several_sizes(root: Path) -> dict[str, Any]:
    write_folder(root, {"class5/03.png": noise(0, width=9, height=7)})
    return {}


def several_sizes_skipping(root: Path) -> dict[str, Any]:
    return {**several_sizes(root), "on_bad_image": "skip"}


def two_splits(root: Path) -> dict[str, Any]:
    for split in ("train", "test"):
        write_folder(root.parent / "tree" / split, FILES)
    return {"root": root.parent / "tree"}


def unknown_class(root: Path) -> dict[str, Any]:
    return {"splits": {"train": ["clas1", "class2"]}}


def too_few_classes(root: Path) -> dict[str, Any]:
    return {"ways": 5}


def corrupt_zip(root: Path) -> dict[str, Any]:
    whole = write_zip(root.parent / "cut.zip", FILES).read_bytes()
    (root.parent / "cut.zip").write_bytes(whole[: len(whole) // 2])
    return {"root": root.parent / "cut.zip"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: {"root": None}, r"`root` is missing: set task.root to a folder"),
        (nothing, r"animals does not exist"),
        (no_classes, r"animals holds no images. Expected one folder of images \(png, jpg …\) a class.$"),
        (only_a_zip, r"holds no images. .* Did you mean task.root=.*animals.zip\?"),
        (no_folders, r"images that lie in no class's folder, 'a.png' \(2 such\)"),
        (an_empty_class, r"has a class without images, 'unicorn' \(1 such\)"),
        (one_image, r"The class 'hermit' of .* has 1 image, and shots=1 with query_shots=2 need 3"),
        (too_many_shots, r"The class 'class0' of .* has 3 images, and shots=2 with query_shots=2 need 4"),
        (a_corrupt_image, r"animals: class5/03.png is not a readable image \(.*truncated"),
        (a_class_of_corrupt_images, r"class 'class0' of animals has 0 in split"),
        (nothing_but_corrupt_images, r"has no image that can be read"),
        (several_sizes, r"class5/03.png has 9 x 7 pixels .* expected 8 x 8\. .* set task.image_size=8"),
        (several_sizes_skipping, r"class5/03.png has 9 x 7 pixels"),
        (two_splits, r"The class 'class0' .* is in two splits, 'train' and 'test'"),
        (unknown_class, r"splits.train has class 'clas1', which is not there. Did you mean 'class1'"),
        (too_few_classes, r"ways=5 is more than the 2 classes of split 'val' .* Choose task.ways <= 2"),
        (corrupt_zip, r"cut.zip is not an intact zip"),
        (lambda root: {"image_size": 0}, r"`image_size` must be a whole number of at least 1"),
        (lambda root: {"color": "gray"}, r"Unknown `color` 'gray' of images. Did you mean 'grey'"),
        (lambda root: {"on_bad_image": "ignore"}, r"Unknown on_bad_image='ignore'"),
        (lambda root: {"query_shots": 0}, r"`query_shots` must be"),
        (lambda root: {"rotations": True, "splits": {"train": ["class1"]}, "ways": 5}, r"more than the 4 classes"),
    ],
)
def test_what_is_not_in_order_is_told_in_a_line_or_two(
    root: Path, spoil: Callable[[Path], dict[str, Any]], message: str
) -> None:
    options = {"root": root, **SMALL, **spoil(root)}
    with pytest.raises(UsageError, match=message) as refused:
        ImageFolder(**options)
    assert str(refused.value).count("\n") <= 1


def test_nothing_is_decoded_before_an_episode_is_known_to_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFormat, "decode", lambda *_, **__: pytest.fail("this takes minutes in earnest"))
    with pytest.raises(UsageError, match="ways=7"):
        ImageFolder(root=root, image_size=8, ways=7)


def test_the_root_is_the_first_argument(root: Path) -> None:
    assert ImageFolder(str(root), **SMALL).name == "animals"
    with pytest.raises(UsageError, match="`root` must be the path of a file or folder, got 5"):
        ImageFolder(5, **SMALL)  # type: ignore[arg-type]


def test_pictures_that_fit_nowhere_are_refused_before_decoding(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageTree, "opened", None)  # decoding would fail otherwise
    with pytest.raises(UsageError, match=r"images of 3 x 1000000 x 1000000 pixels need .* GB.* Choose a smaller"):
        ImageFolder(root, image_size=1_000_000, **SMALL)


def test_two_folders_of_equal_names_sizes_and_times_do_not_share_a_store(tmp_path: Path) -> None:
    found = []
    for place, value in (("one", 10), ("two", 200)):
        picture = encoded(Image.new("RGB", (8, 8), (value,) * 3), "BMP")
        folder = write_folder(
            tmp_path / place / "animals", {f"c{n}/{i}.bmp": picture for n in range(10) for i in "abc"}
        )
        for file in folder.rglob("*.bmp"):
            os.utime(file, ns=(10**18, 10**18))
        found.append(int(ImageFolder(folder, **SMALL).classes["train"].examples.max()))
    assert found == [10, 200]
