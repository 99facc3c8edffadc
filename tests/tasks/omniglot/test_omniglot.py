"""Omniglot as a source, on the real images."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.errors import UsageError
from metalearn.tasks import Omniglot
from metalearn.tasks.images.files import list_images
from metalearn.tasks.omniglot.splits import character_names, characters_by_split


@pytest.fixture(scope="module")
def source(omniglot_root: Path, shared_cache: Path) -> Omniglot:
    return Omniglot(root=omniglot_root, cache_dir=shared_cache)


def test_counts_of_the_vinyals_split(source: Omniglot) -> None:
    assert {split: tuple(images.shape) for split, images in source.images.items()} == {
        "train": (1028, 20, 1, 28, 28),
        "val": (172, 20, 1, 28, 28),
        "test": (423, 20, 1, 28, 28),
    }
    assert {tensor.dtype for tensor in source.images.values()} == {torch.uint8}
    assert [source.num_classes(split) for split in source.splits] == [4112, 688, 1692]


def test_protocol(source: Omniglot) -> None:
    card = source.protocol()
    assert card["dataset"] == "omniglot"
    assert card["split_scheme"] == "vinyals"
    assert card["classes"] == {"train": 4112, "val": 688, "test": 1692}
    assert card["characters"] == {"train": 1028, "val": 172, "test": 423}
    assert (card["ways"], card["shots"], card["query_shots"]) == (5, 1, 15)


def test_ink_is_one_on_an_empty_background(source: Omniglot) -> None:
    images = torch.cat(list(source.images.values())).float() / 255
    assert float(images.mean()) == pytest.approx(0.0840, abs=0.002)
    assert float((images == 0).float().mean()) == pytest.approx(0.76, abs=0.02)
    assert float(images.max()) == 1
    assert bool((images.amax((-3, -2, -1)) > 0.3).all()), "every drawing has ink"
    assert float(images[..., 0, 0].mean()) < 0.01, "a corner is background"


def test_the_known_duplicate_is_the_only_pair_of_equal_drawings_of_its_character(
    omniglot_root: Path, shared_cache: Path
) -> None:
    lake = Omniglot(root=omniglot_root, cache_dir=shared_cache, split="lake")
    position = characters_by_split("lake")["train"].index(character_names().index("Braille/character01"))
    drawings = lake.images["train"][position].flatten(1).long()
    distance = torch.cdist(drawings.double(), drawings.double(), p=1) + torch.eye(20).double()
    assert torch.nonzero(distance == 0).tolist() == [[2, 18], [18, 2]]


def test_a_decoded_drawing_is_the_file_of_its_name(source: Omniglot, omniglot_root: Path) -> None:
    with zipfile.ZipFile(omniglot_root / "images_evaluation.zip") as archive:
        (member,) = (name for name in archive.namelist() if re.search(r"Tengwar/character07/\d+_04", name))
        original = Image.open(io.BytesIO(archive.read(member))).convert("L")
    resized = 255 - np.asarray(original.resize((28, 28), Image.Resampling.LANCZOS))
    position = characters_by_split("vinyals")["test"].index(character_names().index("Tengwar/character07"))
    assert torch.equal(source.images["test"][position, 3, 0], torch.from_numpy(resized))


def test_episodes_are_pure(source: Omniglot) -> None:
    whole, part = source.episodes("train", range(16), seed=4), source.episodes("train", [11, 2], seed=4)
    assert torch.equal(whole.support[0][[11, 2]], part.support[0])
    assert torch.equal(whole.query[0][[11, 2]], part.query[0])
    assert whole.support[0].shape == (16, 5, 1, 28, 28)
    assert whole.query[0].shape == (16, 75, 1, 28, 28)
    assert not torch.equal(part.query[0], source.episodes("train", [11, 2], seed=5).query[0])
    assert not torch.equal(part.query[0], source.episodes("val", [11, 2], seed=4).query[0])


def test_labels_are_balanced_and_no_support_drawing_is_a_query(source: Omniglot) -> None:
    episodes = source.episodes("test", range(20))
    assert torch.equal(episodes.query[1], torch.arange(5).repeat_interleave(15).expand(20, -1))
    assert torch.equal(episodes.support[1], torch.arange(5).expand(20, -1))
    distance = torch.cdist(episodes.support[0].flatten(2), episodes.query[0].flatten(2))
    assert float(distance.min()) > 0.1


def test_drawings_of_one_class_are_nearer_than_those_of_others(source: Omniglot) -> None:
    episodes = source.episodes("test", range(200))
    nearest = torch.cdist(episodes.query[0].flatten(2), episodes.support[0].flatten(2)).argmin(-1)
    accuracy = float((nearest == episodes.query[1]).float().mean())
    assert 0.35 < accuracy < 0.65, "pixels alone tell something, far from everything"


def test_no_drawing_is_in_two_splits(source: Omniglot) -> None:
    train, test = ({row.numpy().tobytes() for row in source.images[part].flatten(0, 1)} for part in ("train", "test"))
    assert not train & test


def test_without_rotations_and_with_the_random_split(omniglot_root: Path, shared_cache: Path) -> None:
    options = {"root": omniglot_root, "cache_dir": shared_cache, "split": "random", "rotations": False}
    first, second = Omniglot(**options), Omniglot(**options, split_seed=1)  # type: ignore[arg-type]
    assert first.protocol()["classes"] == {"train": 1100, "val": 100, "test": 423}
    assert first.protocol()["split_seed"] == 0
    assert not torch.equal(first.images["test"], second.images["test"])


def test_the_second_start_decodes_nothing(
    omniglot_root: Path, shared_cache: Path, source: Omniglot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metalearn.tasks.omniglot.images._ink", None)
    again = Omniglot(root=omniglot_root, cache_dir=shared_cache)
    assert torch.equal(again.images["val"], source.images["val"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "vynials"}, r"Unknown Omniglot split 'vynials'. Did you mean 'vinyals'\?"),
        ({"ways": 700}, "ways=700 is more than the 688 classes of split 'val' of omniglot"),
        (
            {"shots": 10, "query_shots": 11},
            "need 21 examples a class, and class 'Alphabet_of_the_Magi/character01' of omniglot has 20",
        ),
        ({"image_size": 106}, "at most 105"),
        ({"image_size": 0}, "`image_size` must be a whole number"),
    ],
)
def test_impossible_options_are_refused(
    omniglot_root: Path, shared_cache: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Omniglot(root=omniglot_root, cache_dir=shared_cache, **options)  # type: ignore[arg-type]


def test_the_data_sets_own_files_become_the_inputs_that_were_trained_on(source: Omniglot, omniglot_root: Path) -> None:
    """What `metalearn.adapt` makes of a file is what the source made of it."""
    path = omniglot_root / "images_background"
    tree = list_images(path if path.is_dir() else path.with_suffix(".zip"))
    stored = torch.cat([images.flatten(0, 1) for images in source.images.values()])
    with tree.opened() as read:
        for name in list(tree.classes)[::200]:
            pixels = torch.from_numpy(source.image_format.decode(read(tree.classes[name][3].member), name))
            assert (stored == pixels).flatten(1).all(1).any(), name
