"""Convolutions of integers in float32, where that is exact.

It is exact when no partial sum can reach 2^24, whatever the order, and the library multiplies and adds (no
Winograd, FFT or TF32). The first is proven for each convolution from its weights and the range of what it
is given; where it does not hold, activations are split into 8-bit planes and input channels into groups
until it does, or the sum is done in float64. The second is tested once per process on worst-case inputs
(`self_test`); a machine that fails it gets the reference engine.

Tensors are ``(B, H, W, C)`` here, contiguous.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import Port
from ..graph.operations import Convolution

EXACT = 2**24


def _convolve(x: Tensor, weight: Tensor, conv: Convolution, padding: int) -> Tensor:
    """``weight``: as ``conv`` stores it, or a matrix ``(I, O)`` where that is all there is to it."""
    if weight.ndim == 2:
        return x @ weight
    x = x.permute(0, 3, 1, 2)
    if conv.transposed:
        beyond = conv.stride - conv.kernel_size + 2 * padding
        out = F.conv_transpose2d(x, weight, None, conv.stride, padding, beyond, conv.groups)
    else:
        out = F.conv2d(x, weight, None, conv.stride, padding, 1, conv.groups)
    return out.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class _Piece:
    """``factor`` times the convolution of some channels of the whole (``None``), upper or lower plane."""

    upper: bool | None
    factor: int
    channels: slice
    weight: Tensor


def _loads(conv: Convolution) -> Tensor:
    """Magnitudes that an output takes of an input channel, ``(outputs, I / groups)`` float64.

    An output of a transposed convolution is counted by phase, see `Convolution.accumulator_bound`.
    """
    taps = conv.by_output().double().abs()
    if not conv.transposed:
        return taps.sum((2, 3))
    s = conv.stride
    return torch.cat([taps[:, :, i::s, j::s].sum((2, 3)) for i in range(s) for j in range(s)])


def _channel_groups(conv: Convolution, magnitude: int) -> list[tuple[slice, bool]]:
    """Input channels in few runs, and for each whether its sums stay below 2^24."""
    loads = _loads(conv) * magnitude
    if conv.groups > 1 or float(loads.sum(1).max()) < EXACT:
        return [(slice(0, conv.in_channels), float(loads.sum(1).max()) < EXACT)]
    found, start, running = [], 0, torch.zeros(len(loads), dtype=torch.float64)
    for i, load in enumerate(loads.T):
        if i > start and float((running + load).max()) >= EXACT:
            found.append((slice(start, i), float(running.max()) < EXACT))
            start, running = i, torch.zeros_like(running)
        running = running + load
    return [*found, (slice(start, conv.in_channels), float(running.max()) < EXACT)]


class Accumulator:
    """A convolution without its bias, prepared for inputs within ``port``."""

    def __init__(self, conv: Convolution, port: Port) -> None:
        self.conv = conv
        top = max(-port.lo, port.hi)
        self._whole = conv.accumulator_bound(port) < EXACT
        planes: list[tuple[bool | None, int, int]] = [(None, 1, top)]
        if not self._whole and top > 255:
            planes = [(True, 256, (top + 255) // 256), (False, 1, 255)]
        self._pieces: list[_Piece] = []
        if conv.is_matrix and len(planes) > 1:  # one product in float64 is quicker than two
            planes = []
            self._pieces = [_Piece(None, 1, slice(0, conv.in_channels), self._prepared(conv.weight.double()))]
        for upper, factor, magnitude in planes:
            for channels, exact in _channel_groups(conv, magnitude):
                weight = conv.weight[channels] if conv.transposed else conv.weight[:, channels]
                weight = weight.to(torch.float32 if exact else torch.float64)
                self._pieces.append(_Piece(upper, factor, channels, self._prepared(weight)))

    def _prepared(self, weight: Tensor) -> Tensor:
        if not self.conv.is_matrix:
            return weight.contiguous(memory_format=torch.channels_last)
        return (weight[:, :, 0, 0] if self.conv.transposed else weight[:, :, 0, 0].T).contiguous()

    @functools.cached_property
    def _patch(self) -> tuple[int, int, Tensor]:
        """The kernel as one matrix over whole patches, and the run of its taps that are not all zero."""
        taps = self.conv.weight.permute(2, 3, 1, 0).flatten(0, 1)  # (k^2, I, O)
        used = taps.to(torch.int32).abs().sum((1, 2)).nonzero()[:, 0]
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        kind = torch.float32 if self._whole else torch.float64
        return first, last + 1, taps[first : last + 1].flatten(0, 1).to(kind).contiguous()

    def __call__(self, q: Tensor, valid: bool = False) -> Tensor:
        """``q: (B, H, W, I)`` float32 -> accumulators ``(B, H', W', O)``: float32 where one convolution gives
        them below 2^24, else float64. ``valid``: without padding.
        """
        conv = self.conv
        k = conv.kernel_size
        if valid and k > 1 and q.shape[1] == q.shape[2] == k and conv.groups == 1 and not conv.transposed:
            first, end, matrix = self._patch
            taps = q.reshape(len(q), k * k, -1)[:, first:end].flatten(1)
            return (taps.to(matrix.dtype) @ matrix)[:, None, None]
        padding = 0 if valid else conv.padding
        upper = torch.floor(q * 2.0**-8) if self._pieces[0].upper is not None else q
        lower = q - 256 * upper if self._pieces[0].upper is not None else q
        total: Tensor | None = None
        for piece in self._pieces:
            x = (upper if piece.upper else lower)[..., piece.channels]
            acc = _convolve(x.to(piece.weight.dtype).contiguous(), piece.weight, conv, padding)
            if len(self._pieces) == 1:
                return acc
            total = acc.double() * piece.factor if total is None else total.add_(acc, alpha=piece.factor)
        assert total is not None
        return total


@functools.cache
def self_test() -> bool:
    """Whether float32 convolutions and products of this machine are exact on worst-case integers (cached).

    Sums just below 2^24 with alternating signs and odd values: an algorithm with fractions or a
    shortened mantissa cannot get them right.
    """
    generator = torch.Generator().manual_seed(0)
    ok = True
    for channels, k, stride, transposed, groups in (
        (96, 5, 2, False, 1),
        (96, 5, 2, True, 1),
        (64, 3, 1, False, 1),
        (64, 1, 1, False, 1),
        (64, 5, 1, False, 64),
        (64, 4, 2, True, 4),
    ):
        terms = channels // groups * k * k // (stride**2 if transposed else 1)
        largest = min(2**15 - 1, EXACT * 3 // (2 * 255 * terms))
        shape = (channels, channels // groups, k, k)
        weight = torch.randint(-largest, largest + 1, shape, generator=generator).to(torch.int16) | 1
        padding = (k - 1) // 2
        conv = Convolution(
            weight, torch.zeros(channels, dtype=torch.int64), stride, padding, transposed, groups, 16
        )
        accumulate = Accumulator(conv, Port(channels, 0, 255))
        for value in (255, None):
            q = torch.full((1, 16, 24, channels), 255.0)
            if value is None:
                q = torch.randint(0, 128, q.shape, generator=generator) * 2.0 + 1
            exact = conv.convolve(q.permute(0, 3, 1, 2).double()).round()
            ok &= torch.equal(accumulate(q).permute(0, 3, 1, 2).double(), exact)
    if not ok:
        warnings.warn(
            "float32 convolutions of this machine are not exact on integers; using the float64 reference",
            RuntimeWarning,
            stacklevel=2,
        )
    return ok
