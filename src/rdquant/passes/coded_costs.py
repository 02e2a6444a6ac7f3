"""What pictures cost a twin with latents as its files hold them, with gradients for all networks.

A codec whose levels are the nearest (and one with serial contexts has no others) is learned from as parents
are: true levels for the synthesis, noise for the rate. If an encoder searches for levels, the search itself
chooses them here, and bits are those of the coder's tables (`rdquant.latents.learning`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..latents.coding import LatentCoding, ScalarCoding
from ..latents.learning import InTraining, LevelBits, true_levels
from .twin import Costs, Twin


class CodedCosts:
    """``pixels: (B, 3, H, W)`` holding 0..255, and which of ``codecs`` -> `Costs`.

    ``codecs``: the integer codec at its qualities; ``codings``: what an encoder chooses levels with at each.
    """

    def __init__(self, twin: Twin, codecs: list[Codec], codings: list[LatentCoding]) -> None:
        self.twin, self.codecs, self.codings = twin, codecs, codings
        self._searching = [InTraining.of(codec, self._run) for codec in codecs]
        self._bits = LevelBits(codings[0], codecs[0])

    @torch.no_grad()
    def _run(self, name: str, *inputs: np.ndarray, valid: bool = False) -> np.ndarray:
        given = (torch.from_numpy(t.astype(np.float32)) for t in inputs)
        return _integers(self.twin.run(name, *given, valid=valid))

    def __call__(self, pixels: Tensor, which: int = 0) -> Costs:
        twin, coding = self.twin, self.codings[which]
        twin.take_gains(self.codecs[which])
        if isinstance(coding, ScalarCoding) and coding.search is None:
            return twin(pixels, noise=True)
        prior = twin.integer.prior
        y = twin.run("analysis", pixels)
        z_hat, bits_z = twin.hyper(twin.run("hyper_analysis", y), noise=True)
        features = prior.begin(twin.run, z_hat)
        levels, found, parts = true_levels(self._searching[which], _integers(features), _integers(y), coding)
        y_hat = y + (torch.from_numpy(found.astype(np.float32)) - y).detach()
        scales, means = prior.all_parameters(twin.run, features, y_hat)
        means = torch.zeros_like(y) if means is None else means
        bits_y = self._bits(coding, levels, parts, y, scales, means).sum()
        return Costs(bits_y, bits_z, torch.mean((twin.run("synthesis", y_hat) - pixels) ** 2))


def _integers(values: Tensor) -> np.ndarray:
    return np.rint(values.detach().numpy()).astype(np.int32)
