"""A model by path, zoo name or fingerprint, ready to code pictures."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import zoo
from .codec import Codec
from .coder import ImageCoder
from .errors import BadModel, ModelMismatch, UnknownModel, UsageError
from .files.container import Profile
from .files.integer_models import integer_fingerprint, load_integer
from .files.model_file import model_description, model_kind
from .latents.coding import QUANTIZERS, LatentCoding, TrellisCoding, encoder_coding
from .latents.refine import COHERENCE, DISTORTION_WEIGHT, Refinement, rounds_of
from .lazy import extras
from .quality import DEFAULT_QUALITY, LAMBDAS, at, described_at, hundredths

#: in a model's description: the quantizer that it was trained for, with its "step" and "coherence", and with
#: effort "refined_coherence"
LATENTS = "latents"
#: what an integer model says that its parent said
_CARRIED = ("lambda", "latent_gains", LATENTS, LAMBDAS)
#: qualities of which a coder keeps the networks made ready
KEPT_QUALITIES = 8


class QuantizerMismatch(UserWarning):
    """A model encodes with another latent quantizer than it was retrained for."""


def open_coder(
    name: str,
    quantizer: str | None = None,
    step: float | None = None,
    effort: int = 0,
    quality: float | None = None,
) -> ImageCoder:
    """A coder for a float or integer model. ``quantizer``: how it quantizes latents when encoding, by
    default as it was retrained for, else plainly; ``step``: of TCQ, in steps of plain rounding; ``effort``:
    0..3, how long the encoder refines levels (`rdquant.latents.refine`). ``quality``: 1..100, of models for
    many rates; also ``NAME@QUALITY``.

    Raises `UnknownModel`, `BadModel`, and `UsageError` for a quantizer that the model cannot have.
    """
    if "@" in name and not Path(name).is_file():
        name, _, text = name.rpartition("@")
        try:
            quality = float(text)
        except ValueError:
            raise UsageError(f"{text!r} is no quality: what follows @ must be 1..100") from None
    path, chosen = zoo.model_path(name), None if quality is None else hundredths(quality)
    if model_kind(path) == "integer":
        codec = load_integer(path)
        own = integer_fingerprint(codec)
        return _coder(codec, own, codec.description, name, quantizer, step, effort, chosen)
    # architectures and torch.fx, which integer models do without
    with extras():
        from .files.float_models import float_fingerprint, load_float
        from .graph.capture import capture

    parent = load_float(path)
    own, description = float_fingerprint(parent), model_description(path)
    return _coder(capture(parent), own, description, name, quantizer, step, effort, chosen)


def coder_of(
    codec: Codec, quantizer: str | None = None, step: float | None = None, effort: int = 0
) -> ImageCoder:
    """The same for a codec in memory. What a float codec (`rdquant.graph.capture`) writes has zeros for a
    fingerprint: it is for measuring.
    """
    name = integer_fingerprint(codec) if codec.integer else bytes(8)
    return _coder(codec, name, codec.description, codec.architecture, quantizer, step, effort)


def _coder(
    codec: Codec,
    fingerprint: bytes,
    description: dict[str, Any],
    name: str,
    quantizer: str | None,
    step: float | None,
    effort: int,
    quality: int | None = None,
) -> ImageCoder:
    def coder(codec: Codec, description: dict[str, Any], quality: int | None = None) -> ImageCoder:
        coding = latent_coding(quantizer, codec, description, name, step)
        rounds = rounds_of(effort)
        refinement = _refinement(rounds, coding, codec, description, name) if rounds else None
        profile = Profile.INTEGER if codec.integer else Profile.FLOAT
        others = None if quality is None else at_quality
        return ImageCoder(codec, fingerprint, profile, coding, refinement, quality, others)

    @functools.lru_cache(maxsize=KEPT_QUALITIES)
    def at_quality(quality: int) -> ImageCoder:
        return coder(at(codec, quality), described_at(codec, description, quality), quality)

    if quality is None and not codec.gains:
        return coder(codec, description)
    return at_quality(DEFAULT_QUALITY if quality is None else quality)


def latent_coding(
    quantizer: str | None,
    codec: Codec,
    description: dict[str, Any],
    name: str,
    step: float | None = None,
) -> LatentCoding:
    """An encoder's `LatentCoding` by the name of its quantizer, or the one that the model was retrained for.

    Raises `UsageError` and `BadModel`. Warns `QuantizerMismatch` for another one than the model was
    retrained for.
    """
    own = _retrained_for(description, name)
    quantizer = quantizer or own.get("quantizer", "uniform")
    settings = own if own.get("quantizer") == quantizer else {}
    if own and not settings:
        warnings.warn(
            QuantizerMismatch(f"{name} was retrained for {own['quantizer']}, and encodes with {quantizer}"),
            stacklevel=2,
        )
    gains = lambda_ = None
    if quantizer in QUANTIZERS[1:]:
        gains, lambda_ = _gains(description, codec.M, name)
    if str(quantizer).startswith("tcq") and codec.prior.no_trellis:
        raise UsageError(f"{quantizer} cannot code the latents of {name}: {codec.prior.no_trellis}")
    return encoder_coding(
        quantizer,
        gains,
        lambda_,
        step if step is not None else settings.get("step"),
        settings.get("coherence"),
        codec.quantizer.unit,
    )


def carried(parent: Mapping[str, Any]) -> dict[str, Any]:
    """Of a float model's description, what its integers' takes over: rates, and how latents are coded."""
    return {name: parent[name] for name in _CARRIED if name in parent}


def _retrained_for(description: dict[str, Any], name: str) -> dict[str, Any]:
    """What a model says of its own quantizer, checked; empty if it says nothing. Raises `BadModel`."""
    own = description.get(LATENTS, {})
    keys = ("step", "coherence", "refined_coherence")
    numbers = [own.get(key) for key in keys] if isinstance(own, dict) else []
    fine = all(v is None or (type(v) in (int, float) and 0 < v < 1e6) for v in numbers)
    if not isinstance(own, dict) or not fine or (own and own.get("quantizer") not in QUANTIZERS):
        raise BadModel(f"{name} describes the quantizer of its latents as {own!r}")
    return own


def _gains(description: dict[str, Any], channels: int, name: str) -> tuple[np.ndarray, float]:
    """Latent gains ``(M,)`` and lambda of a model. Raises `UsageError` without them, `BadModel` for lies."""
    gains, lambda_ = description.get("latent_gains"), description.get("lambda")
    if gains is None or lambda_ is None:
        raise UsageError(
            f"{name} does not say its lambda and latent gains, which RDOQ, trellises and effort need: "
            "quantize it again with --lambda (in Python: lambda_=)"
        )
    numbers = [*gains, lambda_] if isinstance(gains, list) else []
    fine = all(type(v) in (int, float) and 0 <= v < np.inf for v in numbers)
    if len(numbers) != channels + 1 or not fine or not lambda_ > 0:
        raise BadModel(f"{name} needs {channels} latent gains and a lambda, none negative")
    return np.array(gains, np.float64), float(lambda_)


def _refinement(
    rounds: int,
    coding: LatentCoding,
    codec: Codec,
    description: dict[str, Any],
    name: str,
) -> Refinement:
    """Of the levels of ``coding``; those of plain rounding are refined by RDOQ's search."""
    gains, lambda_ = _gains(description, codec.M, name)
    lambda_ *= DISTORTION_WEIGHT
    quantizer, unit, step = "rdoq", codec.quantizer.unit, None
    if isinstance(coding, TrellisCoding):
        quantizer, step = coding.quantizer.name.lower(), coding.step / unit
    coherence = _retrained_for(description, name).get("refined_coherence") or COHERENCE
    search = encoder_coding(quantizer, gains, lambda_, step, coherence, unit)
    return Refinement(search, gains, lambda_, rounds, coherence)


def coder_for(fingerprint: bytes) -> ImageCoder:
    """The zoo model with this fingerprint. Raises `UnknownModel`."""
    path = zoo.by_fingerprint(fingerprint)
    if path is None:
        raise UnknownModel(
            f"the file needs model {fingerprint.hex()}, which is not in the zoo; name its file with -m (in "
            "Python: model=)"
        )
    coder = open_coder(str(path))
    if coder.fingerprint != fingerprint:
        raise ModelMismatch(fingerprint.hex(), coder.fingerprint.hex())
    return coder
