"""Quantizing the networks: ranges from calibration pictures, integers out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..codecs import FloatCodec
from ..integer import IntegerCodec
from .calibration import load_calibration, observe
from .config import RANGE_RULES, QuantizeConfig, RangeRule
from .convert import to_integer
from .prepare import prepare

__all__ = [
    "RANGE_RULES",
    "QuantizeConfig",
    "RangeRule",
    "load_calibration",
    "observe",
    "prepare",
    "quantize",
    "to_integer",
]


def quantize(
    codec: FloatCodec,
    pictures: list[np.ndarray],
    config: QuantizeConfig | None = None,
    description: dict[str, Any] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> IntegerCodec:
    """Calibrate on ``pictures`` (``(H, W, 3)`` uint8 each) and convert.

    Raises `CalibrationError` for unusable pictures, `BadModel` for layers without an integer form.
    """
    config = config or QuantizeConfig()
    codec, seen = prepare(codec, pictures, config, progress)
    return to_integer(codec, seen, config, description)[0]
