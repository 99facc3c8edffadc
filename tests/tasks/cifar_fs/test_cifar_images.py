"""Where CIFAR-100 is found, in which forms, and what is said about one that is damaged or missing."""

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.tasks import FC100, CifarFS
from metalearn.tasks.cifar_fs import images as cifar_images
from metalearn.tasks.cifar_fs import loading
from metalearn.tasks.cifar_fs.loading import SPLITS, class_names
from metalearn.tasks.images import store
from metalearn.torchvision_import import torchvision_module
from tests.tasks.pictures import noise, pixels_of, write_folder, write_zip

# Six images of each class stand for the six hundred.
NAMES = tuple(sorted(name for split in SPLITS for name in class_names("cifar_fs", split)))
FEW = 6  # images of a class, of which torchvision counts one as a test image


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds the data of the person who runs it."""
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "own-cache"))


@pytest.fixture(scope="module")
def few() -> dict[str, bytes]:
    """`<class>/{train,test}_<name>.png` -> content."""
    parts = [(name, "test" if number == 0 else "train", number) for name in NAMES for number in range(FEW)]
    return {
        f"{name}/{part}_{name}_s_{number:06d}.png": noise(seed, width=32, height=32)
        for seed, (name, part, number) in enumerate(parts)
    }


@pytest.fixture
def few_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_images, "NUM_IMAGES", FEW)


def torchvision_files(root: Path, few: dict[str, bytes]) -> Path:
    """The files of torchvision's download, in an order of their own."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        members = [member for member in few if f"/{part}_" in member]
        np.random.default_rng(0).shuffle(members)
        content = {
            "data": np.stack([pixels_of(few[member]) for member in members]).reshape(len(members), -1),
            "fine_labels": [NAMES.index(member.partition("/")[0]) for member in members],
            "filenames": [member.partition(f"/{part}_")[2] for member in members],
        }
        (folder / part).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(NAMES)}))
    return root


