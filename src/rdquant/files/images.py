"""Reading and writing pictures: ``(H, W, 3)`` uint8 on our side, with what a file carries beside them.

docs/pictures.md says what becomes of each kind: the EXIF orientation is applied, grey repeated to three
channels, a palette expanded, 16-bit grey scaled to 8 bits (v * 255 / 65535, rounded), of 16-bit colour the
high byte kept (Pillow's doing). What needs a decision is refused until it is made: transparency is, unless
every pixel is opaque or there is a background; CMYK is, unless it has a profile and is to be converted.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
from PIL import Image, ImageColor, ImageOps

from ..errors import ImageError, UsageError
from .atomic import STREAM, atomic_write, read_file
from .container import Section, Sections

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif", ".avif", ".jp2"}
#: formats that hold a colour profile and EXIF
CARRIERS = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")
_ORIENTATION = 0x0112
_EXIF_PREFIX = b"Exif\0\0"

Colour = Literal["keep", "srgb", "ignore"]


@dataclass(frozen=True)
class Reading:
    """What is decided about pictures.

    ``colour``: "keep" the samples and carry their profile, unless it says sRGB; convert to "srgb"; or
    "ignore" the profile. ``background``: what transparent pixels are laid on, a colour as CSS names it.
    ``exif``: carry it; places and names of owners are in it. Raises `UsageError` for anything else.
    """

    colour: Colour = "keep"
    background: str | None = None
    exif: bool = False

    def __post_init__(self) -> None:
        if self.colour not in get_args(Colour):
            raise UsageError(f"colour is one of {', '.join(get_args(Colour))}, got {self.colour!r}")
        if self.background is not None:
            try:
                ImageColor.getrgb(self.background)
            except ValueError:
                raise UsageError(f"{self.background!r} is no colour, such as white or #ffffff") from None


@dataclass(frozen=True)
class Picture:
    """``rgb``: ``(H, W, 3)`` uint8, in sRGB or the colours of the profile among ``sections``."""

    rgb: np.ndarray
    sections: Sections = ()


def list_images(folder: Path) -> list[Path]:
    """Pictures directly in a folder, sorted by name. Raises `UsageError` when there are none."""
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UsageError(f"no pictures in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    return files


def read_image(path: Path) -> np.ndarray:
    """``(H, W, 3)`` uint8, samples as they are: for measuring and training. Raises `ImageError`."""
    return read_picture(path, Reading(colour="ignore")).rgb


def read_picture(path: Path, reading: Reading = Reading()) -> Picture:
    """A picture to code. Raises `ImageError` with one line that says what is wrong."""
    return _opened(io.BytesIO(read_file(path)) if path == STREAM else path, reading, str(path))


def picture_in(content: bytes, reading: Reading = Reading(), name: str = "picture") -> Picture:
    """As `read_picture`, of a file's bytes."""
    return _opened(io.BytesIO(content), reading, name)


def _opened(source: Path | io.BytesIO, reading: Reading, name: str) -> Picture:
    try:
        with Image.open(source) as opened:
            if opened.format == "RDQ":
                raise ImageError(f"{name} is a coded file; `rdquant decode` makes a picture of it")
            opened.load()
            return picture_of(opened, reading, name)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"no such picture: {name}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged input
        raise ImageError(f"{name} is not a picture that can be read: {error}") from None


def picture_of(image: Image.Image, reading: Reading = Reading(), name: str = "picture") -> Picture:
    """Of a Pillow image, turned as its orientation says.

    Raises `ImageError` for transparent pixels without a background, CMYK, samples that are not 8 or 16
    bits, and profiles that cannot be read or do not fit the samples.
    """
    profile = image.info.get("icc_profile") if reading.colour != "ignore" else None
    exif = _exif(image) if reading.exif else None
    turned = ImageOps.exif_transpose(image)
    try:
        rgb, profile = _converted(turned, profile or None, reading, name)
    except (ValueError, OSError) as error:  # modes and palettes that Pillow cannot convert
        raise ImageError(f"{name} has {image.mode!r} samples that cannot be converted: {error}") from None
    sections = ((Section.ICC, profile), (Section.EXIF, exif))
    return Picture(rgb, tuple((int(kind), content) for kind, content in sections if content))


def _exif(image: Image.Image) -> bytes | None:
    exif = Image.Exif()  # not the image's own, which says how to turn it
    exif.load(image.getexif().tobytes())
    exif.pop(_ORIENTATION, None)
    return exif.tobytes().removeprefix(_EXIF_PREFIX) if len(exif) else None


