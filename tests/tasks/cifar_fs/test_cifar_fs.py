"""CIFAR-FS as a source: the published split, on the real images."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn import tasks
from metalearn.tasks import CifarFS
from metalearn.tasks.cifar_fs.loading import SPLITS, class_names
from metalearn.tasks.images import store


@pytest.fixture(scope="module")
def source(cifar_root: Path, shared_cache: Path) -> CifarFS:
    return CifarFS(root=cifar_root, cache_dir=shared_cache)


@pytest.mark.parametrize("split", SPLITS)
def test_the_split_is_the_published_one(cifar_root: Path, split: str) -> None:
    published = json.loads((cifar_root.parent / "splits" / "cifar-fs" / f"{split}.json").read_text())
    assert sorted(name for _, name in published) == list(class_names("cifar_fs", split))
    carried = json.loads(Path(tasks.__file__).with_name("data").joinpath("cifar_fs_splits.json").read_text())
    assert {(above, name) for above, names in carried[split].items() for name in names} == {
        (above, name) for above, name in published
    }


def test_the_splits_are_apart() -> None:
    assert [len(class_names("cifar_fs", split)) for split in SPLITS] == [64, 16, 20]
    assert len({name for split in SPLITS for name in class_names("cifar_fs", split)}) == 100


@pytest.mark.slow
def test_counts(source: CifarFS) -> None:
    assert {split: tuple(images.shape) for split, images in source.images.items()} == {
        "train": (64, 600, 3, 32, 32),
        "val": (16, 600, 3, 32, 32),
        "test": (20, 600, 3, 32, 32),
    }
    assert {images.dtype for images in source.images.values()} == {torch.uint8}
    assert len({name for names in source.class_names.values() for name in names}) == 100


@pytest.mark.slow
def test_protocol(source: CifarFS) -> None:
    card = source.protocol()
    assert card["dataset"] == "cifar_fs"
    assert "1805.08136" in card["split_scheme"]
    assert card["classes"] == {"train": 64, "val": 16, "test": 20}
    assert card["images"] == {"train": 38400, "val": 9600, "test": 12000}
    assert (card["ways"], card["shots"], card["query_shots"]) == (5, 1, 15)
    assert card["image_format"] == {"size": [32, 32], "color": "rgb", "inverted": False, "fit": "crop"}


@pytest.mark.slow
def test_every_image_is_the_file_of_its_place(source: CifarFS, cifar_root: Path) -> None:
    """Of some classes of every split; the others are read in the same loop."""
    with zipfile.ZipFile(cifar_root / "cifar100_png.zip") as archive:
        members = sorted(archive.namelist())
        for split in source.splits:
            for number in (0, 7, -1):
                name = source.class_names[split][number]
                files = [member for member in members if member.startswith(f"{name}/")]
                expected = [np.asarray(Image.open(io.BytesIO(archive.read(file)))) for file in files]
                stored = source.images[split][number].permute(0, 2, 3, 1).numpy()
                assert np.array_equal(stored, np.stack(expected)), name


@pytest.mark.slow
def test_the_second_start_decodes_nothing_and_maps_the_file(
    source: CifarFS, cifar_root: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "decoded", lambda *_, **__: pytest.fail("it was decoded before"))
    again = CifarFS(root=cifar_root, cache_dir=shared_cache)
    for split in SPLITS:
        assert torch.equal(again.episodes(split, [3]).query[0], source.episodes(split, [3]).query[0])
    assert len({id(again.classes[split].examples) for split in SPLITS}) == 1, "one tensor, mapped from one file"
    (folder,) = shared_cache.glob("cifar_fs-32x32x3-*/")
    assert (folder / "images.npy").stat().st_size == 60_000 * 3 * 32 * 32 + 128


@pytest.mark.slow
def test_a_second_process_reads_what_it_samples_and_no_more(
    source: CifarFS, cifar_root: Path, shared_cache: Path
) -> None:
    """The images have 184 MB; the process may grow by a tenth of them beyond what the listing needs."""
    code = (
        "import sys, resource; from metalearn.tasks import CifarFS; import zipfile\n"
        "kilobytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"listing = zipfile.ZipFile(r'{cifar_root / 'cifar100_png.zip'}').infolist()\n"
        "names = [(each.filename, str(each.CRC)) for each in listing] * 2\n"
        "before = kilobytes()\n"
        f"source = CifarFS(root=r'{cifar_root}', cache_dir=r'{shared_cache}')\n"
        "source.episodes('train', [0]); print(kilobytes() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 184_320 // 2


@pytest.mark.slow
def test_episodes_are_pure_and_balanced(source: CifarFS) -> None:
    whole, part = source.episodes("val", range(8), seed=4), source.episodes("val", [6, 2], seed=4)
    assert torch.equal(whole.support[0][[6, 2]], part.support[0])
    assert whole.query[0].shape == (8, 75, 3, 32, 32)
    assert torch.equal(whole.query[1], torch.arange(5).repeat_interleave(15).expand(8, -1))
    assert 0 <= float(whole.query[0].min()) < float(whole.query[0].max()) <= 1


@pytest.mark.slow
def test_images_of_one_class_are_nearer_than_those_of_others(source: CifarFS) -> None:
    episodes = source.episodes("test", range(200))
    nearest = torch.cdist(episodes.query[0].flatten(2), episodes.support[0].flatten(2)).argmin(-1)
    accuracy = float((nearest == episodes.query[1]).float().mean())
    assert 0.22 < accuracy < 0.40, "pixels alone tell a little more than nothing"
