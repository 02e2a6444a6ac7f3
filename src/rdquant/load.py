"""A model by path, zoo name or fingerprint, ready to code pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import zoo
from .coder import ImageCoder, LatentSearch
from .errors import ModelMismatch, UnknownModel, UsageError
from .files.container import Profile
from .files.float_models import float_fingerprint, load_float
from .files.integer_models import integer_fingerprint, load_integer
from .files.model_file import model_description, model_kind
from .floatcodec import CodingFloatCodec
from .latents.rdoq import Rdoq


def model_path(name: str) -> Path:
    """A zoo name or a path -> the model file. Raises `UnknownModel`."""
    if (path := zoo.find(name)) is not None:
        return path
    if Path(name).is_file():
        return Path(name)
    raise UnknownModel(f"{name!r} is neither a file nor a zoo model; `rdquant zoo` lists those")


def open_coder(name: str, quantizer: str = "uniform") -> ImageCoder:
    """A coder for a float or integer model. ``quantizer``: how it chooses latent levels when encoding.

    Raises `UnknownModel`, `BadModel`, and `UsageError` for a quantizer that the model cannot have.
    """
    path = model_path(name)
    if model_kind(path) == "integer":
        integer = load_integer(path)
        search = latent_search(quantizer, integer.description, name)
        return ImageCoder(integer, integer_fingerprint(integer), Profile.INTEGER, search)
    codec = load_float(path)
    search = latent_search(quantizer, model_description(path), name)
    return ImageCoder(CodingFloatCodec(codec), float_fingerprint(codec), Profile.FLOAT, search)


def latent_search(quantizer: str, description: dict[str, Any], name: str) -> LatentSearch | None:
    """The encoder's search for levels, None for plain rounding. Raises `UsageError`."""
    if quantizer == "uniform":
        return None
    if quantizer != "rdoq":
        raise UsageError(f"quantizer must be uniform or rdoq, got {quantizer!r}")
    gains, lambda_ = description.get("latent_gains"), description.get("lambda")
    if not isinstance(gains, list) or lambda_ is None:
        raise UsageError(
            f"{name} does not carry latent gains and lambda; quantize it again with this release"
        )
    return Rdoq(np.array(gains, np.float64), float(lambda_))


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
