"""Quantizing the networks: each pass takes graphs and what pictures made flow through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..codec import Codec
from ..codecs.protocol import TrainedCodec
from ..graph.capture import capture
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
    codec: TrainedCodec,
    pictures: list[np.ndarray],
    config: QuantizeConfig | None = None,
    description: dict[str, Any] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Codec:
    """Calibrate on ``pictures`` (``(H, W, 3)`` uint8 each) and convert.

    Raises `CalibrationError` for unusable pictures, `BadModel` for operations without an integer form.
    """
    config = config or QuantizeConfig()
    captured, seen = prepare(capture(codec), pictures, config, progress)
    return to_integer(captured, seen, config, description)[0]
