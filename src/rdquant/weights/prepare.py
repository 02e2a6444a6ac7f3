"""From a float codec and pictures to what conversions start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..codecs import FloatCodec
from ..errors import CalibrationError
from ..files.atomic import atomic_write
from ..latents.gains import latent_gains
from .calibration import Calibration, observe
from .config import QuantizeConfig
from .mixing import Mixing, Progress, find_mixings, insert

#: of the calibration pictures, how many measure the synthesis gain
GAIN_PICTURES = 8


def prepare(
    codec: FloatCodec,
    pictures: list[np.ndarray],
    config: QuantizeConfig,
    progress: Progress | None = None,
    store: Path | None = None,
) -> tuple[FloatCodec, Calibration]:
    """The codec as it is to be quantized, and what was observed of it: what conversions start from.

    ``pictures``: ``(H, W, 3)`` uint8. ``store``: a file of mixings, read if it exists and else written: a
    resumed run must have the same. Raises `CalibrationError` for no pictures, or such that break the codec.
    """
    if not pictures:
        raise CalibrationError("no calibration pictures")
    gains = torch.from_numpy(latent_gains(codec, pictures[:GAIN_PICTURES]))
    if store is not None and store.exists():
        state = torch.load(store, weights_only=True)
        found = {k: Mixing(**v) for k, v in state["mixings"].items()}
        sensitivities = state["sensitivities"]
    else:
        found, sensitivities = find_mixings(codec, pictures, config, gains, progress)
        state = {k: {f: getattr(m, f) for f in Mixing.FIELDS} for k, m in found.items()}
        if store is not None:
            with atomic_write(store) as handle:
                torch.save({"mixings": state, "sensitivities": sensitivities}, handle)
    codec = insert(codec, found)

    def observed(done: int, total: int) -> None:
        if progress:
            progress(done, total, "observe")

    seen = observe(codec, pictures, observed)
    seen.sensitivities, seen.gains = sensitivities, gains
    return codec, seen
