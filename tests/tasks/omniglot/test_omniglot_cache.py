"""Where Omniglot is found, what its cache survives, and what is said about damaged or missing data."""

import logging
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from metalearn.errors import UsageError
from metalearn.tasks.omniglot import cache as omniglot_cache
from metalearn.tasks.omniglot.cache import cache_folder, load_omniglot
from metalearn.tasks.omniglot.images import RawOmniglot, find_raw
from metalearn.tasks.omniglot.splits import character_names

SHAPE = (1623, 20, 28, 28)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds the data of the person who runs it."""
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "own-cache"))


@pytest.fixture(scope="module")
def compact(omniglot_root: Path, shared_cache: Path) -> Path:
    """The compact file of the real data."""
    load_omniglot(omniglot_root, image_size=28, download=False, cache_dir=shared_cache)
    (file,) = (shared_cache / "omniglot").glob("omniglot-28x28-*.npz")
    return file


def load(root: Path | None = None, *, download: bool = False, cache_dir: Path | None = None) -> np.ndarray:
    return load_omniglot(root, image_size=28, download=download, cache_dir=cache_dir)


def test_the_compact_file_alone_suffices_in_every_place(
    compact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compact.stat().st_size < 8e6
    for place in ("root", "data/omniglot", "cache/omniglot"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(compact, tmp_path / place)
    assert load(tmp_path / "root").shape == SHAPE
    assert load(cache_dir=tmp_path / "cache").shape == SHAPE
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    assert load().shape == SHAPE
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    assert load().shape == SHAPE


def test_a_root_is_the_only_place_that_is_looked_at(
    compact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(compact.parent.parent))
    monkeypatch.setattr(omniglot_cache, "_download", lambda folder: pytest.fail("a root must not lead to a download"))
    with pytest.raises(UsageError, match=r"Tried: .*nothing \(no such folder\)\. Expected .*\n.*task=glyphs"):
        load(tmp_path / "nothing", download=True)
    with pytest.raises(UsageError, match="not both zips or folders"):
        load(tmp_path, download=True)


def test_without_data_everything_that_was_tried_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    with pytest.raises(UsageError) as refused:
        load()
    places = (str(tmp_path / "data" / "omniglot"), str(tmp_path / "own-cache" / "omniglot"), "download=false")
    assert all(place in str(refused.value) for place in (*places, "task=glyphs", "images_background.zip"))
    assert str(refused.value).count("\n") == 1


def test_a_failed_download_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable:
        @staticmethod
        def Omniglot(*args: object, **options: object) -> None:  # noqa: N802
            raise OSError("no route\nto host")

    monkeypatch.setattr(omniglot_cache, "_torchvision_datasets", lambda: Unreachable)
    with pytest.raises(UsageError, match=r"download through torchvision \(OSError: no route to host\)"):
        load(download=True)


def test_a_download_is_read_from_torchvisions_layout(
    omniglot_root: Path, compact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Datasets:
        @staticmethod
        def Omniglot(root: str, *, background: bool, download: bool) -> None:  # noqa: N802
            name = "images_background.zip" if background else "images_evaluation.zip"
            (Path(root) / "omniglot-py").mkdir(exist_ok=True)
            shutil.copy(omniglot_root / name, Path(root) / "omniglot-py" / name)

    monkeypatch.setattr(omniglot_cache, "_torchvision_datasets", lambda: Datasets)
    cache = tmp_path / "cache" / "omniglot"
    cache.mkdir(parents=True)
    shutil.copy(compact, tmp_path / "aside.npz")
    monkeypatch.setattr(RawOmniglot, "decode", lambda raw, size: np.zeros((1623, 20, size, size), dtype=np.uint8))
    assert load(download=True, cache_dir=tmp_path / "cache").shape == SHAPE
    assert [file.name for file in cache.glob("*.npz")] == [compact.name], "the same content has the same name"


def test_torchvision_data_sets_can_be_imported_in_a_new_process() -> None:
    code = "from metalearn.tasks.omniglot.cache import _torchvision_datasets as d; print(d().Omniglot.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "Omniglot", done.stderr


def test_torchvision_is_not_imported_unless_something_is_downloaded() -> None:
    code = "import sys, metalearn.tasks; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


def test_a_corrupt_cache_file_is_rebuilt_and_reported(
    omniglot_root: Path,
    compact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damaged = tmp_path / "omniglot" / compact.name
    damaged.parent.mkdir()
    content = bytearray(compact.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    images = load(compact.parent)
    monkeypatch.setattr(RawOmniglot, "decode", lambda raw, size: images)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(load(omniglot_root, cache_dir=tmp_path), images)
    assert "is damaged" in caplog.text
    assert "decoding Omniglot again" in caplog.text
    assert np.array_equal(load(damaged.parent), images), "the file is whole again"


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_corrupt_compact_file_without_zips_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "omniglot-28x28-0123456789abcdef.npz"
    if content is None:
        np.savez_compressed(file, images=np.zeros((3, 20, 28, 28), dtype=np.uint8))
    else:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=r"0123456789abcdef.npz is damaged .* Delete it"):
        load(tmp_path)


def test_a_pickle_in_a_cache_file_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    np.savez(tmp_path / "omniglot-28x28-0.npz", images=np.array([Bomb()], dtype=object))
    with pytest.raises(UsageError, match="is damaged"):
        load(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_cache_that_can_not_be_written_is_reported_and_does_no_harm(
    omniglot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "omniglot").write_text("a file where the folder should be")
    monkeypatch.setattr(RawOmniglot, "decode", lambda raw, size: np.zeros((1623, 20, size, size), dtype=np.uint8))
    with caplog.at_level(logging.WARNING):
        assert load(omniglot_root, cache_dir=tmp_path).shape == SHAPE
    assert "can not be kept" in caplog.text


def test_many_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (1623, 20, 2, 2), dtype=np.uint8)
    file = tmp_path / "new" / "omniglot-2x2-0.npz"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: omniglot_cache._write(file, images), range(16)))
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert np.array_equal(omniglot_cache._read(file, 2), images)


def test_the_caches_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder(tmp_path) == tmp_path / "omniglot"
    assert cache_folder() == tmp_path / "own-cache" / "omniglot"
    monkeypatch.delenv("METALEARN_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "metalearn" / "omniglot"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "metalearn" / "omniglot"


def test_a_truncated_zip_is_named(omniglot_root: Path, tmp_path: Path) -> None:
    shutil.copy(omniglot_root / "images_evaluation.zip", tmp_path)
    whole = (omniglot_root / "images_background.zip").read_bytes()
    (tmp_path / "images_background.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"images_background.zip is not an intact zip .*copy or download it again"):
        load(tmp_path)


def test_a_zip_with_a_flipped_byte_is_named(omniglot_root: Path, tmp_path: Path) -> None:
    shutil.copy(omniglot_root / "images_evaluation.zip", tmp_path)
    content = bytearray((omniglot_root / "images_background.zip").read_bytes())
    content[120] ^= 0xFF  # in the first image
    (tmp_path / "images_background.zip").write_bytes(content)
    with pytest.raises(UsageError, match=r"images_background.zip is not an intact zip"):
        load(tmp_path)


def test_a_missing_image_in_a_zip_is_named(omniglot_root: Path, tmp_path: Path) -> None:
    shutil.copy(omniglot_root / "images_background.zip", tmp_path)
    lost = "Tengwar/character03/"
    with (
        zipfile.ZipFile(omniglot_root / "images_evaluation.zip") as whole,
        zipfile.ZipFile(tmp_path / "images_evaluation.zip", "w") as partial,
    ):
        for name in whole.namelist():
            if not (lost in name and name.endswith("_17.png")):
                partial.writestr(name, whole.read(name))
    with pytest.raises(UsageError, match=r"lacks Tengwar/character03/\d{4}_17.png: .* has 19 of 20 drawings"):
        load(tmp_path)


@pytest.fixture
def tree(omniglot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two alphabets as folders, in a world that has no others."""
    alphabets = ("Early_Aramaic", "ULOG")
    for name in ("images_background.zip", "images_evaluation.zip"):
        with zipfile.ZipFile(omniglot_root / name) as archive:
            members = [member for member in archive.namelist() if member.split("/")[1] in alphabets]
            archive.extractall(tmp_path / "tree", members)
    names = tuple(name for name in character_names() if name.split("/")[0] in alphabets)
    for module in ("images", "cache"):
        monkeypatch.setattr(f"metalearn.tasks.omniglot.{module}.character_names", lambda: names)
    return tmp_path / "tree"


