"""Encoder-side refinement: levels by what they do to this picture, for any decoder.

The searches of `rdquant.latents` judge a level by an expected error. Here the synthesis is asked: decode,
and take the gradient of the picture's true squared error. With the synthesis gain as its curvature, that
says where the error would be least: the target. The search's aim goes part of the way there, and the search
runs again. Errors of neighbours that would add up are then corrected instead of feared, so that the search
may take an error nearly as cheaply as it is alone (`COHERENCE`). At first the aim overshoots, which shakes
levels out of where the first search left them, and then less and less. The cheapest levels of all rounds are
kept, by D of the synthesis and R of the coder's own tables, so that no effort makes a picture worse by
`DISTORTION_WEIGHT * lambda * D + R`.

The purpose is that of SGA (Yang, Bamler, Mandt 2020). That relaxes the rounding at random and takes thousands
of rounds; this keeps the true quantizer in the loop, which a trellis needs, and takes a few. z is not
refined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from ..lazy import torch
from .coding import LatentCoding
from .parts import Coded, requantized

if TYPE_CHECKING:
    from ..codec import Codec

#: rounds by `--effort`
EFFORTS = (0, 8, 16, 32)
#: how far errors count more than the synthesis gain says, for models that do not say it themselves; the
#: share of its way to the target that the aim goes in a round; and how far the target lies beyond the
#: least error, in the first round and in the last, falling geometrically. Chosen on the val split, by J
#: at lambda 0.0130
COHERENCE, SHARE, OVERSHOOT = 1.3, 0.18, (2.0, 0.6)
#: how much more an error counts than lambda says. With lambda itself, refinement would spend its gain on
#: rate and give away PSNR that a higher quality buys back for less. Chosen on the val split, by rate at
#: equal PSNR of an earlier rd-s with RDOQ and six rounds (1: -2.6 % against four rounds, 1.4: -4.1, 1.5:
#: -4.3, 1.8: -4.5), of mean-scale-s with TCQ8 (1: -2.2, 1.3: -2.9, 1.6: -2.9)
DISTORTION_WEIGHT = 1.5
#: the gradient is taken of so many pixels at a time: half a kilobyte each for activations
PIXELS = 2**21
#: rows of the latent on either side of a strip, at least: its pixels depend on 2 in the zoo's codecs
HALO = 4


@dataclass(frozen=True, eq=False)
class Refinement:
    """``coding``: an encoder's, whose search takes errors nearly as they are alone. ``lambda_``: of search
    and judgement, the codec's times `DISTORTION_WEIGHT`. ``coherence``: of errors, as the search has it.
    """

    coding: LatentCoding
    gains: np.ndarray
    lambda_: float
    rounds: int
    coherence: float = COHERENCE

    def best(self, codec: Codec, pixels: np.ndarray, size: tuple[int, int], first: Coded) -> Coded:
        """The cheapest symbols found, ``first`` among them.

        ``pixels: (1, 3, H, W)`` padded; ``size``: height and width of what counts.
        """
        gains = self.gains.astype(np.float32) / np.float32(codec.quantizer.step**2)
        gains = np.maximum(gains, gains.max() * np.float32(1e-6)).reshape(1, -1, 1, 1)
        aim, tables, best, least = first.y.astype(np.float32), self.coding.tables(codec), first, np.inf
        now = first
        for i in range(self.rounds + 1):
            reached = now.y_hat.astype(np.float32)
            error, slope = squared_error(codec, reached, pixels, size, slope=i < self.rounds)
            cost = self.lambda_ / 3 * error + tables.bits(*now.stream(self.coding))
            if cost < least:
                best, least = now, cost
            if slope is not None:
                target = reached - overshoot(i, self.rounds) * slope / (2 * self.coherence * gains)
                aim = aim + SHARE * (target - aim)
                now = requantized(codec, now, aim, self.coding)
        return best


def overshoot(i: int, rounds: int) -> float:
    """Of round ``i``, counted from 0."""
    start, end = OVERSHOOT
    return start * (end / start) ** (i / max(1, rounds - 1))


def squared_error(
    codec: Codec,
    y_hat: np.ndarray,
    pixels: np.ndarray,
    size: tuple[int, int],
    slope: bool,
    most: int = PIXELS,
) -> tuple[float, np.ndarray | None]:
    """The picture's squared error in 8-bit samples, summed, and its slope in ``y_hat: (1, M, h, w)`` float32.

    Taken in strips of ``most`` pixels, so that memory is bounded, unless the synthesis cannot be cut.
    ``pixels``, ``size``: as above.
    """
    rows = y_hat.shape[2]
    step = pixels.shape[2] // rows
    high = max(1, most // (step * pixels.shape[3]))
    reach = codec.networks["synthesis"].halo()
    halo = rows if reach is None else max(HALO, math.ceil(reach))
    if rows <= high + 2 * halo:
        high = rows
    total, slopes = 0.0, np.zeros_like(y_hat) if slope else None
    for start in range(0, rows, high):
        top, end = max(0, start - halo), min(rows, start + high)
        part = torch.from_numpy(y_hat[:, :, top : end + halo]).requires_grad_(slope)
        shown = slice(start * step, min(end * step, size[0]))
        with torch.set_grad_enabled(slope):
            decoded = codec.relaxed_synthesis(part)[:, :, shown.start - top * step : shown.stop - top * step]
            wanted = torch.from_numpy(pixels[:, :, shown]).float()
            error = (decoded - wanted)[..., : size[1]].square().sum()
        total += float(error.detach())
        if slopes is not None:
            slopes[:, :, top : end + halo] += torch.autograd.grad(error, part)[0].numpy()
    return total, slopes


def rounds_of(effort: int) -> int:
    """Rounds of ``--effort``. Raises `UsageError`."""
    if not 0 <= effort < len(EFFORTS):
        raise UsageError(f"effort must be 0..{len(EFFORTS) - 1}, got {effort}")
    return EFFORTS[effort]
