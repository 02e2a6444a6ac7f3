"""The shortest way in: a picture to the bytes of a file, and back."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from . import zoo
from .coder import ImageCoder
from .files.atomic import read_file
from .files.container import read
from .files.images import read_image, to_rgb8
from .load import coder_for, open_coder


@functools.lru_cache(maxsize=8)
def _opened(model: str, quantizer: str | None, effort: int | None, quality: float | None) -> ImageCoder:
    return open_coder(model, quantizer, effort=effort, quality=quality)


@functools.lru_cache(maxsize=8)
def _named(fingerprint: bytes) -> ImageCoder:
    return coder_for(fingerprint)


def encode(
    picture: np.ndarray | Image.Image | str | Path,
    model: str = zoo.DEFAULT,
    *,
    quality: float | None = None,
    quantizer: str | None = None,
    effort: int | None = None,
) -> bytes:
    """A whole ``.rdq`` file of one picture.

    ``picture``: ``(H, W, 3)`` uint8, a Pillow image (its orientation is applied), or the path of a file.
    ``model``: a zoo name or a file. ``quality``: 1..100, of models for many rates. ``quantizer``, ``effort``:
    see `rdquant.load.open_coder`. Models stay open for the next picture.

    Raises `ImageError` for pictures that have no one answer (transparent, CMYK), `UnknownModel`, and
    `UsageError`.
    """
    if isinstance(picture, Image.Image):
        rgb = to_rgb8(ImageOps.exif_transpose(picture))
    elif isinstance(picture, str | Path):
        rgb = read_image(Path(picture))
    else:
        rgb = np.asarray(picture)
    return _opened(model, quantizer, effort, quality).encode(rgb)


def decode(data: bytes | str | Path, model: str | None = None) -> np.ndarray:
    """``(H, W, 3)`` uint8 of the bytes of a file, or of its path: the same pixels on every machine.

    ``model``: a file or a zoo name, where the zoo does not have the one that the file names.

    Raises an error of the `DecodeError` branch for anything but a whole file, `UnknownModel`, and
    `UsageError` for a path that cannot be read.
    """
    whole = read_file(Path(data)) if isinstance(data, str | Path) else bytes(data)
    coder = _opened(model, None, None, None) if model else _named(read(whole)[0].fingerprint)
    return coder.decode(whole)