@pytest.mark.parametrize("layout", [".", "omniglot-py"])
def test_folders_give_the_same_images_as_zips(tree: Path, compact: Path, tmp_path: Path, layout: str) -> None:
    root = tree
    if layout != ".":
        root = tmp_path / "torchvision"
        shutil.copytree(tree, root / layout)
    everything = np.load(compact)["images"]
    images = load(root)
    rows = [row for row, name in enumerate(character_names()) if name.split("/")[0] in ("Early_Aramaic", "ULOG")]
    assert np.array_equal(images, everything[rows])
    raw = find_raw(root)
    assert raw is not None
    before = raw.fingerprint()
    next(raw.background.glob("*/*/*_01.png")).write_bytes(b"changed")
    assert raw.fingerprint() != before


def test_a_missing_or_broken_file_of_a_folder_is_named(tree: Path) -> None:
    broken = next(tree.glob("images_background/Early_Aramaic/character05/*_08.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UsageError, match=rf"character05/{broken.name} is not a readable image"):
        load(tree)
    broken.unlink()
    with pytest.raises(UsageError, match=rf"lacks Early_Aramaic/character05/{broken.name}: .*has 19 of 20"):
        load(tree)
    shutil.rmtree(broken.parent)
    with pytest.raises(UsageError, match=r"lacks Early_Aramaic/character05/\?{4}_01.png: .*has 0 of 20"):
        load(tree)


def test_an_unexpected_character_is_named(tree: Path) -> None:
    shutil.copytree(tree / "images_evaluation/ULOG/character01", tree / "images_evaluation/Mine/character01")
    with pytest.raises(UsageError, match=r"holds Mine/character01, which is not one of its 26 Omniglot characters"):
        load(tree)
