"""The store of decoded pictures: equal to them, built once, by one process, whatever happens."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch

from metalearn.errors import UsageError
from metalearn.tasks.images import store as store_module
from metalearn.tasks.images.decoding import TreePictures
from metalearn.tasks.images.files import list_images
from metalearn.tasks.images.format import BadImageError, ImageFormat, Pixels
from metalearn.tasks.images.store import ImageStore, find_size, find_store, load_store
from tests.tasks.pictures import TRUNCATED, pixels_of, tree_files, write_folder, write_zip

COUNTS = {"b": 3, "a": 70, "c": 1}
FORMAT = ImageFormat((8, 8))


@dataclass(frozen=True)
class Generated:
    """Pictures out of nothing: as many as wanted, each slow to decode if wanted, with a count of those decoded."""

    count: int = 100
    seconds: float = 0.0
    bad: tuple[str, ...] = ()
    decoded: tuple[threading.Semaphore, ...] = ()

    shape = (1, 2, 3)
    class_names = ("one", "two")

    @property
    def members(self) -> dict[str, list[str]]:
        return {name: [f"{name}/{number}" for number in range(self.count)] for name in self.class_names}

    def fingerprint(self) -> str:
        return f"{self.count}"

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], Pixels]]:
        yield self._decode

    def _decode(self, member: str) -> Pixels:
        for each in self.decoded:
            each.release()
        time.sleep(self.seconds)
        if member in self.bad:
            raise BadImageError(f"{member} is bad")
        return np.full(self.shape, self._value(member), dtype=np.uint8)

    def _value(self, member: str) -> int:
        name, _, number = member.partition("/")
        return (int(number) + 7 * (name == "two")) % 256

    def expected(self) -> torch.Tensor:
        kept = [member for members in self.members.values() for member in members if member not in self.bad]
        values = torch.tensor([self._value(member) for member in kept], dtype=torch.uint8)
        return values[:, None, None, None].expand(-1, *self.shape)


def decodes(pictures: Generated, cache: Path) -> tuple[ImageStore, int]:
    """The store, and how many pictures were decoded for it."""
    counter = threading.Semaphore(0)
    store = load_store("made", replace(pictures, decoded=(counter,)), cache_dir=cache)
    number = 0
    while counter.acquire(blocking=False):
        number += 1
    return store, number


def folder_of(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_the_store_holds_the_pictures_in_the_order_asked_for(tmp_path: Path, form: str) -> None:
    files = tree_files(COUNTS)
    tree = list_images((write_folder if form == "folder" else write_zip)(tmp_path / "tree", files))
    pictures = TreePictures(tree, FORMAT, tuple(COUNTS))
    store = load_store("noise", pictures, cache_dir=tmp_path / "cache")
    assert store.counts == COUNTS
    assert list(store.counts) == list(COUNTS)
    expected = np.stack([pixels_of(content) for content in files.values()])  # more pictures than threads take at once
    assert np.array_equal(store.images.numpy(), expected)
    classes = store.classes(("a", "c"))
    assert (classes.names, classes.counts.tolist()) == (("a", "c"), [70, 1])
    rows = [slice(int(start), int(start + count)) for start, count in zip(classes.starts, classes.counts, strict=True)]
    assert np.array_equal(classes.examples[rows[0]].numpy(), expected[3:73])
    assert np.array_equal(classes.examples[rows[1]].numpy(), expected[73:])
    assert classes.examples.untyped_storage().data_ptr() == store.images.untyped_storage().data_ptr(), "not copied"


def test_the_second_start_decodes_nothing(tmp_path: Path) -> None:
    first, number = decodes(Generated(), tmp_path)
    assert number == 200
    again, number = decodes(Generated(), tmp_path)
    assert number == 0
    assert torch.equal(first.images, Generated().expected())
    assert torch.equal(again.images, first.images)
    assert sorted(path.name for path in folder_of(tmp_path).iterdir()) == ["classes.json", "images.npy"]
    assert folder_of(tmp_path).name.startswith("made-2x3x1-")


def test_other_content_is_another_store(tmp_path: Path) -> None:
    decodes(Generated(count=3), tmp_path)
    assert decodes(Generated(count=4), tmp_path)[1] == 8
    load_store("made", Generated(count=4), on_bad_image="skip", cache_dir=tmp_path)
    load_store("other", Generated(count=4), cache_dir=tmp_path)
    assert sum(path.is_dir() for path in tmp_path.iterdir()) == 4


def test_what_is_written_to_a_mapped_store_stays_private(tmp_path: Path) -> None:
    decodes(Generated(), tmp_path)
    store, _ = decodes(Generated(), tmp_path)
    before = (folder_of(tmp_path) / "images.npy").read_bytes()
    store.images.zero_()
    assert (folder_of(tmp_path) / "images.npy").read_bytes() == before
    assert torch.equal(decodes(Generated(), tmp_path)[0].images, Generated().expected())


@pytest.mark.parametrize("cached", [True, False])
def test_skipped_pictures_are_left_out_and_named(tmp_path: Path, cached: bool) -> None:
    pictures = Generated(bad=("one/0", "one/64", "two/99"))
    if not cached:
        (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        store = load_store("made", pictures, on_bad_image="skip", cache_dir=tmp_path / "cache")
        assert store.skipped == pictures.bad
        assert store.counts == {"one": 98, "two": 99}
        assert torch.equal(store.images, pictures.expected())


def test_a_bad_picture_ends_the_building_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="two/3 is bad"):
        load_store("made", Generated(bad=("two/3", "two/90")), cache_dir=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_misspelt_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"on_bad_image='skipp'. Did you mean 'skip'"):
        load_store("made", Generated(), on_bad_image="skipp", cache_dir=tmp_path)


def truncate_images(folder: Path) -> None:
    os.truncate(folder / "images.npy", 200)


def empty_images(folder: Path) -> None:
    (folder / "images.npy").write_bytes(b"")


def other_images(folder: Path) -> None:
    np.save(folder / "images.npy", np.zeros((200, 1, 2, 2), dtype=np.uint8))


def float_images(folder: Path) -> None:
    np.save(folder / "images.npy", np.zeros((200, 1, 2, 3), dtype=np.float32))


def no_images(folder: Path) -> None:
    (folder / "images.npy").unlink()


def no_classes(folder: Path) -> None:
    (folder / "classes.json").unlink()


def broken_classes(folder: Path) -> None:
    (folder / "classes.json").write_text('{"classes": {"one"')


def list_of_classes(folder: Path) -> None:
    (folder / "classes.json").write_text('{"classes": ["one", "two"], "skipped": []}')


def other_classes(folder: Path) -> None:
    (folder / "classes.json").write_text(json.dumps({"classes": {"one": 100, "three": 100}, "skipped": []}))


def a_pickle(folder: Path) -> None:
    np.save(folder / "images.npy", np.array([{}]), allow_pickle=True)


@pytest.mark.parametrize(
    "damage",
    [
        truncate_images,
        empty_images,
        other_images,
        float_images,
        no_images,
        no_classes,
        broken_classes,
        list_of_classes,
        other_classes,
        a_pickle,
    ],
)
def test_a_damaged_store_is_reported_and_built_again(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    decodes(Generated(), tmp_path)
    damage(folder_of(tmp_path))
    with caplog.at_level(logging.WARNING):
        store, number = decodes(Generated(), tmp_path)
    assert number == 200
    assert torch.equal(store.images, Generated().expected())
    assert [record.getMessage().count("is damaged") for record in caplog.records] == [1]
    assert decodes(Generated(), tmp_path)[1] == 0, "it is whole again"


def test_a_cache_that_can_not_be_written_is_reported_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        store, number = decodes(Generated(), tmp_path / "cache")
    assert number == 200
    assert torch.equal(store.images, Generated().expected())
    assert [record.getMessage().count("every start decodes again") for record in caplog.records] == [1]


def test_a_full_disk_is_reported_and_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(stream: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "_to_disk", full)
    with caplog.at_level(logging.WARNING):
        store, _ = decodes(Generated(), tmp_path)
    assert torch.equal(store.images, Generated().expected())
    assert "No space left" in caplog.text
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


class NoLocks(filelock.FileLock):
    """What a file system without locks does."""

    def acquire(self, *args: object, **options: object) -> None:  # type: ignore[override]
        raise NotImplementedError("FileSystem does not appear to support flock")


def test_without_locks_many_builders_leave_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filelock, "FileLock", NoLocks)
    pictures = Generated(count=20, seconds=0.001)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: load_store("made", pictures, cache_dir=tmp_path), range(8)))
    assert all(torch.equal(store.images, pictures.expected()) for store in stores)
    assert [path.name for path in tmp_path.iterdir()] == [folder_of(tmp_path).name]


def test_threads_that_build_at_once_decode_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    counter = threading.Semaphore(0)
    pictures = Generated(count=20, seconds=0.002, decoded=(counter,))
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: load_store("made", pictures, cache_dir=tmp_path), range(4)))
    assert all(torch.equal(store.images, pictures.expected()) for store in stores)
    assert sum(counter.acquire(blocking=False) for _ in range(1000)) == 40
    assert "Another process is decoding into" in capfd.readouterr().err


def build(cache: Path, seconds: float, started: "multiprocessing.synchronize.Semaphore") -> None:
    """What a process does: builds, and leaves its store's bytes in a file of its own."""
    pictures = Generated(seconds=seconds, decoded=(started,))  # type: ignore[arg-type]
    store = load_store("made", pictures, cache_dir=cache)
    (cache.parent / f"{os.getpid()}.bytes").write_bytes(store.images.numpy().tobytes())


