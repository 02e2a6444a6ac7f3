"""Candidates for the zoo's small member: names, classes, widths."""

from __future__ import annotations

from typing import Any

from .base import AllRatesCodec
from .depthwise import Pyramid, Unshuffle8
from .mean_scale import MeanScale, MeanScaleContext

CLASSES: dict[str, type[AllRatesCodec]] = {
    c.architecture: c for c in (MeanScale, MeanScaleContext, Unshuffle8, Pyramid)
}
#: name -> (architecture, constructor's arguments)
CANDIDATES: dict[str, tuple[str, dict[str, Any]]] = {
    "a": ("mean-scale", {"N": 64, "M": 96}),
    "b": ("mean-scale-context", {"N": 64, "M": 128, "width": 128, "last": 48}),
    "c": (
        "unshuffle8",
        {"N": 64, "M": 256, "hyper": 128, "width": 128, "encoder": 6, "decoder": 6},
    ),
    "d": (
        "pyramid",
        {
            "N": 64,
            "M": 160,
            "hyper": 128,
            "widths": [64, 128, 192],
            "encoder": [2, 4, 3],
            "decoder": [1, 3, 3],
        },
    ),
}


def build(architecture: str, widths: dict[str, Any]) -> AllRatesCodec:
    """A codec with fresh weights."""
    return CLASSES[architecture](**widths)


def candidate(name: str) -> AllRatesCodec:
    return build(*CANDIDATES[name])
