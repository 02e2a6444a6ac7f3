"""The fast engine: float32 convolutions where they are provably exact, numba for the epilogues.

A float32 convolution of integers is exact when no partial sum can reach 2^24, whatever the order, and
the library multiplies and adds (no Winograd, FFT or TF32). The first is proven per stage from its
weights (`IntegerConv.accumulator_bound`); where it does not hold, the activations are split into 8-bit
planes and the input channels into groups until it does. The second is tested once per process on
worst-case inputs (`self_test`); a machine that fails it gets the reference engine.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .stages import Compensate, DivisiveNormalization, IntegerConv, Stage

EXACT = 2**24
#: positions handled at a time by the GDN epilogue, so that its planes stay in cache
CHUNK = 8192
#: and by compensated rounding, and of its channels
COMPENSATE_CHUNK, GROUP = 4096, 32


def _float_conv(q: Tensor, weight: Tensor, conv: IntegerConv) -> Tensor:
    padding = weight.shape[2] // 2
    if weight.shape[2] == 1 and conv.stride == 1:  # a matrix, which products do in half the time
        matrix = weight[:, :, 0, 0] if conv.transposed else weight[:, :, 0, 0].T
        return (q.permute(0, 2, 3, 1) @ matrix).permute(0, 3, 1, 2)
    if conv.transposed:
        return F.conv_transpose2d(
            q, weight, stride=conv.stride, padding=padding, output_padding=conv.stride - 1
        )
    return F.conv2d(q, weight, stride=conv.stride, padding=padding)


def _planes(q: Tensor, conv: IntegerConv) -> list[tuple[Tensor, int, int]]:
    """``q`` as ``sum(plane * factor)``; each entry is (plane, factor, largest magnitude of the plane)."""
    top = max(-conv.lo, conv.hi)
    if top <= 255 or conv.accumulator_bound() < EXACT:
        return [(q, 1, top)]
    high = torch.floor(q * 2.0**-8)
    return [(high, 256, (top + 255) // 256), (q - 256 * high, 1, 255)]


def _channel_groups(conv: IntegerConv, magnitude: int) -> list[slice]:
    """Input channels in the fewest equal runs whose partial sums stay below 2^24."""
    top = max(-conv.lo, conv.hi)
    bound = conv.accumulator_bound() * magnitude / top
    count = 1
    while bound / count >= EXACT * (0.5 if count > 1 else 1.0) and count < conv.in_channels:
        count += 1  # halved, since groups are not equally heavy; checked exactly below
    size = -(-conv.in_channels // count)
    return [slice(i, i + size) for i in range(0, conv.in_channels, size)]


def _group_bound(conv: IntegerConv, group: slice, magnitude: int) -> int:
    weight = conv.weight[group] if conv.transposed else conv.weight[:, group]
    part = IntegerConv(weight, conv.bias, conv.stride, conv.transposed, -magnitude, magnitude, conv.bits)
    return part.accumulator_bound()


def accumulate(q: Tensor, conv: IntegerConv) -> Tensor:
    """``q: (B, I, H, W)`` float32 -> accumulators without bias, channels last.

    float32 when one convolution is enough, else float64.
    """
    total: Tensor | None = None
    planes = _planes(q, conv)
    for plane, factor, magnitude in planes:
        for group in _channel_groups(conv, magnitude):
            weight = (conv.weight[group] if conv.transposed else conv.weight[:, group]).float()
            x = plane[:, group]
            if _group_bound(conv, group, magnitude) >= EXACT:
                x, weight = x.double(), weight.double()
            acc = _float_conv(x.contiguous(memory_format=torch.channels_last), weight, conv)
            if total is None and len(planes) == 1 and group.stop >= conv.in_channels:
                return acc
            acc = acc.double() * factor
            total = acc if total is None else total + acc
    assert total is not None
    return total


def _rows(t: Tensor) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A channels-last tensor as ``(B * H * W, C)`` without a copy, and its (B, H, W)."""
    b, c, h, w = t.shape
    return t.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(-1, c).numpy(), (
        b,
        h,
        w,
    )


def _compensate(
    acc: np.ndarray, bias: np.ndarray, factor: np.ndarray, e: Compensate, out: np.ndarray
) -> None:
    """``acc: (P, C)`` -> ``out: (P, C)``, which may be the same array.

    Errors go from one group of channels to the later ones as a matrix product.
    """
    low, high = (end.numpy() for end in e.ends())
    feedback = e.feedback.double()
    channels = acc.shape[1]
    room = torch.empty(min(len(acc), COMPENSATE_CHUNK), channels, dtype=torch.float64)
    for start in range(0, len(acc), COMPENSATE_CHUNK):
        rows = slice(start, start + COMPENSATE_CHUNK)
        errors = room[: len(acc[rows])]
        for first in range(0, channels, GROUP):
            group = slice(first, first + GROUP)
            # float64: exact, sums stay below 2^40
            passed = (errors[:, :first] @ feedback[:first, group]).numpy()
            inside = feedback[group, group].contiguous().numpy()
            kernels.compensate(
                acc[rows, group], bias[group], factor[group], passed, low[group], high[group], inside,
                errors[:, group].numpy(), out[rows, group],
            )  # fmt: skip


