"""Number formats of weights: a format is the set of integers that a weight's index can stand for.

A real weight is ``scale[c] * level[index]``, one scale per output channel, levels common to a layer. So
every format here runs on the integer engine; they differ in their levels, hence in accumulators, and in
what a file stores (``bits`` per weight, and the levels where they are not a plain range).

===================  ==============================================================================
uniform              ``-(2^(b-1) - 1) .. 2^(b-1) - 1``; fits int8 products up to 8 bits
affine               ``2^b`` consecutive integers, from a lowest one that is chosen per layer
power_of_two         0 and ``+-2^k``: a product is a shift (Miyashita et al. 2016)
additive_power       sums of two powers of two (APoT, Li et al. 2020, equation 5)
codebook             ``2^b`` levels fitted by k-means to a layer's weights, weighted by importance
coded                the integers of 8 bits; steps as coarse as b bits on average over the channels, finer
                     where errors cost more. Files entropy-code it: 2 to 3 bits less than b
===================  ==============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import UsageError

FormatName = Literal["uniform", "affine", "power_of_two", "additive_power", "codebook", "coded"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
#: levels of logarithmic formats and codebooks stay within +- this
LEVEL_LIMIT = 2**12
#: and codebooks below 6 bits within this: int8; then twice as far with each bit, so that rounding levels to
#: integers costs little, and accumulators of 6 bits still are exact in float32
CODEBOOK_LIMIT = 127
KMEANS_ROUNDS = 30
#: bits of the integers of the coded format, and the most that its steps can be as fine as
CODED_BITS = 8


@dataclass(frozen=True)
class Levels:
    """The integers of one layer's weights, ``values: (L,)`` int16, rising; ``L <= 2^bits``."""

    values: Tensor
    bits: int
    name: FormatName = "uniform"

    @property
    def low(self) -> int:
        return int(self.values[0])

    @property
    def high(self) -> int:
        return int(self.values[-1])

    @property
    def plain(self) -> bool:
        """Whether the levels are consecutive integers, so that rounding and clipping finds the nearest."""
        return self.high - self.low + 1 == len(self.values)

    @property
    def symmetric_range(self) -> bool:
        """Whether this is the uniform format, which files need no levels for."""
        top = 2 ** (self.bits - 1) - 1
        return self.plain and (self.low, self.high) == (-top, top)

    def nearest(self, v: Tensor) -> Tensor:
        """The level nearest to each element (ties up), in ``v``'s dtype. This is quantize and dequantize."""
        if self.plain:
            return torch.floor(v + 0.5).clamp_(self.low, self.high)
        levels = self.values.to(v.dtype)
        middles = (levels[1:] + levels[:-1]) / 2
        return levels[torch.bucketize(v.contiguous(), middles, right=True)]

    def indexes(self, q: Tensor) -> Tensor:
        """Index of each level, int32. Raises `UsageError` for an integer that is no level."""
        found = torch.searchsorted(self.values.to(torch.int32), q.to(torch.int32).contiguous())
        found = found.clamp(max=len(self.values) - 1)
        if not torch.equal(self.values.to(torch.int32)[found], q.to(torch.int32)):
            raise UsageError(f"weights hold integers that are no level of the {self.name} format")
        return found.to(torch.int32)

    def file_bytes(self, count: int) -> int:
        """Bytes of ``count`` packed weights, levels included."""
        return -(-count * self.bits // 8) + (0 if self.symmetric_range else 2 * len(self.values))


def uniform(bits: int) -> Levels:
    top = 2 ** (bits - 1) - 1
    return Levels(torch.arange(-top, top + 1, dtype=torch.int16), bits, "uniform")


def affine(bits: int, low: int) -> Levels:
    """``low .. low + 2^bits - 1``; ``low`` must be in ``-2^bits + 1 .. 0``."""
    if not -(2**bits) < low <= 0:
        raise UsageError(f"an affine range of {bits} bits starts in {-(2**bits) + 1}..0, got {low}")
    return Levels(torch.arange(low, low + 2**bits, dtype=torch.int16), bits, "affine")


def _symmetric(magnitudes: set[int]) -> Tensor:
    return torch.tensor(sorted({s * m for m in magnitudes for s in (-1, 1)} | {0}), dtype=torch.int16)


def power_of_two(bits: int) -> Levels:
    """0 and ``+-2^0 .. 2^e``, e up to 12: more bits than 5 add nothing."""
    exponents = min(2 ** (bits - 1) - 1, LEVEL_LIMIT.bit_length())
    return Levels(_symmetric({2**k for k in range(exponents)}), bits, "power_of_two")


def additive_power(bits: int) -> Levels:
    """Sums of two terms, the first of ``{0, 2^0, 2^-2, ..}``, the second of ``{0, 2^-1, 2^-3, ..}``.

    A sign and ``bits - 1`` bits over the two terms, scaled to integers. Exponents that would leave
    `LEVEL_LIMIT` are left out, so widths over 8 gain little.
    """
    first, second = 2 ** ((bits) // 2) - 1, 2 ** ((bits - 1) // 2) - 1
    depth = min(max(2 * first - 2, 2 * second - 1), LEVEL_LIMIT.bit_length() - 2)
    a = {0} | {2 ** (depth - 2 * i) for i in range(first) if 2 * i <= depth}
    b = {0} | {2 ** (depth - 1 - 2 * i) for i in range(second) if 2 * i + 1 <= depth}
    return Levels(_symmetric({i + j for i in a for j in b}), bits, "additive_power")


def codebook(bits: int, v: Tensor, importance: Tensor) -> Levels:
    """k-means levels of a layer's scaled weights.

    ``v``: weights divided by their channel's largest magnitude, flat; ``importance``: what an error of
    each costs. Levels are integers, always holding 0.
    """
    limit = min(LEVEL_LIMIT, max(CODEBOOK_LIMIT, 2 ** (bits + 2) - 1))
    x = (v.flatten().double() * limit).float()
    w = importance.flatten().float().clamp(min=float(importance.mean()) * 1e-3)
    if len(x) > 100_000:
        pick = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:100_000]
        x, w = x[pick], w[pick]
    count = 2**bits
    centres = torch.quantile(x, torch.linspace(0, 1, count))
    # half from quantiles, half uniform: heavy tails need levels as well
    centres = (centres + torch.linspace(float(x.min()), float(x.max()), count)) / 2
    for _ in range(KMEANS_ROUNDS):
        centres = torch.sort(centres)[0]
        nearest = torch.bucketize(x, (centres[1:] + centres[:-1]) / 2)
        total = torch.zeros(count).index_add_(0, nearest, w)
        sums = torch.zeros(count).index_add_(0, nearest, w * x)
        centres = torch.where(total > 0, sums / total.clamp(min=1e-30), centres)
        centres[centres.abs().argmin()] = 0
    values = torch.unique(torch.round(centres).clamp(-limit, limit)).to(torch.int16)
    return Levels(values, bits, "codebook")


def symmetric_levels(name: FormatName, bits: int) -> Levels:
    """The levels of a format that need no data. Raises `UsageError` for the two that do."""
    makers = {"uniform": uniform, "power_of_two": power_of_two, "additive_power": additive_power}
    if name not in makers:
        raise UsageError(f"the levels of {name!r} depend on the weights")
    return makers[name](bits)
