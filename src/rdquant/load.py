"""A model by path, zoo name or fingerprint, ready to code pictures."""

from __future__ import annotations

from pathlib import Path

from . import zoo
from .coder import ImageCoder
from .errors import ModelMismatch, UnknownModel
from .files.container import Profile
from .files.models import (
    float_fingerprint,
    integer_fingerprint,
    load_float,
    load_integer,
    model_kind,
)
from .floatcodec import CodingFloatCodec


def model_path(name: str) -> Path:
    """A zoo name or a path -> the model file. Raises `UnknownModel`."""
    if (path := zoo.find(name)) is not None:
        return path
    if Path(name).is_file():
        return Path(name)
    raise UnknownModel(f"{name!r} is neither a file nor a zoo model; `rdquant zoo` lists those")


def open_coder(name: str) -> ImageCoder:
    """A coder for a float or integer model. Raises `UnknownModel` or `BadModel`."""
    path = model_path(name)
    if model_kind(path) == "integer":
        integer = load_integer(path)
        return ImageCoder(integer, integer_fingerprint(integer), Profile.INTEGER)
    codec = load_float(path)
    return ImageCoder(CodingFloatCodec(codec), float_fingerprint(codec), Profile.FLOAT)


def coder_for(fingerprint: bytes) -> ImageCoder:
    """The zoo model with this fingerprint. Raises `UnknownModel`."""
    path = zoo.by_fingerprint(fingerprint)
    if path is None:
        raise UnknownModel(
            f"the file needs model {fingerprint.hex()}, which is not in the zoo; give it with --model"
        )
    coder = open_coder(str(path))
    if coder.fingerprint != fingerprint:
        raise ModelMismatch(fingerprint.hex(), coder.fingerprint.hex())
    return coder
