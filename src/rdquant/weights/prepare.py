"""From a float codec and pictures to what conversions start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..codecs import FloatCodec
from ..files.atomic import atomic_write
from .calibration import Calibration, observe
from .config import QuantizeConfig
from .mixing import Mixing, find_mixings, insert


def prepare(
    codec: FloatCodec,
    pictures: list[np.ndarray],
    config: QuantizeConfig,
    progress: Callable[[int, int], None] | None = None,
    store: Path | None = None,
) -> tuple[FloatCodec, Calibration]:
    """The codec as it is to be quantized, and what was observed of it: what conversions start from.

    ``store``: a file of mixings, read if it exists and else written: a resumed run must have the same.
    """
    if store is not None and store.exists():
        state = torch.load(store, weights_only=True)
        found = {k: Mixing(**v) for k, v in state["mixings"].items()}
        sensitivities = state["sensitivities"]
    else:
        found, sensitivities = find_mixings(codec, pictures, config)
        state = {k: {f: getattr(m, f) for f in Mixing.FIELDS} for k, m in found.items()}
        if store is not None:
            with atomic_write(store) as handle:
                torch.save({"mixings": state, "sensitivities": sensitivities}, handle)
    codec = insert(codec, found)
    seen = observe(codec, pictures, progress)
    seen.sensitivities = sensitivities
    return codec, seen
