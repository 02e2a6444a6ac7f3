"""The synthesis gain: what a squared error of one latent element does to the picture.

``gains[c]``: expected squared error of the whole picture (8-bit samples, summed) for an error of one in
one element of channel c. The diagonal of ``J^T J`` of the synthesis, estimated with random signs on the
pixels: ``E (J^T v)_i^2 = sum_p J_pi^2`` (Hutchinson's diagonal estimate). The synthesis is not linear, so
this is its gain around the latents of the pictures given, averaged over positions. It may be half as
large, or twice, around the next picture.
"""

from __future__ import annotations

import numpy as np
import torch

from ..codec import Codec
from ..errors import CalibrationError
from ..pixels import pad_to, to_batch
from .parts import quantized

#: that are enough: means of 8 were off by up to a half, of 32 by a fifth (rd-s, crops of 256x256)
GAIN_PICTURES = 32


def latent_gains(codec: Codec, pictures: list[np.ndarray], probes: int = 1, seed: int = 0) -> np.ndarray:
    """``(M,)`` float64, of a float codec, from ``pictures: (H, W, 3)`` uint8.

    Raises `CalibrationError` without pictures.
    """
    if not pictures:
        raise CalibrationError("no pictures to measure the synthesis gain on")
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(codec.M, dtype=torch.float64)
    for rgb in pictures:
        coded = quantized(codec, to_batch(pad_to(rgb, codec.downsampling)))
        y_hat = torch.from_numpy(coded.y_hat).requires_grad_(True)
        out = codec.networks["synthesis"].real(y_hat) * 255
        for k in range(probes):
            signs = torch.randint(0, 2, out.shape, generator=generator) * 2.0 - 1
            (g,) = torch.autograd.grad(out, y_hat, signs, retain_graph=k + 1 < probes)
            total += g.double().square().mean((0, 2, 3)) / (probes * len(pictures))
    return total.numpy()
