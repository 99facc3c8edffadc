"""The fast reading of a zip's directory gives what `zipfile` gives, whatever the zip."""

import io
import random
import zipfile
from pathlib import Path

import pytest

from metalearn.tasks.images import zip_directory
from metalearn.tasks.images.zip_directory import Member, read_directory

FILES = {"cat/0.png": b"zero", "cat/": b"", "dog/1.png": b"one" * 99, "Füße/größe ☃.png": b"\0\1", "empty": b""}


def zipped(files: dict[str, bytes], *, comment: bytes = b"", compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.comment = comment
    return stream.getvalue()


def reference(path: Path) -> list[Member]:
    with zipfile.ZipFile(path) as archive:
        return [(each.filename, each.file_size, each.CRC) for each in archive.infolist()]


@pytest.fixture
def only_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_directory.zipfile, "ZipFile", lambda *_: pytest.fail("zipfile was needed"))


ORDINARY = {
    "plain": zipped(FILES),
    "deflated": zipped(FILES, compression=zipfile.ZIP_DEFLATED),
    "with a comment": zipped(FILES, comment=b"made by hand" * 20),
    "with bytes before it": b"#!/bin/sh\n" + zipped(FILES),
    "empty": zipped({}),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_zips_are_read_the_fast_way(tmp_path: Path, kind: str, only_the_fast_way: None) -> None:
    (tmp_path / "a.zip").write_bytes(ORDINARY[kind])
    names = [] if kind == "empty" else list(FILES)
    assert [name for name, _, _ in read_directory(tmp_path / "a.zip")] == names


@pytest.mark.parametrize("kind", ORDINARY)
def test_members_are_those_of_zipfile(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.zip").write_bytes(ORDINARY[kind])
    assert read_directory(tmp_path / "a.zip") == reference(tmp_path / "a.zip")


def test_names_in_an_old_encoding_are_those_of_zipfile(tmp_path: Path) -> None:
    content = zipped({"aeoe.png": b"x"}).replace(b"aeoe", b"\x84\x94oe")  # DOS's letters for a and o with dots
    (tmp_path / "a.zip").write_bytes(content)
    assert read_directory(tmp_path / "a.zip") == reference(tmp_path / "a.zip") == [("äöoe.png", 1, 0x8CDC1683)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More members than the directory of an old zip can count."""
    path = tmp_path_factory.mktemp("large") / "a.zip"
    path.write_bytes(zipped({f"{number % 7}/{number}": b"" for number in range(65_600)}))
    return path


@pytest.mark.slow
def test_a_zip_of_more_than_65535_members(large: Path, only_the_fast_way: None) -> None:
    assert [name for name, _, _ in read_directory(large)] == [f"{number % 7}/{number}" for number in range(65_600)]


@pytest.mark.parametrize("kind", ["plain", "with a comment"])
def test_a_damaged_zip_gives_what_zipfile_gives(tmp_path: Path, kind: str) -> None:
    """Cut off and with flipped bits: the same members, or a refusal."""
    generator, whole = random.Random(0), ORDINARY[kind]
    broken = [whole[:length] for length in range(0, len(whole), 7)]
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        broken.append(bytes(flipped))
    same = 0
    for content in broken:
        (tmp_path / "a.zip").write_bytes(content)
        outcomes: list[list[Member]] = []
        for read in (read_directory, reference):
            try:
                outcomes.append(read(tmp_path / "a.zip"))
            except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, OSError):
                outcomes.append([])
        same += outcomes[0] == outcomes[1]
    assert same == len(broken)
