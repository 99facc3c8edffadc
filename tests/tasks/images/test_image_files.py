"""What lies in a folder or zip of pictures."""

import os
import zipfile
from pathlib import Path

import pytest

from metalearn.errors import UsageError
from metalearn.tasks.images import files as image_files
from metalearn.tasks.images.files import list_images
from metalearn.tasks.images.format import BadImageError
from tests.tasks.pictures import noise, tree_files, write_folder, write_zip

FILES = tree_files({"cat": 2, "dog": 3})


def members(path: Path) -> dict[str, list[str]]:
    return {name: [file.member for file in files] for name, files in list_images(path).classes.items()}


@pytest.mark.parametrize("top", ["", "pets/", "data/pets/"])
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_class_is_a_folder_of_images(tmp_path: Path, form: str, top: str) -> None:
    files = {top + name: content for name, content in FILES.items()}
    write = write_folder if form == "folder" else write_zip
    tree = list_images(write(tmp_path / "tree", files))
    assert {name: len(found) for name, found in tree.classes.items()} == {"cat": 2, "dog": 3}
    assert (tree.empty, tree.loose) == ((), ())
    with tree.opened() as read:
        for name, found in tree.classes.items():
            for file in found:
                assert read(file.member) == FILES[f"{name}/{file.member[-6:]}"]


def test_names_are_paths_and_in_order(tmp_path: Path) -> None:
    files = tree_files({"b/z": 1, "b/a": 1, "a": 1, "b/a/deeper": 1})
    assert list(members(write_folder(tmp_path, files))) == ["a", "b/a", "b/a/deeper", "b/z"]


def test_one_split_folder_is_not_taken_for_a_top_folder(tmp_path: Path) -> None:
    assert list(members(write_folder(tmp_path, tree_files({"x/train/cat": 1, "x/train/dog": 1})))) == [
        "train/cat",
        "train/dog",
    ]


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_what_is_no_picture_is_not_looked_at(tmp_path: Path, form: str) -> None:
    foreign = dict.fromkeys(
        ("cat/.hidden.png", ".git/objects/a.png", "cat/notes.txt", "__MACOSX/cat/._00.png", "README", "cat/Thumbs.db"),
        b"x",
    )
    files = {**FILES, **foreign, "cat/A.JPEG": b"", "dog/b.b.TIF": b""}
    tree = (write_folder if form == "folder" else write_zip)(tmp_path / "tree", files)
    assert members(tree) == {
        "cat": ["cat/00.png", "cat/01.png", "cat/A.JPEG"],
        "dog": ["dog/00.png", "dog/01.png", "dog/02.png", "dog/b.b.TIF"],
    }


def test_empty_folders_and_loose_pictures_are_told(tmp_path: Path) -> None:
    write_folder(tmp_path / "tree", {**FILES, "loose.png": b"", "bird/notes.txt": b""})
    (tmp_path / "tree/fish/inner").mkdir(parents=True)
    tree = list_images(tmp_path / "tree")
    assert (tree.empty, tree.loose) == (("bird", "fish"), ("loose.png",))


def test_an_empty_folder_in_a_zip_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        archive.writestr("pets/cat/a.png", noise(0))
        archive.mkdir("pets/fish") if hasattr(archive, "mkdir") else archive.writestr("pets/fish/", "")
        archive.writestr("__MACOSX/", "")
    assert list_images(tmp_path / "tree.zip").empty == ("fish",)


def test_the_fingerprint_changes_with_the_content_and_nothing_else(tmp_path: Path) -> None:
    def fingerprint(files: dict[str, bytes], names: tuple[str, ...] = ("cat", "dog")) -> str:
        return list_images(write_zip(tmp_path / "tree.zip", files)).fingerprint(names)

    before = fingerprint(FILES)
    assert fingerprint(dict(reversed(FILES.items()))) == before, "members in another order"
    assert fingerprint({**FILES, "bird/0.png": noise(9)}) == before, "a class that is not asked for"
    assert fingerprint({**FILES, "dog/02.png": noise(9)}) != before
    assert fingerprint({name: content for name, content in FILES.items() if name != "dog/02.png"}) != before
    assert fingerprint(FILES, ("dog", "cat")) != before, "the order in which they are stored"


