from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdquant.errors import ImageError, UsageError
from rdquant.files.images import list_images, read_image, write_image


def _save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def test_greyscale_is_repeated(tmp_path: Path, rng: np.random.Generator) -> None:
    grey = rng.integers(0, 256, (5, 4), np.uint8)
    rgb = read_image(_save(tmp_path / "g.png", Image.fromarray(grey)))
    assert np.array_equal(rgb, np.repeat(grey[..., None], 3, 2))


def test_palette_is_expanded_and_its_transparency_refused(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putdata([0, 1])
    assert read_image(_save(tmp_path / "p.png", picture)).tolist() == [[[255, 0, 0], [0, 255, 0]]]
    with pytest.raises(ImageError, match="transparent"):
        read_image(_save(tmp_path / "t.png", picture, transparency=1))


def test_alpha_only_if_opaque(tmp_path: Path) -> None:
    opaque = np.full((2, 2, 4), 255, np.uint8)
    opaque[..., :3] = 7
    assert (read_image(_save(tmp_path / "o.png", Image.fromarray(opaque))) == 7).all()
    opaque[0, 0, 3] = 254
    with pytest.raises(ImageError, match="flatten"):
        read_image(_save(tmp_path / "a.png", Image.fromarray(opaque)))


@pytest.mark.parametrize(
    ("pixels", "key"),
    [
        (np.array([[0, 5]], np.uint8), 5),
        (np.array([[0, 5]], np.uint16), 5),
        (np.array([[[0, 0, 0], [5, 5, 5]]], np.uint8), (5, 5, 5)),
    ],
    ids=["grey", "grey16", "rgb"],
)
def test_key_colour_only_if_unused(pixels: np.ndarray, key: object, tmp_path: Path) -> None:
    picture = Image.fromarray(pixels)
    with pytest.raises(ImageError, match="transparent"):
        read_image(_save(tmp_path / "k.png", picture, transparency=key))
    unused = (9, 9, 9) if isinstance(key, tuple) else 9
    assert read_image(_save(tmp_path / "u.png", picture, transparency=unused)).shape == (1, 2, 3)


def test_floating_point_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="floating-point"):
        read_image(_save(tmp_path / "f.tif", Image.fromarray(np.zeros((2, 2), np.float32))))


def test_cmyk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="CMYK"):
        read_image(_save(tmp_path / "c.jpg", Image.new("CMYK", (4, 4))))


def test_16_bit_grey_is_scaled(tmp_path: Path) -> None:
    wide = np.array([[0, 257, 65_535, 32_768]], np.uint16)
    rgb = read_image(_save(tmp_path / "w.png", Image.fromarray(wide)))
    assert rgb[0, :, 0].tolist() == [0, 1, 255, 128]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _save(tmp_path / "e.jpg", Image.new("RGB", (8, 4)), exif=exif)
    assert read_image(path).shape == (8, 4, 3)


@pytest.mark.parametrize("content", [b"", b"hello, I am text", b"\x89PNG\r\n\x1a\n" + b"\0" * 30])
def test_not_a_picture(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.png is not a picture"):
        read_image(path)


def test_truncated_and_missing(tmp_path: Path, photo: np.ndarray) -> None:
    path = _save(tmp_path / "t.jpg", Image.fromarray(photo))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match="truncated"):
        read_image(path)
    with pytest.raises(ImageError, match="no such picture"):
        read_image(tmp_path / "none.png")


def test_write_and_read_1x1(tmp_path: Path) -> None:
    pixel = np.array([[[1, 2, 3]]], np.uint8)
    write_image(tmp_path / "p.png", pixel)
    assert np.array_equal(read_image(tmp_path / "p.png"), pixel)
    with pytest.raises(UsageError, match=r"\.docx"):
        write_image(tmp_path / "p.docx", pixel)
    with pytest.raises(UsageError, match="16383"):
        write_image(tmp_path / "p.webp", np.zeros((1, 20_000, 3), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures"):
        list_images(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        list_images(tmp_path / "none")
    for name in ("b.png", "a.JPG", "c.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.JPG", "b.png"]
