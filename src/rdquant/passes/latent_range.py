"""Where the fixed point of a latent lies, and which of its channels are scaled up before the synthesis."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Operation
from ..graph.operations import Convolution
from ..latents import FIXED_HI
from .calibration import Calibration, Observed
from .mixed import is_mixing
from .rounding import problems

#: room above the largest value seen, for 16-bit tensors that must not clip on other pictures
HEADROOM = 1.5
#: bits by which a latent channel may be scaled up
SHIFT_LIMIT = 7


def fraction_bits_of(y: Observed) -> int:
    """The most fraction bits (at most 8) with which 16 bits hold the latent and its headroom."""
    largest = HEADROOM * y.largest
    bits = 8
    while bits > 0 and largest * 2**bits > FIXED_HI:
        bits -= 1
    return bits


def latent_shift(readers: list[Operation], seen: Calibration, names: list[str]) -> Tensor:
    """Bits by which each latent channel is scaled up before the convolution that reads it, int32 ``(M,)``;
    zeros where anything else does.

    Few channels of a latent carry most of it, and the weights that read the others may be larger: they
    would set the scale at which all are rounded. Scaling such channels up and their weights down leaves the
    resolution to those that matter: with each channel's largest weight below T, the error is about
    ``T^2 * sum(energy * 4^shift)``; T is searched in powers of two.
    """
    y = seen.tensors["y"]
    assert y.low is not None and y.high is not None
    first, nothing = readers[0], torch.zeros(len(y.low), dtype=torch.int32)
    if len(readers) != 1 or not isinstance(first, Convolution) or first.groups > 1 or is_mixing(names[0]):
        return nothing
    top = first.by_output().double().abs().amax((0, 2, 3))
    energy = torch.zeros(len(top), dtype=torch.float64)
    for (_, _, phase), gram in zip(problems(first), seen.grams[names[0]], strict=True):
        energy += gram.diagonal().reshape(len(top), len(phase)).sum(1)
    fraction_bits = fraction_bits_of(y)
    reach = HEADROOM * torch.maximum(-y.low, y.high).double().clamp(min=1) * 2.0**fraction_bits
    room = torch.floor(torch.log2(FIXED_HI / reach)).clamp(0, SHIFT_LIMIT)
    best, chosen = float("inf"), nothing
    for halvings in range(SHIFT_LIMIT + 1):
        limit = float(top.max()) * 2.0**-halvings
        shift = torch.ceil(torch.log2(top.clamp(min=1e-12) / limit)).clamp(min=0)
        shift = torch.minimum(shift, room)
        reached = float((top * 2.0**-shift).max())
        cost = reached**2 * float((energy * 4.0**shift).sum())
        if cost < best:
            best, chosen = cost, shift.to(torch.int32)
    return chosen