def _products(high: np.ndarray, low: np.ndarray, gamma: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both planes of the squares times gamma, exact: in float32 where the sums stay below 2^24."""
    kind = torch.float32 if int(gamma.sum(0).max()) * 255 < EXACT else torch.float64
    g = gamma.to(kind)
    a, b = ((torch.from_numpy(part).to(kind) @ g).numpy() for part in (high, low))
    return a, b


def compensate(v: Tensor, e: Compensate) -> Tensor:
    """`rdquant.integer.arithmetic.compensate` for float32 ``v: (B, C, H, W)`` that holds integers."""
    rows, (b, h, w) = _rows(v)
    out, channels = np.empty(rows.shape, np.float32), rows.shape[1]
    _compensate(rows, np.zeros(channels), np.ones(channels), e, out)
    return torch.from_numpy(out).reshape(b, h, w, -1).permute(0, 3, 1, 2)


def run_stage(stage: Stage, q: Tensor) -> Tensor:
    """One stage: ``(B, I, H, W)`` float32 -> ``(B, O, H', W')`` float32, channels last."""
    acc, (b, h, w) = _rows(accumulate(q, stage.conv))
    bias = stage.conv.bias.double().numpy()
    e = stage.epilogue
    out = np.empty(acc.shape, np.float32)
    factor = e.factor.as_float().numpy()
    lo, hi = float(e.lo), float(e.hi)
    if isinstance(e, DivisiveNormalization):
        gamma = e.gamma.double().T.contiguous()
        beta, wide = e.beta.double().numpy(), e.widen.as_float().numpy()
        m, power = e.factor.m.double().numpy(), torch.exp2(e.factor.shift.double()).numpy()
        for start in range(0, len(acc), CHUNK):
            rows = slice(start, start + CHUNK)
            x, high, low = kernels.widen(acc[rows], bias, wide)
            high, low = _products(high, low, gamma)
            if e.inverse:
                kernels.denormalize(x, high, low, beta, factor, lo, hi, out[rows])
            else:
                kernels.normalize(x, high, low, beta, m, power, lo, hi, out[rows])
    elif isinstance(e, Compensate):
        _compensate(acc, bias, factor, e, out)
    else:
        negative = factor if e.negative is None else e.negative.as_float().numpy()
        kernels.requantize(acc, bias, factor, negative, lo, hi, out)
    return torch.from_numpy(out).reshape(b, h, w, -1).permute(0, 3, 1, 2)


def run(stages: tuple[Stage, ...], q: Tensor) -> Tensor:
    """All stages on the CPU; see `rdquant.integer.network.IntegerNetwork.run`."""
    out = q.to("cpu", torch.float32)
    with torch.no_grad():
        for stage in stages:
            out = run_stage(stage, out)
    return out


@functools.cache
def self_test() -> bool:
    """Whether float32 convolutions and products of this machine are exact on worst-case integers (cached).

    Sums just below 2^24 with alternating signs and odd values: an algorithm with fractions or a
    shortened mantissa cannot get them right.
    """
    generator = torch.Generator().manual_seed(0)
    ok = True
    # the same of matrix products: 64 products just below 2^18 each
    planes = torch.randint(0, 128, (257, 64), generator=generator) * 2.0 + 1
    gamma = torch.randint(0, 512, (64, 64), generator=generator) * 2.0 + 1
    for found in _products(planes.numpy(), planes.numpy(), gamma.double()):
        ok &= torch.equal(torch.from_numpy(found).double(), planes.double() @ gamma.double())
    for channels, k, stride, transposed in (
        (96, 5, 2, False),
        (96, 5, 2, True),
        (64, 3, 1, False),
        (64, 1, 1, False),
    ):
        weight = torch.randint(-63, 64, (channels, channels, k, k), generator=generator, dtype=torch.int16)
        weight = weight | 1
        conv = IntegerConv(weight, torch.zeros(channels, dtype=torch.int64), stride, transposed, 0, 255, 7)
        for value in (255, None):
            q = torch.full((1, channels, 16, 24), 255.0)
            if value is None:
                q = torch.randint(0, 128, q.shape, generator=generator) * 2.0 + 1
            exact = _float_conv(q.double(), weight.double(), conv).round()
            ok &= torch.equal(accumulate(q, conv).double(), exact)
    if not ok:
        warnings.warn(
            "float32 convolutions of this machine are not exact on integers; using the float64 reference",
            RuntimeWarning,
            stacklevel=2,
        )
    return ok
