"""Pictures side by side in as many bytes: ours, and a classical codec at the setting that comes nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..coder import ImageCoder
from ..errors import UsageError
from ..measure import ANCHORS, psnr


@dataclass(frozen=True)
class Version:
    """``label``: codec, bytes and dB. ``rgb``: ``(H, W, 3)`` uint8."""

    label: str
    rgb: np.ndarray


@dataclass(frozen=True)
class Matched:
    """Versions of one picture; the first is the original."""

    name: str
    versions: list[Version]


def matched(
    coder: ImageCoder, pictures: Sequence[tuple[str, np.ndarray]], anchors: Sequence[str] = ("jpeg", "webp")
) -> list[Matched]:
    """Each picture through the coder and through each anchor in at most as many bytes, or its fewest.

    Raises `UsageError` for an anchor that there is not, or that has no library here.
    """
    found = []
    for name, rgb in pictures:
        data = coder.encode(rgb)
        decoded = coder.decode(data)
        versions = [Version("original", rgb), _labelled("rdquant", decoded, len(data), rgb)]
        versions += [_nearest(anchor, rgb, len(data)) for anchor in anchors]
        found.append(Matched(name, versions))
    return found


def _nearest(name: str, rgb: np.ndarray, size: int) -> Version:
    if name not in ANCHORS:
        raise UsageError(f"unknown anchor {name!r}; known: {', '.join(ANCHORS)}")
    anchor = ANCHORS[name]
    low, high = anchor.scale
    best = anchor.encode(rgb, low)
    while high - low > anchor.grain:  # files grow with the setting
        middle = low + anchor.grain * max(1, round((high - low) / anchor.grain / 2))
        if middle >= high:
            break
        data = anchor.encode(rgb, middle)
        if len(data) <= size:
            low, best = middle, data
        else:
            high = middle
    return _labelled(name, anchor.decode(best), len(best), rgb)


def _labelled(codec: str, rgb: np.ndarray, size: int, original: np.ndarray) -> Version:
    bpp = 8 * size / original[..., 0].size
    return Version(f"{codec}, {size:,} bytes ({bpp:.2f} bpp), {psnr(original, rgb):.2f} dB", rgb)
