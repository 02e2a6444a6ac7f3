"""A model by path, zoo name or fingerprint, ready to code pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import zoo
from .coder import ImageCoder
from .errors import ModelMismatch, UnknownModel, UsageError
from .files.container import MOST_STEP, Profile, Quantizer
from .files.float_models import float_fingerprint, load_float
from .files.integer_models import integer_fingerprint, load_integer
from .files.model_file import model_description, model_kind
from .floatcodec import CodingFloatCodec
from .integer import IntegerCodec
from .latents.coding import TCQ_STEP, LatentCoding, ScalarCoding, TrellisCoding
from .latents.rdoq import Rdoq

QUANTIZERS = ("uniform", "rdoq", "tcq4", "tcq8")


def model_path(name: str) -> Path:
    """A zoo name or a path -> the model file. Raises `UnknownModel`."""
    if (path := zoo.find(name)) is not None:
        return path
    if Path(name).is_file():
        return Path(name)
    raise UnknownModel(f"{name!r} is neither a file nor a zoo model; `rdquant zoo` lists those")


def open_coder(name: str, quantizer: str = "uniform", step: float | None = None) -> ImageCoder:
    """A coder for a float or integer model. ``quantizer``: how it quantizes latents when encoding; ``step``:
    of TCQ, in steps of plain rounding.

    Raises `UnknownModel`, `BadModel`, and `UsageError` for a quantizer that the model cannot have.
    """
    path = model_path(name)
    codec: IntegerCodec | CodingFloatCodec
    if model_kind(path) == "integer":
        codec = integer = load_integer(path)
        fingerprint, profile, description = integer_fingerprint(integer), Profile.INTEGER, integer.description
    else:
        parent = load_float(path)
        codec, profile = CodingFloatCodec(parent), Profile.FLOAT
        fingerprint, description = float_fingerprint(parent), model_description(path)
    coding = latent_coding(quantizer, codec, description, name, step)
    return ImageCoder(codec, fingerprint, profile, coding)


def latent_coding(
    quantizer: str,
    codec: IntegerCodec | CodingFloatCodec,
    description: dict[str, Any],
    name: str,
    step: float | None = None,
) -> LatentCoding:
    """An encoder's `LatentCoding` by the name of its quantizer. Raises `UsageError`."""
    if quantizer not in QUANTIZERS:
        raise UsageError(f"quantizer must be one of {', '.join(QUANTIZERS)}, got {quantizer!r}")
    if step is not None and not quantizer.startswith("tcq"):
        raise UsageError(f"only TCQ has a step, got {step} with {quantizer}")
    if quantizer == "uniform":
        return ScalarCoding()
    gains, lambda_ = description.get("latent_gains"), description.get("lambda")
    if not isinstance(gains, list) or lambda_ is None:
        raise UsageError(
            f"{name} does not carry latent gains and lambda; quantize it again with this release"
        )
    if quantizer == "rdoq":
        return ScalarCoding(Rdoq(np.array(gains, np.float64), float(lambda_)))
    if not codec.has_hyperprior:
        raise UsageError(f"{quantizer} needs a hyperprior, and {name} has none")
    units = round((TCQ_STEP if step is None else step) * codec.quantizer.unit)
    if not 1 <= units <= MOST_STEP:
        raise UsageError(f"step must be {1 / codec.quantizer.unit} or more, got {step}")
    kind = Quantizer[quantizer.upper()]
    return TrellisCoding(kind, units, np.array(gains, np.float64), float(lambda_))


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
