"""mini-ImageNet out of every layout that people have it in, with the published split."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import train
from metalearn.errors import UsageError
from metalearn.tasks import MiniImageNet
from metalearn.tasks.class_splits import SPLITS
from metalearn.tasks.images.format import ImageFormat
from metalearn.tasks.mini_imagenet import layouts
from metalearn.tasks.mini_imagenet.layouts import class_ids
from tests.tasks.pictures import noise, write_folder, write_zip

FEW = 6  # images of a class, which stand for the six hundred
SPLIT_OF = {name: split for split in SPLITS for name in class_ids(split)}
FILES = {f"{name}{number:08d}.jpg": name for name in SPLIT_OF for number in range(FEW)}


@pytest.fixture(autouse=True)
def few_are_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layouts, "NUM_IMAGES", FEW)
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """File name -> content, of the sizes that photographs have, but for their number of pixels."""
    return {name: noise(seed, width=11, height=7) for seed, name in enumerate(FILES)}


def flat(pictures: Mapping[str, bytes], top: str = "images") -> dict[str, bytes]:
    return {f"{top}/{name}": content for name, content in pictures.items()}


def by_split(pictures: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{SPLIT_OF[FILES[name]]}/{FILES[name]}/{name}": content for name, content in pictures.items()}


def by_class(pictures: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{FILES[name]}/{name}": content for name, content in pictures.items()}


def write_lists(folder: Path, labels: Mapping[str, str] = FILES, split_of: Mapping[str, str] = SPLIT_OF) -> Path:
    for split in SPLITS:
        with (folder / f"{split}.csv").open("w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["filename", "label"])
            # Not in the order of their names: the order of the pictures is not the lists'.
            rows.writerows(reversed([(name, label) for name, label in labels.items() if split_of[label] == split]))
    return folder


def load(root: Path | None, **options: Any) -> MiniImageNet:
    return MiniImageNet(root=root, **{"query_shots": 2, "image_size": 8, **options})


@pytest.mark.parametrize("split", SPLITS)
def test_the_split_is_the_published_one(cifar_root: Path, split: str) -> None:
    with (cifar_root.parent / "splits" / "mini-imagenet_ravi" / f"{split}.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert sorted({row["label"] for row in rows}) == list(class_ids(split))
    assert len(rows) == 600 * len(class_ids(split))
    assert all(row["filename"].startswith(row["label"]) for row in rows), "what the flat layout without lists goes by"


def test_the_splits_are_apart() -> None:
    assert [len(class_ids(split)) for split in SPLITS] == [64, 16, 20]
    assert len(SPLIT_OF) == 100


def test_every_layout_gives_the_same_episodes(pictures: dict[str, bytes], tmp_path: Path) -> None:
    made = {
        "lists": write_lists(write_folder(tmp_path / "lists", {**flat(pictures), "images/unlisted.jpg": b"no image"})),
        "no lists": write_folder(tmp_path / "none", flat(pictures)),
        "below another folder": tmp_path / "deep",
        "split": write_folder(tmp_path / "split", by_split(pictures)),
        "a folder a class": write_folder(tmp_path / "classes", by_class(pictures)),
        "classes in images": write_folder(tmp_path / "in", {f"images/{k}": v for k, v in by_class(pictures).items()}),
        "zip": write_zip(tmp_path / "flat.zip", flat(pictures, "mini-imagenet/images")),
        "zip by split": write_zip(tmp_path / "split.zip", by_split(pictures)),
    }
    write_lists(write_folder(tmp_path / "deep" / "mini", flat(pictures)))
    expected = load(made["split"])
    fmt = ImageFormat((8, 8), fit="stretch")
    names = [f"{class_ids('val')[3]}{number:08d}.jpg" for number in range(FEW)]
    decoded = torch.stack([torch.from_numpy(fmt.decode(pictures[name], name)) for name in names])
    assert torch.equal(expected.images["val"][3], decoded)
    for layout, root in made.items():
        source = load(root)
        for split in SPLITS:
            assert source.class_names[split] == class_ids(split)
            for got, wanted in zip(source.episodes(split, [5]), expected.episodes(split, [5]), strict=True):
                torch.testing.assert_close(got, wanted, rtol=0, atol=0, msg=layout)


def test_the_protocol_and_84_pixels(pictures: dict[str, bytes], tmp_path: Path) -> None:
    source = load(write_folder(tmp_path / "mini", by_class(pictures)), image_size=84, rotations=True)
    assert source.episodes("train", [0]).support[0].shape == (1, 5, 3, 84, 84)
    card = source.protocol()
    assert card["classes"] == {"train": 256, "val": 64, "test": 80}
    assert (card["dataset"], card["images"]["test"]) == ("mini_imagenet", 20 * FEW)
    assert card["image_format"] == {"size": [84, 84], "color": "rgb", "inverted": False, "fit": "stretch"}
    assert MiniImageNet.__init__.__kwdefaults__["image_size"] == 84


def test_the_data_folder_is_searched_and_the_decoded_images_suffice(
    pictures: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "data" / "mini_imagenet", by_class(pictures))
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    first = load(None).episodes("test", [1]).query[0]
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "elsewhere"))
    assert torch.equal(load(None).episodes("test", [1]).query[0], first)


def test_without_data_the_command_line_says_where_they_are_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_zip(tmp_path / "images.zip", {"images/a.jpg": b""})
    assert train.main(["task=mini_imagenet", f"task.root={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err.strip()
    assert told.count("\n") == 1
    for part in (
        f"did you mean {tmp_path / 'images.zip'}",
        "train.csv",
        "not downloaded",
        "image-net.org",
        "task.root",
    ):
        assert part in told
    with pytest.raises(UsageError, match=r"Tried: nothing \(\$METALEARN_DATA is not set\)"):
        MiniImageNet()
    with pytest.raises(UsageError, match=r"nowhere \(no such folder\)"):
        MiniImageNet(root=tmp_path / "nowhere")


VAL, TRAIN = class_ids("val")[0], class_ids("train")[0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({f"train/{TRAIN}/{TRAIN}00000000.jpg": None}, f"has 5 images of '{TRAIN}', expected 6"),
        ({"train/n99999999/a.jpg": b""}, "a.jpg is of 'n99999999', which is no class of mini-ImageNet"),
        ({f"train/{VAL}/more.jpg": b""}, rf"train/{VAL} has '{VAL}' in 'train'; in Ravi .* it is in 'val'"),
        ({"loose.jpg": b""}, "'loose.jpg' first. Set task.root to the folder above"),
    ],
)
def test_what_is_not_mini_imagenet_is_refused(
    pictures: dict[str, bytes], tmp_path: Path, files: Mapping[str, bytes | None], message: str
) -> None:
    changed = {name: content for name, content in {**by_split(pictures), **files}.items() if content is not None}
    with pytest.raises(UsageError, match=message) as refused:
        load(write_folder(tmp_path / "mini", changed))
    assert "\n" not in str(refused.value)


def test_lists_of_another_split_and_damaged_ones_are_refused(pictures: dict[str, bytes], tmp_path: Path) -> None:
    root = write_lists(write_folder(tmp_path / "mini", flat(pictures)), split_of={**SPLIT_OF, VAL: "test"})
    with pytest.raises(UsageError, match=rf"test.csv has '{VAL}' in 'test'; in Ravi and Larochelle's split"):
        load(root)
    write_lists(root, labels={name: label for name, label in FILES.items() if label != VAL})
    with pytest.raises(UsageError, match=f"has 0 images of '{VAL}'"):
        load(root)
    (root / "val.csv").write_text("name,class\na,b\n")
    with pytest.raises(UsageError, match=r"val.csv can not be read \(KeyError: 'filename'\). Expected columns"):
        load(root)
