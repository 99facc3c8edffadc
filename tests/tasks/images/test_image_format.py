"""A file becomes an input: sizes, colours, orientation, and what is refused."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.errors import UsageError
from metalearn.tasks import Glyphs, Omniglot
from metalearn.tasks.images.format import BadImageError, ImageFormat, OtherSizeError
from metalearn.tasks.omniglot.splits import character_names, characters_by_split
from tests.tasks.pictures import TRUNCATED, encoded, noise, pixels_of

RGB = ImageFormat((8, 8))
GREY = ImageFormat((8, 8), color="grey")


def plain(mode: str, color: object, kind: str = "PNG", **options: object) -> bytes:
    return encoded(Image.new(mode, (8, 8), color), kind, **options)  # type: ignore[arg-type]


def test_an_image_of_the_size_is_taken_as_it_is() -> None:
    decoded = RGB.decode(noise(0), "noise.png")
    assert decoded.dtype == np.uint8
    assert decoded.flags["C_CONTIGUOUS"]
    assert np.array_equal(decoded, pixels_of(noise(0)))


@pytest.mark.parametrize(
    ("content", "rgb"),
    [
        (plain("RGB", (200, 100, 50)), (200, 100, 50)),
        (plain("L", 77), (77, 77, 77)),
        (plain("1", 1), (255, 255, 255)),
        (plain("P", 0), (0, 0, 0)),
        (encoded(Image.new("RGB", (8, 8), (0, 255, 0)).quantize(4)), (0, 255, 0)),
        (plain("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (plain("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (plain("RGBA", (0, 0, 0, 51)), (204, 204, 204)),
        (plain("LA", (0, 51)), (204, 204, 204)),
        (encoded(Image.new("RGB", (8, 8), (9, 9, 9)), transparency=(9, 9, 9)), (255, 255, 255)),
        (plain("CMYK", (0, 255, 255, 0), "TIFF"), (255, 0, 0)),
        (encoded(Image.fromarray(np.full((8, 8), 0x80FF, dtype=np.uint16))), (128, 128, 128)),
        (encoded(Image.fromarray(np.full((8, 8), 0xFFFF, dtype=np.int32)), "TIFF"), (255, 255, 255)),
        (plain("RGB", (0, 0, 255), "GIF"), (0, 0, 255)),
        (plain("RGB", (0, 0, 255), "BMP"), (0, 0, 255)),
    ],
)
def test_modes_become_colours_on_white(content: bytes, rgb: tuple[int, int, int]) -> None:
    decoded = RGB.decode(content, "picture")
    assert np.array_equal(decoded, np.broadcast_to(np.array(rgb, dtype=np.uint8)[:, None, None], (3, 8, 8)))


def test_grey_and_inverted() -> None:
    decoded = GREY.decode(plain("RGB", (255, 0, 0)), "red")
    assert decoded.shape == (1, 8, 8)
    assert set(decoded.flatten()) == {76}  # ITU-R 601: 0.299 * 255
    inverted = ImageFormat((8, 8), color="grey", inverted=True).decode(plain("RGB", (255, 0, 0)), "red")
    assert np.array_equal(inverted, 255 - decoded)


def test_crop_takes_the_middle_and_stretch_everything() -> None:
    picture = Image.new("RGB", (40, 8), "red")
    picture.paste("blue", (16, 0, 24, 8))
    crop = ImageFormat((8, 8)).decode(encoded(picture), "wide")
    assert np.array_equal(crop, pixels_of(plain("RGB", "blue")))
    stretched = ImageFormat((8, 8), fit="stretch").decode(encoded(picture), "wide")
    assert np.array_equal(stretched, np.asarray(picture.resize((8, 8), Image.Resampling.LANCZOS)).transpose(2, 0, 1))
    assert stretched[0, :, 0].min() > 200, "the red sides are there"


@pytest.mark.parametrize(("width", "height"), [(31, 17), (17, 31), (9, 8), (100, 100), (3, 5)])
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_any_size_becomes_the_size(width: int, height: int, size: tuple[int, int], fit: str) -> None:
    decoded = ImageFormat(size, fit=fit).decode(noise(1, width=width, height=height), "noise")
    assert decoded.shape == (3, *size)


def test_crop_keeps_proportions() -> None:
    """What is left after resizing the shorter side and cutting the middle out."""
    content = encoded(Image.linear_gradient("L").resize((64, 32)))  # dark above, light below
    crop = ImageFormat((8, 8), color="grey").decode(content, "gradient")[0]
    whole = Image.linear_gradient("L").resize((64, 32)).resize((16, 8), Image.Resampling.LANCZOS)
    assert np.abs(crop.astype(int) - np.asarray(whole)[:, 4:12]).max() <= 1


def test_a_long_strip_needs_no_long_memory() -> None:
    strip = encoded(Image.new("L", (40_000, 1), 9))
    assert set(ImageFormat((84, 84), color="grey").decode(strip, "strip").flatten()) == {9}


def test_exif_orientation_is_applied() -> None:
    picture = Image.new("RGB", (16, 8), "white")
    picture.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    decoded = ImageFormat((16, 8)).decode(encoded(picture, exif=exif), "turned")
    assert set(decoded[:, :8].flatten()) == {0}
    assert set(decoded[:, 8:].flatten()) == {255}


def test_same_size_refuses_another_size() -> None:
    assert RGB.decode(noise(0), "a.png", same_size=True).shape == (3, 8, 8)
    with pytest.raises(OtherSizeError, match=r"b.png has 9 x 7 pixels \(width x height\), expected 8 x 8"):
        RGB.decode(noise(0, width=9, height=7), "b.png", same_size=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"not an image", "no image that Pillow knows"),
        (noise(0)[:TRUNCATED], "truncated"),
        (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900], "truncated"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "floating point"),
        (encoded(Image.fromarray(np.full((8, 8), 1 << 20, dtype=np.int32)), "TIFF"), "0 … 65535"),
    ],
)
def test_what_is_no_image_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=rf"cat/1.png is not a readable image \(.*{reason}") as refused:
        RGB.decode(content, "cat/1.png")
    assert "\n" not in str(refused.value)


def test_a_flipped_byte_is_an_error_of_ours_or_harmless() -> None:
    """Whatever Pillow raises for a broken file, the caller gets a `BadImageError` that names it."""
    content, refused = noise(3), 0
    for position in range(len(content)):
        broken = bytearray(content)
        broken[position] ^= 0xFF
        try:
            shape = RGB.decode(bytes(broken), "broken.png").shape
        except BadImageError:
            refused += 1
        else:
            assert shape == (3, 8, 8)
    assert refused > len(content) // 2


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(BadImageError, match=r"bomb.png is not a readable image \(.*decompression bomb"):
        RGB.decode(noise(0), "bomb.png")


def test_dict_and_back() -> None:
    for each in (RGB, ImageFormat((3, 5), color="grey", inverted=True, fit="stretch")):
        assert ImageFormat.from_dict(each.to_dict()) == each
    assert RGB.to_dict() == {"size": [8, 8], "color": "rgb", "inverted": False, "fit": "crop"}
    assert ImageFormat((3, 5)).shape == (3, 3, 5)
    assert ImageFormat((3, 5), color="grey").shape == (1, 3, 5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"size": [8, 8], "color": "gray"}, "Unknown `color` 'gray' of images. Did you mean 'grey'"),
        ({"size": [8, 8], "fit": "strech"}, "Unknown `fit` 'strech' of images. Did you mean 'stretch'"),
        ({"size": [8]}, "two whole numbers"),
        ({"size": [0, 8]}, "two whole numbers"),
        ({"size": 8}, "two whole numbers"),
        ({"size": [8.5, 8]}, "two whole numbers"),
        ({"size": [8, 8], "inverted": 1}, "`inverted` must be true or false"),
        ({"size": [8, 8], "colour": "rgb"}, "has no 'colour'. Did you mean 'color'"),
        ({"color": "rgb"}, "needs `size`"),
    ],
)
def test_a_wrong_format_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ImageFormat.from_dict(data)


def test_omniglots_format_gives_omniglots_inputs(omniglot_root: Path, shared_cache: Path) -> None:
    source = Omniglot(root=omniglot_root, cache_dir=shared_cache, split="lake", rotations=False)
    with zipfile.ZipFile(omniglot_root / "images_evaluation.zip") as archive:
        (member,) = (name for name in archive.namelist() if re.search(r"Tengwar/character07/\d+_04", name))
        content = archive.read(member)
    position = characters_by_split("lake")["test"].index(character_names().index("Tengwar/character07"))
    assert source.image_format is not None
    assert np.array_equal(source.image_format.decode(content, member), source.images["test"][position, 3].numpy())


def test_glyphs_have_a_format_of_their_shape() -> None:
    source = Glyphs(num_alphabets=3, characters=6, drawings=3, ways=2, query_shots=1)
    assert source.image_format == ImageFormat((28, 28), color="grey", inverted=True)
    assert source.image_format.shape == source.input_shape
