from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from profiles import cmyk_profile, grey_profile, profile
from rdquant.errors import ImageError, UsageError
from rdquant.files.images import Reading, list_images, picture_of, read_image, read_picture, write_image


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


COLOURS = np.array([[[250, 10, 10], [10, 250, 10], [128, 128, 128]]], np.uint8)


def test_a_profile_is_carried_converted_or_ignored(tmp_path: Path) -> None:
    path = _save(tmp_path / "p.png", Image.fromarray(COLOURS), icc_profile=profile())
    kept = read_picture(path)
    assert np.array_equal(kept.rgb, COLOURS) and kept.sections == ((1, profile()),)
    ignored = read_picture(path, Reading("ignore"))
    assert np.array_equal(ignored.rgb, COLOURS) and ignored.sections == ()
    converted = read_picture(path, Reading("srgb"))
    assert converted.sections == () and converted.rgb[0, 0, 0] == 255  # P3's red is beyond sRGB's
    assert np.abs(converted.rgb[0, 2].astype(int) - 128).max() <= 1
    assert np.array_equal(read_image(path), COLOURS)


def test_srgb_by_another_name_is_no_profile(tmp_path: Path) -> None:
    path = _save(tmp_path / "p.png", Image.fromarray(COLOURS), icc_profile=profile("srgb"))
    for colour in ("keep", "srgb", "ignore"):
        found = read_picture(path, Reading(colour))  # type: ignore[arg-type]
        assert np.array_equal(found.rgb, COLOURS) and found.sections == ()


def test_a_grey_profile_is_converted(tmp_path: Path) -> None:
    grey = np.array([[0, 128, 255]], np.uint8)
    path = _save(tmp_path / "g.png", Image.fromarray(grey), icc_profile=grey_profile(1.0))
    found = read_picture(path)
    assert found.sections == () and found.rgb[0, :, 0].tolist()[::2] == [0, 255]
    assert found.rgb[0, 1, 0] == pytest.approx(188, abs=2)  # half the light, which sRGB calls 188


def test_cmyk_with_a_profile_can_be_converted_and_without_cannot(tmp_path: Path) -> None:
    plain = _save(tmp_path / "c.jpg", Image.new("CMYK", (4, 4)))
    for colour in ("keep", "srgb", "ignore"):
        with pytest.raises(ImageError, match="--colour srgb"):
            read_picture(plain, Reading(colour))  # type: ignore[arg-type]
    inks = Image.new("CMYK", (2, 1))
    inks.putpixel((1, 0), (0, 0, 0, 255))
    path = _save(tmp_path / "p.tif", inks, icc_profile=cmyk_profile())
    assert read_picture(path, Reading("srgb")).rgb.tolist() == [[[255] * 3, [0] * 3]]
    with pytest.raises(ImageError, match="--colour srgb"):
        read_picture(path)


def test_a_profile_that_does_not_fit_or_cannot_be_read(tmp_path: Path) -> None:
    unfit = _save(tmp_path / "u.png", Image.fromarray(COLOURS), icc_profile=grey_profile())
    broken = _save(tmp_path / "b.png", Image.fromarray(COLOURS), icc_profile=b"no profile at all")
    for path in (unfit, broken):
        with pytest.raises(ImageError, match="--colour ignore"):
            read_picture(path)
        assert np.array_equal(read_picture(path, Reading("ignore")).rgb, COLOURS)


def test_exif_is_carried_if_wanted_without_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    path = _save(tmp_path / "e.jpg", Image.new("RGB", (8, 4)), exif=exif)
    assert read_picture(path).sections == ()
    found = read_picture(path, Reading(exif=True))
    assert found.rgb.shape == (8, 4, 3)
    ((kind, content),) = found.sections
    carried = Image.Exif()
    carried.load(content)
    assert kind == 2 and dict(carried) == {0x010F: "a camera"}


def test_transparent_pixels_are_laid_on_a_background(tmp_path: Path) -> None:
    rgba = np.array([[[0, 0, 0, 0], [10, 20, 30, 255], [0, 0, 0, 128]]], np.uint8)
    path = _save(tmp_path / "t.png", Image.fromarray(rgba))
    found = read_picture(path, Reading(background="white")).rgb[0]
    assert found.tolist()[:2] == [[255] * 3, [10, 20, 30]] and found[2, 0] == pytest.approx(127, abs=1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    path = _save(tmp_path / "p.png", palette, transparency=1)
    assert read_picture(path, Reading(background="#0000ff")).rgb.tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_decisions_that_are_none() -> None:
    with pytest.raises(UsageError, match="'sRGB'"):
        Reading("sRGB")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'withe'"):
        Reading(background="withe")


@pytest.mark.parametrize("picture", [Image.new("F", (4, 4)), Image.new("I", (4, 4), -1)])
def test_other_samples_are_refused(picture: Image.Image) -> None:
    with pytest.raises(ImageError, match=f"samples|{picture.mode}"):
        picture_of(picture)


def test_cielab_is_converted() -> None:
    lab = Image.new("LAB", (1, 1), (255, 128, 128))
    assert np.abs(picture_of(lab).rgb.astype(int) - 255).max() <= 1


def test_deep_colour_keeps_its_high_bytes(tmp_path: Path) -> None:
    """A PNG of 16 bits a sample, which Pillow does not write."""
    samples = np.array([[[0x1234, 0xFFFF, 0x00FF]]], ">u2")

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        )

    header = (1).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    rows = zlib.compress(b"\0" + samples.tobytes())
    path = tmp_path / "d.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    assert read_image(path).tolist() == [[[0x12, 0xFF, 0x00]]]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_what_a_picture_carries_is_written(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    sections = ((1, profile()), (2, exif.tobytes()[6:]))
    assert write_image(tmp_path / f"x{suffix}", COLOURS, sections) == []
    with Image.open(tmp_path / f"x{suffix}") as opened:
        assert opened.info["icc_profile"] == profile() and opened.getexif()[0x010F] == "a camera"
    assert write_image(tmp_path / "x.bmp", COLOURS, sections) == ["icc_profile", "exif"]