@pytest.fixture
def without_checksums(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torchvision's class, which takes our few images for the real ones."""
    real = torchvision_module("datasets").CIFAR100
    monkeypatch.setattr(real, "train_list", [["train", None]])
    monkeypatch.setattr(real, "test_list", [["test", None]])
    monkeypatch.setattr(real, "meta", {**real.meta, "md5": None})
    return real


def stored(source: CifarFS) -> torch.Tensor:
    return torch.cat([source.images[split].flatten(0, 1) for split in SPLITS])


def load(**options: Any) -> CifarFS:
    return CifarFS(query_shots=2, download=False, **options)


@pytest.mark.parametrize("place", ["my.zip", "here/cifar100_png.zip", "here/cifar100_png", "here"])
def test_every_form_and_place_gives_the_same_images(
    few: dict[str, bytes], few_are_all: None, tmp_path: Path, place: str
) -> None:
    write = write_zip if place.endswith(".zip") else write_folder
    write(tmp_path / place, few)
    root = tmp_path / "my.zip" if place == "my.zip" else tmp_path / "here"
    expected = [
        pixels_of(few[member])
        for split in SPLITS
        for name in class_names("cifar_fs", split)
        for member in _members(few, name)
    ]
    assert np.array_equal(stored(load(root=root)).numpy(), np.stack(expected))


def test_fc100_reads_the_same_pictures_out_of_the_same_store(
    few: dict[str, bytes], few_are_all: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_zip(tmp_path / "a.zip", few)
    other = load(root=root)
    monkeypatch.setattr(store, "decoded", lambda *_, **__: pytest.fail("it was decoded before"))
    source = FC100(root=root, query_shots=2, download=False)
    for split in SPLITS:
        assert source.class_names[split] == class_names("fc100", split)
        expected = [pixels_of(few[member]) for name in class_names("fc100", split) for member in _members(few, name)]
        assert np.array_equal(source.images[split].flatten(0, 1).numpy(), np.stack(expected))
    assert source.protocol()["images"] == {"train": 60 * FEW, "val": 20 * FEW, "test": 20 * FEW}
    assert source.episodes("val", [0]).query[0].shape == other.episodes("val", [0]).query[0].shape


def _members(files: dict[str, bytes], name: str) -> list[str]:
    return sorted(each for each in files if each.startswith(f"{name}/"))


def test_the_splits_share_one_tensor_which_is_moved_once(
    few: dict[str, bytes], few_are_all: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load(root=write_zip(tmp_path / "a.zip", few))
    shared, to, moved = source.classes["train"].examples, torch.Tensor.to, []
    assert all(source.classes[split].examples is shared for split in SPLITS)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args: moved.append(self) or to(self, *args))
    there = source.to("meta")
    assert sum(tensor is shared for tensor in moved) == 1
    examples = there.classes["train"].examples
    assert (examples.device.type, examples.shape) == ("meta", shared.shape)
    assert all(there.classes[split].examples is examples for split in SPLITS)


def test_torchvisions_files_give_the_same_images_in_the_same_order(
    few: dict[str, bytes], few_are_all: None, without_checksums: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stored(load(root=write_zip(tmp_path / "a.zip", few)))
    root = torchvision_files(tmp_path / "torchvision", few)
    assert torch.equal(stored(load(root=root)), expected)
    monkeypatch.setattr(cifar_images, "torchvision_module", lambda _: pytest.fail("the second start needs no arrays"))
    assert torch.equal(stored(load(root=root)), expected)


def test_damaged_torchvision_files_are_named(few: dict[str, bytes], tmp_path: Path) -> None:
    root = torchvision_files(tmp_path / "torchvision", few)  # whose checksums are not the real ones
    with pytest.raises(UsageError, match=r"cifar-100-python is not what torchvision downloads \(.*Delete the folder"):
        load(root=root)


def test_a_download_is_made_once(
    few: dict[str, bytes], without_checksums: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []

    class Downloading(without_checksums):  # type: ignore[misc]
        def download(self) -> None:
            downloads.append(self.root)
            torchvision_files(Path(self.root), few)

    monkeypatch.setattr(cifar_images, "torchvision_module", lambda _: SimpleNamespace(CIFAR100=Downloading))
    first = CifarFS(query_shots=2)
    assert downloads == [str(tmp_path / "own-cache" / "cifar100")]
    second = CifarFS(query_shots=2)
    assert len(downloads) == 1
    assert torch.equal(stored(first), stored(second))
    shutil.rmtree(downloads[0])
    assert torch.equal(stored(load()), stored(first)), "the decoded images alone suffice"


def test_the_places_are_searched_in_order(
    few: dict[str, bytes], few_are_all: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {member: noise(99, width=32, height=32) for member in few}
    write_folder(tmp_path / "data" / "cifar100", few)
    write_folder(tmp_path / "own-cache" / "cifar100", other)
    cached = stored(load())
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    assert not torch.equal(stored(load()), cached)
    assert torch.equal(stored(load(root=tmp_path / "own-cache" / "cifar100")), cached)


def test_without_data_everything_that_was_tried_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "cifar100").mkdir(parents=True)
    with pytest.raises(UsageError) as refused:
        load()
    places = (
        f"{tmp_path / 'data' / 'cifar100'} (no CIFAR-100 in it)",
        f"{tmp_path / 'own-cache' / 'cifar100'} (no such",
    )
    assert all(place in str(refused.value) for place in (*places, "download=false", "task=glyphs", "cifar100_png.zip"))
    assert str(refused.value).count("\n") == 1


def test_a_root_is_the_only_place_that_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "download_cifar100", lambda _: pytest.fail("a root must not lead to a download"))
    with pytest.raises(UsageError, match=r"Tried: .*nothing \(no such folder\)\. Expected .*\n.*correct `root`"):
        CifarFS(root=tmp_path / "nothing")


def test_a_failed_download_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(root: str, **options: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(cifar_images, "torchvision_module", lambda _: SimpleNamespace(CIFAR100=unreachable))
    with pytest.raises(UsageError, match=r"download through torchvision \(OSError: no route to host\)"):
        CifarFS()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda files: [files.pop(each) for each in list(files) if each.startswith("tank/")],
            r"lacks 1 of CIFAR-100's",
        ),
        (lambda files: files.update({"unicorn/0.png": b""}), r"holds 'unicorn', which is no class of CIFAR-100"),
        (lambda files: files.pop("tank/test_tank_s_000000.png"), r"has 5 images of 'tank', expected 6"),
        (
            lambda files: files.update({"tank/test_tank_s_000000.png": b"x"}),
            r"tank_s_000000.png is not a readable",
        ),
        (
            lambda files: files.update({"tank/test_tank_s_000000.png": noise(0, width=33, height=32)}),
            r"tank_s_000000.png has 33 x 32 pixels .* expected 32 x 32",
        ),
    ],
)
def test_what_is_not_the_whole_cifar100_is_refused(
    few: dict[str, bytes], few_are_all: None, tmp_path: Path, change: Any, message: str
) -> None:
    files = dict(few)
    change(files)
    with pytest.raises(UsageError, match=message):
        load(root=write_zip(tmp_path / "cifar100_png.zip", files))


@pytest.mark.parametrize("place", ["cifar100_png", "."])
def test_a_folder_without_its_first_class_is_not_passed_over(few: dict[str, bytes], tmp_path: Path, place: str) -> None:
    first = class_names("cifar_fs", "train")[0]
    write_folder(tmp_path / place, {name: content for name, content in few.items() if not name.startswith(f"{first}/")})
    with pytest.raises(UsageError, match=rf"lacks 1 of CIFAR-100's 100 classes, '{first}' first"):
        load(root=tmp_path)


def test_a_corrupt_zip_is_named(few: dict[str, bytes], tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "cifar100_png.zip", few).read_bytes()
    (tmp_path / "cifar100_png.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"cifar100_png.zip is not an intact zip"):
        load(root=tmp_path)