def test_a_changed_file_of_a_folder_changes_the_fingerprint(tmp_path: Path) -> None:
    write_folder(tmp_path, FILES)
    before = list_images(tmp_path).fingerprint(("cat",))
    assert list_images(tmp_path).fingerprint(("cat",)) == before
    (tmp_path / "cat/00.png").write_bytes(noise(99) + b"more")
    assert list_images(tmp_path).fingerprint(("cat",)) != before


def test_a_link_to_nowhere_is_a_bad_image(tmp_path: Path) -> None:
    write_folder(tmp_path, FILES)
    (tmp_path / "cat/02.png").symlink_to(tmp_path / "gone.png")
    tree = list_images(tmp_path)
    with tree.opened() as read, pytest.raises(BadImageError, match=r"cat/02.png can not be read"):
        read(tree.classes["cat"][2].member)


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", {"a.png": noise(0)})
    write_folder(tmp_path / "tree", FILES)
    (tmp_path / "tree/bird").symlink_to(tmp_path / "elsewhere")
    assert list(members(tmp_path / "tree")) == ["bird", "cat", "dog"]


@pytest.mark.parametrize("link", ["cat/loop", "again"])
def test_a_folder_under_two_names_is_refused(tmp_path: Path, link: str) -> None:
    write_folder(tmp_path / "tree", FILES)
    target = tmp_path / "tree" if link == "cat/loop" else tmp_path / "tree/dog"
    (tmp_path / "tree" / link).symlink_to(target)
    with pytest.raises(UsageError, match=r"is a link to a folder that .* has under another name too. Remove the link"):
        list_images(tmp_path / "tree")


def test_a_path_that_is_not_there_or_no_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere does not exist. It must be a folder"):
        list_images(tmp_path / "nowhere")
    whole = write_zip(tmp_path / "a.zip", FILES).read_bytes()
    for content in (b"", b"no zip", whole[: len(whole) // 2]):
        (tmp_path / "b.zip").write_bytes(content)
        with pytest.raises(UsageError, match=r"b.zip is not an intact zip .*copy or download it again"):
            list_images(tmp_path / "b.zip")


def test_a_flipped_byte_in_a_zip_is_told_by_the_member(tmp_path: Path) -> None:
    content = bytearray(write_zip(tmp_path / "a.zip", FILES).read_bytes())
    content[100] ^= 0xFF  # in the first picture
    (tmp_path / "a.zip").write_bytes(content)
    tree = list_images(tmp_path / "a.zip")
    with tree.opened() as read:
        with pytest.raises(BadImageError, match=r"a.zip: cat/00.png can not be read from the zip \(Bad CRC"):
            read("cat/00.png")
        assert read("cat/01.png") == FILES["cat/01.png"]


def test_other_pixels_under_the_same_names_sizes_and_times_are_another_content(tmp_path: Path) -> None:
    """As of bitmaps that were unzipped with fixed dates."""
    found = []
    for place, value in (("one/animals", 0), ("two/animals", 255)):
        root = write_folder(tmp_path / place, {f"cat/{i}.bmp": bytes([value]) * 300 for i in range(3)})
        for file in (root / "cat").iterdir():
            os.utime(file, ns=(10**18, 10**18))
        found.append(list_images(root).fingerprint(("cat",)))
    assert found[0] != found[1]
    # In one place too: a file replaced by one of the same size, with the time put back.
    file = tmp_path / "one/animals/cat/1.bmp"
    file.write_bytes(b"x" * 300)
    os.utime(file, ns=(10**18, 10**18))
    assert list_images(tmp_path / "one/animals").fingerprint(("cat",)) != found[0]


def test_the_content_of_files_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file system has no times and inodes of its own, which is what the stamp is of."""
    monkeypatch.setattr(image_files, "_stamp", lambda entry: "")
    root = write_folder(tmp_path, {"cat/0.bmp": b"a" * 9000})
    before = list_images(root).fingerprint(("cat",))
    assert list_images(root).fingerprint(("cat",)) == before
    (root / "cat/0.bmp").write_bytes(b"a" * 8999 + b"b")
    assert list_images(root).fingerprint(("cat",)) != before


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("Train", "train"),
        ("TRAINING", "train"),
        ("meta-train", "train"),
        ("Val", "val"),
        ("dev", "val"),
        ("Testing", "test"),
        ("meta_test", "test"),
        ("trainers", None),
        ("evaluation", None),
    ],
)
def test_folders_of_splits(folder: str, split: str | None) -> None:
    assert image_files.split_of(folder) == split
