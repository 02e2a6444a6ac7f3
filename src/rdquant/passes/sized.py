"""Files of a wanted size: what a plan of whole widths leaves over, fractions of a bit take up.

A width of the coded format says how coarse the steps of a layer are, so it need not be whole. All planned
layers get the same fraction of a bit more or less, until the model file, measured, has at most the wanted
bytes and at least `CLOSE` of them. Searches that move weights afterwards change what these take, so the file
is measured again at their end, and they run again on slightly narrower ones if they have to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ..codec import Codec
from ..errors import CalibrationError
from ..files.integer_models import file_bytes
from .calibration import Calibration
from .config import QuantizeConfig
from .convert import to_integer
from .formats import CODED_BITS
from .mixing import Progress
from .rdo import Trace

#: share of the wanted bytes that a file has at least, and that the conversion aims at; least width of a layer
CLOSE, AIM, LEAST_BITS = 0.99, 0.996, 2.0
#: conversions that are measured, and whole searches
CONVERSIONS, SEARCHES = 8, 4


def shifted(bits: Mapping[str, float], shift: float) -> dict[str, float]:
    """Widths with a fraction of a bit more, or less, within what the coded format has."""
    return {n: round(min(max(b + shift, LEAST_BITS), float(CODED_BITS)), 3) for n, b in bits.items()}


def quantize_to_size(
    make: Callable[[QuantizeConfig], tuple[Codec, Trace]],
    prepared: tuple[Codec, Calibration],
    config: QuantizeConfig,
    target: int,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Codec, Trace]:
    """What ``make`` makes of ``config``, its ``layer_bits`` so shifted that the file has at most ``target``
    bytes.

    It has at least `CLOSE` of them, unless every layer has the most bits of the coded format. ``prepared``:
    what ``make`` starts from; ``about``: goes into the file's description. Raises `CalibrationError` where
    even the fewest bits are too many, besides what ``make`` raises.
    """
    planned = config.layer_bits

    def at(shift: float) -> QuantizeConfig:
        return dataclasses.replace(config, layer_bits=shifted(planned, shift))

    def converted(shift: float) -> int:
        return file_bytes(to_integer(*prepared, at(shift), dict(about or {}))[0])

    aim, low = AIM * target, -float(CODED_BITS)
    most = max(CODED_BITS - b for b in planned.values())
    for attempt in range(SEARCHES):
        shift = _solve(converted, aim, low, most)
        integer, trace = make(at(shift))
        size = file_bytes(integer)
        if progress:
            progress(attempt + 1, SEARCHES, f"{size} bytes, {target} wanted")
        if size <= target and (size >= CLOSE * target or shift >= most):
            return integer, trace
        if shift <= low:
            break
        aim *= AIM * target / size
    if size <= target:
        return integer, trace
    raise CalibrationError(f"the file takes {size} bytes, {target} are wanted; allocate for fewer, or more")


def _solve(size: Callable[[float], int], aim: float, low: float, high: float) -> float:
    """The shift whose ``size(shift)`` is just below ``aim``: false position within falling brackets."""
    shift, best = 0.0, low
    ends: dict[bool, tuple[float, float] | None] = {False: None, True: None}
    for _ in range(CONVERSIONS):
        got = size(shift)
        ends[got > aim] = (shift, got)
        if got <= aim:
            best = max(best, shift)
        if (
            aim * (2 * AIM - 1) <= got <= aim
            or (shift >= high and got <= aim)
            or (shift <= low and got > aim)
        ):
            return shift
        below, above = ends[False], ends[True]
        if below and above:
            share = (aim * (1 + AIM) / 2 - below[1]) / (above[1] - below[1])
            shift = below[0] + min(max(share, 0.05), 0.95) * (above[0] - below[0])
        else:  # half a bit a step, in the direction that is wanted
            shift = min(max(shift + (-0.5 if above else 0.5), low), high)
    return best
