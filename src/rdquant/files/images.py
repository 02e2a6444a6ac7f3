"""Reading and writing pictures: always ``(H, W, 3)`` uint8 sRGB on our side.

Documented conversions: greyscale is repeated to three channels, palettes are expanded, 16-bit grey
is scaled to 8 bits (v * 255 / 65535, rounded), of 16-bit colour the high byte is kept (Pillow's
doing), the EXIF orientation is applied. Transparency, be it an alpha channel, a palette entry or a
key colour, is refused unless every pixel is opaque; CMYK is refused: both need a decision that is
not ours.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import ImageError, UsageError
from .atomic import STREAM, atomic_write, read_file

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif", ".avif", ".jp2"}


def list_images(folder: Path) -> list[Path]:
    """Pictures directly in a folder, sorted by name. Raises `UsageError` when there are none."""
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UsageError(f"no pictures in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    return files


def read_image(path: Path) -> np.ndarray:
    """``(H, W, 3)`` uint8. Raises `ImageError` with one line that says what is wrong."""
    try:
        with Image.open(io.BytesIO(read_file(path)) if path == STREAM else path) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise ImageError(f"no such picture: {path}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged input
        raise ImageError(f"{path} is not a picture that can be read: {error}") from None
    return to_rgb8(picture, str(path))


def to_rgb8(picture: Image.Image, name: str = "picture") -> np.ndarray:
    """The documented conversions, from a Pillow picture.

    Raises `ImageError` for transparent pixels, CMYK, and samples that are not 8 or 16 bits.
    """
    try:
        return _to_rgb8(picture, name)
    except (ValueError, OSError) as error:  # modes and palettes that Pillow cannot convert
        raise ImageError(f"{name} has {picture.mode!r} samples that cannot be converted: {error}") from None


def _to_rgb8(picture: Image.Image, name: str) -> np.ndarray:
    mode = picture.mode
    deep = mode.startswith("I;16") or mode in ("I", "F")
    if mode == "CMYK":
        raise ImageError(f"{name} is CMYK; convert it to sRGB first (a colour profile decides how)")
    if picture.has_transparency_data and not deep:
        rgba = np.asarray(picture.convert("RGBA"))
        if (rgba[..., 3] != 255).any():
            raise ImageError(f"{name} has transparent pixels; flatten it onto a background first")
        return np.ascontiguousarray(rgba[..., :3])
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


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write ``(H, W, 3)`` uint8 by the suffix of ``path`` (PNG, BMP, TIFF, PPM: without loss); PNG to "-".

    Raises `UsageError` for a suffix that Pillow cannot write, and a size that the format cannot hold.
    """
    formats = Image.registered_extensions()
    fmt = "PNG" if path == STREAM else formats.get(path.suffix.lower())
    if fmt is None or fmt not in Image.SAVE:
        raise UsageError(f"cannot write a {path.suffix!r} picture; use .png")
    options = {"quality": 95} if fmt in ("JPEG", "WEBP") else {}
    with atomic_write(path) as handle:
        try:
            Image.fromarray(np.ascontiguousarray(pixels)).save(handle, format=fmt, **options)
        except (ValueError, OSError) as error:
            raise UsageError(f"cannot write {path}: {error}") from None
