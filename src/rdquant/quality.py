"""One model, many rates: where its gains stand for a quality.

A quality is 1..100, and in files a whole number of hundredths (`rdquant.files.container`). It is a position
of the model's `rdquant.graph.operations.Gain`, at the end of the analysis and at the start of the synthesis;
lambda rises with it geometrically. A codec is at one quality at a time; `at` gives it at another.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .codec import Codec
from .errors import BadModel, UsageError
from .files.container import LEAST_QUALITY, MOST_QUALITY

#: in a model's description: lambda of the lowest and of the highest quality
LAMBDAS = "lambdas"
#: in hundredths
DEFAULT_QUALITY = 5000
#: of calibration: pictures after which qualities begin again
SPREAD = 8
ONE_RATE = (
    "this model has one rate: leave quality and target sizes out, or take a model of many rates, such as "
    "rd-s-w8a8"
)
UNITS = {"": 1, "B": 1, "kB": 1000, "MB": 1_000_000}


def bytes_in(text: str, known: str = "800kB or 800000") -> int:
    """What ``800kB``, ``1.5MB`` or ``800000`` mean. Raises `UsageError`, which says what is ``known``."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(B|kB|MB|)\s*", text)
    if not match or not (size := int(float(match[1]) * UNITS[match[2]])):
        raise UsageError(f"a size is like {known}, got {text!r}")
    return size


def check_target(quality: float | None, bpp: float | None, size: float | None) -> None:
    """Raises `UsageError` unless at most one is given, of targets a positive number."""
    if sum(v is not None for v in (quality, bpp, size)) > 1:
        raise UsageError("give one of quality, target bpp and target size")
    for name, value in (("bpp", bpp), ("size", size)):
        if value is not None and not value > 0:
            raise UsageError(f"the target {name} must be positive, got {value}")


def hundredths(quality: float) -> int:
    """Of a quality as users say it. Raises `UsageError`."""
    if not LEAST_QUALITY <= 100 * quality <= MOST_QUALITY:
        raise UsageError(f"quality must be in 1..100, got {quality}")
    return round(100 * quality)


def position(quality: int, last: int) -> int:
    """Of gains, at a quality in hundredths; the nearest, in whole numbers."""
    span = MOST_QUALITY - LEAST_QUALITY
    return (2 * (quality - LEAST_QUALITY) * last + span) // (2 * span)


def at(codec: Codec, quality: int) -> Codec:
    """The codec at a quality in hundredths. Raises `UsageError` for a model of one rate."""
    gains = codec.gains
    if not gains:
        raise UsageError(ONE_RATE)
    networks = dict(codec.networks)
    for name, (node, gain) in gains.items():
        networks[name] = networks[name].replaced({node: gain.at(position(quality, gain.last))})
    return dataclasses.replace(codec, networks=networks)


def at_spread(codec: Codec, i: int) -> Codec:
    """At the quality of `spread`. Itself, if it has none."""
    return at(codec, spread(i)) if codec.gains else codec


def spread(i: int) -> int:
    """Quality of the i-th calibration picture, in hundredths: from end to end, in turn."""
    return LEAST_QUALITY + (MOST_QUALITY - LEAST_QUALITY) * (i % SPREAD) // (SPREAD - 1)


def gain_power(codec: Codec, quality: int) -> np.ndarray:
    """``(M,)`` float64: what a squared error of y costs at a quality, in what it costs where ``codec`` is."""
    if not codec.gains:
        return np.ones(codec.M)
    _, own = codec.gains["synthesis"]
    there = own.at(position(quality, own.last))
    found: np.ndarray = np.asarray(there.factors() / own.factors()) ** 2
    return found


def power_at_spread(codec: Codec, i: int) -> np.ndarray:
    """`gain_power` of `at_spread`."""
    return gain_power(codec, spread(i))


def described_at(codec: Codec, description: dict[str, Any], quality: int) -> dict[str, Any]:
    """A model's description with lambda and latent gains of a quality.

    Raises `BadModel` for lies.
    """
    found, ends = dict(description), description.get(LAMBDAS)
    if ends is not None:
        numbers = ends if isinstance(ends, list) else []
        if len(numbers) != 2 or not all(type(v) in (int, float) and 0 < v < 1e6 for v in numbers):
            raise BadModel(f"lambdas must be two positive numbers, got {ends!r}")
        share = (quality - LEAST_QUALITY) / (MOST_QUALITY - LEAST_QUALITY)
        found["lambda"] = ends[0] * (ends[1] / ends[0]) ** share
    gains = description.get("latent_gains")
    if isinstance(gains, list) and len(gains) == codec.M:
        power = gain_power(codec, quality).tolist()
        pairs = zip(gains, power, strict=True)
        found["latent_gains"] = [g * p if isinstance(g, int | float) else g for g, p in pairs]
    return found


def described_at_spread(codec: Codec, description: dict[str, Any], i: int) -> dict[str, Any]:
    """`described_at` of `at_spread`."""
    return described_at(codec, description, spread(i)) if codec.gains else description


def for_size(encode: Callable[[int], bytes], most: float) -> bytes:
    """The largest file of at most ``most`` bytes that ``encode(quality in hundredths)`` can make.

    By false position on the logarithm of true sizes (Illinois method), some 6 encodings. Stops within 0.5 %
    below. Raises `UsageError` if even the lowest quality takes more.
    """
    low, high = LEAST_QUALITY, MOST_QUALITY
    least = encode(low)
    if len(least) > most:
        raise UsageError(f"{most:.0f} bytes are too few: at the lowest quality it takes {len(least)}")
    best = encode(high)
    if len(best) <= most:
        return best
    below, above = (math.log(len(d) / most) for d in (least, best))
    best, side = least, 0
    while high - low > 1 and len(best) < 0.995 * most:
        guess = low + round((high - low) * below / (below - above)) if above != below else (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        data = encode(guess)
        off = math.log(len(data) / most) or -1e-9
        if off <= 0:
            low, below, best = guess, off, data
            above = above / 2 if side == -1 else above
            side = -1
        else:
            high, above = guess, off
            below = below / 2 if side == 1 else below
            side = 1
    return best
