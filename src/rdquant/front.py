"""The shortest way in: pictures to the bytes of files, and back."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from . import zoo
from .coder import ImageCoder
from .files.atomic import read_file
from .files.container import read, with_sections
from .files.images import Colour, Picture, Reading, picture_of, read_picture
from .load import coder_for, open_coder

#: what a picture can be. Tensors of PyTorch are ``(3, H, W)`` uint8, on any device
AnyPicture = Any


@functools.lru_cache(maxsize=8)
def _opened(model: str, quantizer: str | None, effort: int | None, quality: float | None) -> ImageCoder:
    return open_coder(model, quantizer, effort=effort, quality=quality)


@functools.lru_cache(maxsize=8)
def _named(fingerprint: bytes) -> ImageCoder:
    return coder_for(fingerprint)


def _batch(pictures: AnyPicture) -> list[AnyPicture] | None:
    """The pictures of a batch, or None for one picture."""
    if isinstance(pictures, list | tuple):
        return list(pictures)
    return list(pictures) if getattr(pictures, "ndim", 3) == 4 else None


def _picture(picture: AnyPicture, reading: Reading) -> Picture:
    if isinstance(picture, Image.Image):
        return picture_of(picture, reading)
    if isinstance(picture, str | Path):
        return read_picture(Path(picture), reading)
    if hasattr(picture, "detach"):  # a tensor, without importing PyTorch to ask
        picture = np.moveaxis(picture.detach().cpu().numpy(), 0, -1)
    return Picture(np.asarray(picture))


@overload
def encode(
    picture: np.ndarray | Image.Image | str | Path, model: str = ..., *, quality: float | None = ...,
    quantizer: str | None = ..., effort: int | None = ..., colour: Colour = ..., background: str | None = ...,
    exif: bool = ...,
) -> bytes: ...  # fmt: skip
@overload
def encode(
    picture: list[Any] | tuple[Any, ...], model: str = ..., *, quality: float | None = ...,
    quantizer: str | None = ..., effort: int | None = ..., colour: Colour = ..., background: str | None = ...,
    exif: bool = ...,
) -> list[bytes]: ...  # fmt: skip
@overload
def encode(
    picture: AnyPicture, model: str = ..., *, quality: float | None = ..., quantizer: str | None = ...,
    effort: int | None = ..., colour: Colour = ..., background: str | None = ..., exif: bool = ...,
) -> Any: ...  # fmt: skip
def encode(
    picture: AnyPicture,
    model: str = zoo.DEFAULT,
    *,
    quality: float | None = None,
    quantizer: str | None = None,
    effort: int | None = None,
    colour: Colour = "keep",
    background: str | None = None,
    exif: bool = False,
) -> bytes | list[bytes]:
    """A whole ``.rdq`` file of one picture; of a batch, a list of them.

    ::

        data = rdquant.encode("photo.jpg")
        data = rdquant.encode(array, "mine.rdqm", effort=2)
        files = rdquant.encode([first, second], quality=60)

    ``picture``: ``(H, W, 3)`` uint8 of any size, a tensor ``(3, H, W)`` uint8, a Pillow image, or the path of
    a file. A list or tuple of these, ``(B, H, W, 3)`` or a tensor ``(B, 3, H, W)`` is a batch.
    ``model``: a zoo name or a file. ``quality``: 1..100, of models for many rates. ``quantizer``, ``effort``:
    see `rdquant.load.open_coder`. Models stay open for the next picture.
    ``colour``, ``background``, ``exif``: what becomes of images and files that are not plain sRGB, see
    `rdquant.files.images.Reading`; their orientation is applied.

    Raises `ImageError` for pictures that have no one answer (transparent, CMYK) or another shape or type,
    `UnknownModel`, and `UsageError`.
    """
    reading = Reading(colour, background, exif)
    coder = _opened(model, quantizer, effort, quality)

    def one(picture: AnyPicture) -> bytes:
        found = _picture(picture, reading)
        data = coder.encode(found.rgb)
        return with_sections(data, found.sections) if found.sections else data

    batch = _batch(picture)
    return one(picture) if batch is None else [one(p) for p in batch]


@overload
def decode(data: bytes | str | Path, model: str | None = ...) -> np.ndarray: ...
@overload
def decode(data: list[Any] | tuple[Any, ...], model: str | None = ...) -> list[np.ndarray]: ...
def decode(data: Any, model: str | None = None) -> np.ndarray | list[np.ndarray]:
    """``(H, W, 3)`` uint8 of the bytes of a file, or of its path: the same pixels on every machine.

    ::

        rgb = rdquant.decode("photo.rdq")
        image = PIL.Image.open("photo.rdq")  # with the colour profile and EXIF, if the file carries them

    A list or tuple gives a list. ``model``: a file or a zoo name, where the zoo does not have the one that
    the file names.

    Raises an error of the `DecodeError` branch for anything but a whole file, `UnknownModel`, and
    `UsageError` for a path that cannot be read.
    """
    if isinstance(data, list | tuple):
        return [decode(d, model) for d in data]
    whole = read_file(Path(data)) if isinstance(data, str | Path) else bytes(data)
    coder = _opened(model, None, None, None) if model else _named(read(whole)[0].fingerprint)
    return coder.decode(whole)
