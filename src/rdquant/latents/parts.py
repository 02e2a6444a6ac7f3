"""Latents to symbols and back, part after part: one loop for every prior and quantizer, on both sides.

A part's tables and means follow from the parts before it, as they were decoded; so an encoder decides the
levels of a part knowing what decoders will have made of the earlier ones, and nothing of the later ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..priors import Part
from .coding import LatentCoding, ScalarCoding, coded_with

if TYPE_CHECKING:
    from ..codec import Codec

#: part, table indexes, means -> levels; ``(B, C, 1, n)`` each
Choose = Callable[[Part, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Coded:
    """Pictures as symbols, and all that was computed on the way. y and z are in the codec's units."""

    y: np.ndarray  #: (B, M, H/s, W/s) for the codec's stride s, as the analysis gave it
    z: np.ndarray | None  #: before rounding; None without a hyperprior, as all of z
    z_symbols: np.ndarray | None  #: int32
    z_hat: np.ndarray | None
    features: np.ndarray | None  #: of `rdquant.codec.Codec.begin`
    parts: tuple[Part, ...]
    levels: np.ndarray  #: symbols of y, int32
    indexes: np.ndarray  #: int32, the table of each level (of TCQ, in quantizer 0)
    means: np.ndarray
    y_hat: np.ndarray

    def stream(self, coding: LatentCoding) -> tuple[np.ndarray, np.ndarray]:
        """Levels and their tables in the order of a file, int32 ``(K,)``. One picture."""
        taken = [(part.take(self.levels), part.take(self.indexes)) for part in self.parts]
        levels = np.concatenate([k.reshape(-1) for k, _ in taken])
        return levels, np.concatenate([coded_with(coding, k, t) for k, t in taken])


def walk(
    codec: Codec, features: np.ndarray | None, y_hat: np.ndarray, coding: LatentCoding, choose: Choose
) -> Iterator[tuple[Part, np.ndarray, np.ndarray, np.ndarray]]:
    """The loop: fills ``y_hat``, of `rdquant.codec.Codec.blank`. Yields part, levels, indexes and means."""
    for part, indexes, means in codec.conditions(features, y_hat, coding.spacing):
        levels = choose(part, indexes, means)
        part.put(coding.dequantize(codec, levels, means), y_hat)
        yield part, levels, indexes, means
        del levels, indexes, means  # the next part needs the room


def quantized(codec: Codec, pixels: np.ndarray, coding: LatentCoding | None = None) -> Coded:
    """``pixels: (B, 3, H, W)`` uint8, sides multiples of the codec's `downsampling`, or float in [0, 1] for a
    float codec -> what a file would hold of them. ``coding``: by default each level is the nearest.
    """
    return quantized_latent(codec, np.ascontiguousarray(codec.analysis(pixels)), coding)


def quantized_latent(codec: Codec, y: np.ndarray, coding: LatentCoding | None = None) -> Coded:
    """The same of what the analysis gave, ``y: (B, M, H/s, W/s)``."""
    z = z_symbols = z_hat = None
    if codec.prior.hyper:
        z = codec.hyper_analysis(y)
        z_symbols = codec.z_symbols(z)
        z_hat = codec.z_hat(z_symbols)
    empty = np.empty(0, np.int32)
    fresh = Coded(y, z, z_symbols, z_hat, codec.begin(z_hat), (), empty, empty, empty, empty)
    return requantized(codec, fresh, y, coding or ScalarCoding())


def requantized(codec: Codec, coded: Coded, aim: np.ndarray, coding: LatentCoding) -> Coded:
    """The same with levels that are to come near ``aim``, shaped as y."""
    b, _, h, w = aim.shape
    y_hat = codec.blank(b, h, w)
    levels, indexes = np.empty(y_hat.shape, np.int32), np.empty(y_hat.shape, np.int32)
    means = np.empty_like(y_hat)

    def choose(part: Part, tables: np.ndarray, around: np.ndarray) -> np.ndarray:
        return coding.levels(codec, part.take(aim), around, tables, part.channels)

    parts = []
    for part, *found in walk(codec, coded.features, y_hat, coding, choose):
        parts.append(part)
        for values, into in zip(found, (levels, indexes, means), strict=True):
            part.put(values, into)
    return dataclasses.replace(
        coded, parts=tuple(parts), levels=levels, indexes=indexes, means=means, y_hat=y_hat
    )