def _converted(
    image: Image.Image, profile: bytes | None, reading: Reading, name: str
) -> tuple[np.ndarray, bytes | None]:
    """``(H, W, 3)`` uint8, and the profile that they need."""
    if profile is None:
        return _to_rgb8(image, reading.background, name), None
    from .colour import is_srgb, mode_of, to_srgb

    described = mode_of(profile, name)
    if image.mode == "CMYK" and described == "CMYK" and reading.colour == "srgb":
        return np.asarray(to_srgb(image, profile, name)), None
    rgb = _to_rgb8(image, reading.background, name)
    if described == "L" and (rgb == rgb[..., :1]).all():  # of grey samples, which ours are not any more
        grey = Image.fromarray(np.ascontiguousarray(rgb[..., 0]))
        return np.asarray(to_srgb(grey, profile, name)), None
    if described != "RGB":
        raise ImageError(
            f"the colour profile of {name} is not for its {image.mode} samples; --colour ignore does without"
        )
    if is_srgb(profile, name):
        return rgb, None
    if reading.colour == "srgb":
        return np.asarray(to_srgb(Image.fromarray(rgb), profile, name)), None
    return rgb, profile


def _to_rgb8(picture: Image.Image, background: str | None, name: str) -> np.ndarray:
    mode = picture.mode
    deep = mode.startswith("I;16") or mode in ("I", "F")
    if mode == "CMYK":
        raise ImageError(
            f"{name} is CMYK; --colour srgb converts it if it has a colour profile, else convert it first"
        )
    if picture.has_transparency_data and not deep:
        rgba = picture.convert("RGBA")
        if background is not None:
            ground = Image.new("RGBA", rgba.size, (*ImageColor.getrgb(background)[:3], 255))
            rgba = Image.alpha_composite(ground, rgba)
        pixels = np.asarray(rgba)
        if (pixels[..., 3] != 255).any():
            raise ImageError(f"{name} has transparent pixels; flatten it: --background white, or another")
        return np.ascontiguousarray(pixels[..., :3])
    if mode == "F":
        raise ImageError(f"{name} has floating-point samples; scale it to 8 bits first")
    if deep:
        wide = np.asarray(picture).astype(np.float64)
        if wide.min(initial=0) < 0 or wide.max(initial=0) > 65535:
            raise ImageError(f"{name} has samples outside 0..65535; scale it to 8 bits first")
        if (wide == picture.info.get("transparency", -1)).any():
            raise ImageError(f"{name} has transparent pixels; flatten it onto a background first")
        grey = np.floor(wide * (255 / 65535) + 0.5).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(picture.convert("RGB"))


#: what formats are saved with. PNG's default takes long; zlib's runs alone (strategy 3, Z_RLE) are much
#: quicker, and files of photographs no larger
SAVING = {
    "JPEG": {"quality": 95}, "WEBP": {"quality": 95}, "PNG": {"compress_level": 1, "compress_type": 3},
}  # fmt: skip


def write_image(path: Path, pixels: np.ndarray, sections: Sections = ()) -> list[str]:
    """Write ``(H, W, 3)`` uint8 by the suffix of ``path`` (PNG, BMP, TIFF, PPM: without loss); PNG to "-".

    ``sections``: a colour profile and EXIF, and what is returned those that the format cannot hold. Raises
    `UsageError` for a suffix that Pillow cannot write, and a size that the format cannot hold.
    """
    with atomic_write(path) as handle:
        return save_image(handle, ".png" if path == STREAM else path.suffix, pixels, sections)


def format_of(suffix: str) -> str:
    """Pillow's name of the format that pictures of this suffix are written in. Raises `UsageError`."""
    Image.preinit()  # PNG and a few more; all of Pillow's formats take a while to import
    fmt = Image.EXTENSION.get(suffix.lower()) or Image.registered_extensions().get(suffix.lower())
    if fmt is None or fmt not in Image.SAVE:
        raise UsageError(f"cannot write a {suffix!r} picture; use .png")
    return fmt


def save_image(handle: BinaryIO, suffix: str, pixels: np.ndarray, sections: Sections = ()) -> list[str]:
    """As `write_image`, into a file that is open."""
    fmt = format_of(suffix)
    options: dict[str, object] = dict(SAVING.get(fmt, {}))
    carried = {"icc_profile": dict(sections).get(Section.ICC)}
    if exif := dict(sections).get(Section.EXIF):
        carried["exif"] = _EXIF_PREFIX + exif
    carried = {name: content for name, content in carried.items() if content}
    try:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.save(handle, format=fmt, **options, **(carried if fmt in CARRIERS else {}))
    except (ValueError, OSError) as error:
        raise UsageError(f"cannot write a {suffix} picture: {error}") from None
    return [] if fmt in CARRIERS else list(carried)
