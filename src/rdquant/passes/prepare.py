"""From a float codec and pictures to what conversions start from."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import torch

from ..codec import Codec
from ..errors import CalibrationError, UsageError
from ..files.atomic import atomic_write
from ..latents.gains import GAIN_PICTURES, latent_gains
from .calibration import Calibration, extremes, observe
from .centring import centrable, centred
from .config import QuantizeConfig
from .flow import networks_in_order
from .mixed import Mixing, insert
from .mixing import LATENT, Progress, doubled_of, find_mixings
from .streams import find_streams, insert_streams

#: so many show a codec of every rate enough: each picture is seen at one quality
ENOUGH_PICTURES = 32
#: and fewer than these leave ranges of any codec to chance
LEAST_PICTURES = 8


class FewPictures(UserWarning):
    """A codec is calibrated with so few pictures that others, or some qualities, will suffer."""


def prepare(
    codec: Codec,
    pictures: list[np.ndarray],
    config: QuantizeConfig,
    progress: Progress | None = None,
    store: Path | None = None,
) -> tuple[Codec, Calibration]:
    """The float codec as it is to be quantized, and what was observed of it: what conversions start from.

    ``pictures``: ``(H, W, 3)`` uint8. ``store``: a file of mixings, read if it exists and else written: a
    resumed run must have the same. Raises `CalibrationError` for no pictures, or such that break the codec,
    and `UsageError` for a scope that names no network. Warns `FewPictures`.
    """
    if not pictures:
        raise CalibrationError("no calibration pictures")
    if len(pictures) < (ENOUGH_PICTURES if codec.gains else LEAST_PICTURES):
        kind, enough = ("every", ENOUGH_PICTURES) if codec.gains else ("one", 2 * LEAST_PICTURES)
        warnings.warn(
            f"{len(pictures)} calibration pictures for a codec of {kind} rate; {enough} are advised",
            FewPictures,
            stacklevel=2,
        )
    if unknown := sorted(set(config.scope) - set(codec.networks)):
        known = ", ".join(networks_in_order(codec))
        raise UsageError(f"scope names {', '.join(unknown)}; the codec's networks are {known}")
    gains = torch.from_numpy(latent_gains(codec, pictures[:GAIN_PICTURES]))
    if store is not None and store.exists():
        state = torch.load(store, weights_only=True)
        if "streams" not in state:
            raise CalibrationError(f"{store} is of an older release; use a new folder")
        found = {k: Mixing(**v) for k, v in state["mixings"].items()}
        if any(m.doubled != doubled_of(config, m.levels) for k, m in found.items() if k != LATENT):
            raise CalibrationError(f"{store} is of a run that doubled other channels; use a new folder")
        sensitivities, streams = state["sensitivities"], state["streams"]
    else:
        found, sensitivities = find_mixings(codec, pictures, config, gains, progress)
        streams = find_streams(insert(codec, found), pictures, sensitivities, config, progress)
        if store is not None:
            fields = [f.name for f in dataclasses.fields(Mixing)]
            state = {k: {f: getattr(m, f) for f in fields} for k, m in found.items()}
            with atomic_write(store) as handle:
                torch.save({"mixings": state, "sensitivities": sensitivities, "streams": streams}, handle)
    codec, sensitivities = insert_streams(insert(codec, found), streams, sensitivities)

    def observed(done: int, total: int) -> None:
        if progress:
            progress(done, total, "observe")

    if config.mixing != "none" and any(centrable(graph) for graph in codec.networks.values()):
        codec = centred(codec, extremes(codec, pictures[:ENOUGH_PICTURES], observed))
    seen = observe(codec, pictures, observed)
    seen.sensitivities, seen.gains, seen.mixings = sensitivities, gains, found
    return codec, seen