def start(cache: Path, seconds: float) -> tuple[multiprocessing.Process, "multiprocessing.synchronize.Semaphore"]:
    context = multiprocessing.get_context("spawn")
    started = context.Semaphore(0)
    process = context.Process(target=build, args=(cache, seconds, started))
    process.start()
    return process, started  # type: ignore[return-value]


def test_processes_that_build_at_once_leave_one_equal_store(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    running = [start(cache, 0.01) for _ in range(2)]
    for process, _ in running:
        process.join(120)
        assert process.exitcode == 0
    decoded = [sum(started.acquire(block=False) for _ in range(500)) for _, started in running]
    assert sorted(decoded) == [0, 200], "one built and the other waited"
    contents = {file.read_bytes() for file in tmp_path.glob("*.bytes")}
    assert contents == {Generated().expected().contiguous().numpy().tobytes()}
    assert not list(cache.glob(".building-*"))


def test_a_process_that_is_killed_half_way_leaves_the_next_one_free(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process, started = start(cache, 0.05)
    for _ in range(100):  # half of its pictures
        assert started.acquire(timeout=60)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list(cache.glob(".building-*")), "it was killed while it built"
    assert find_store("made", Generated.class_names, Generated.shape, cache_dir=cache) is None
    store, number = decodes(Generated(), cache)
    assert number == 200
    assert torch.equal(store.images, Generated().expected())
    assert not list(cache.glob(".building-*")), "what it left is cleared away"


def test_a_store_is_found_by_its_name_and_classes(tmp_path: Path) -> None:
    decodes(Generated(), tmp_path)
    found = find_store("made", ("one", "two"), (1, 2, 3), cache_dir=tmp_path)
    assert found is not None
    assert torch.equal(found.images, Generated().expected())
    for name, names, shape in (("made", ("two", "one"), (1, 2, 3)), ("other", ("one", "two"), (1, 2, 3))):
        assert find_store(name, names, shape, cache_dir=tmp_path) is None
    shutil.rmtree(tmp_path)
    assert find_store("made", ("one", "two"), (1, 2, 3), cache_dir=tmp_path) is None


def test_progress_is_told_in_a_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    decodes(Generated(), tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"Decoding made: {done} of 200 images" for done in (0, 50, 100, 150)]


def test_a_truncated_picture_is_skipped_and_the_format_makes_the_store(tmp_path: Path) -> None:
    files = tree_files({"a": 3}, width=20, height=10)
    files["a/01.png"] = files["a/01.png"][:TRUNCATED]
    tree = list_images(write_zip(tmp_path / "a.zip", files))
    for size, shape in (((8, 8), (2, 3, 8, 8)), ((4, 6), (2, 3, 4, 6))):
        pictures = TreePictures(tree, ImageFormat(size), ("a",))
        store = load_store("a", pictures, on_bad_image="skip", cache_dir=tmp_path / "cache")
        assert (store.images.shape, store.skipped) == (shape, ("a/01.png",))
    with pytest.raises(BadImageError, match=r"a.zip: a/01.png is not a readable image"):
        load_store("a", TreePictures(tree, FORMAT, ("a",)), cache_dir=tmp_path / "cache")


def test_the_size_of_pictures_of_one_size_is_known_from_their_store(tmp_path: Path) -> None:
    tree = list_images(write_zip(tmp_path / "a.zip", tree_files({"a": 3}, width=20, height=10)))
    unsized = TreePictures(tree, ImageFormat((1, 1)), ("a",), same_size=True)
    cache = tmp_path / "cache"
    assert find_size("a-1", unsized, cache_dir=cache) is None
    load_store("a-1", replace(unsized, format=ImageFormat((10, 20))), cache_dir=cache)
    assert find_size("a-1", unsized, cache_dir=cache) == (10, 20)
    assert find_size("a", unsized, cache_dir=cache) is None
    assert find_size("a-1", replace(unsized, same_size=False), cache_dir=cache) is None
    assert find_size("a-1", unsized, on_bad_image="skip", cache_dir=cache) is None
    assert find_size("a-1", replace(unsized, format=ImageFormat((1, 1), color="grey")), cache_dir=cache) is None
