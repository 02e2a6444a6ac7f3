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
from .arithmetic import V_LIMIT
from .stages import Compensate, DivisiveNormalization, IntegerConv, Stage

EXACT = 2**24
#: positions handled at a time by the GDN epilogue, so that its planes stay in cache
CHUNK = 8192


def _float_conv(q: Tensor, weight: Tensor, conv: IntegerConv) -> Tensor:
    padding = weight.shape[2] // 2
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


def _compensate(v: np.ndarray, e: Compensate, out: np.ndarray) -> None:
    low, high = (end.numpy() for end in e.ends())
    kernels.compensate(v, low, high, e.feedback.double().numpy(), out)


def compensate(v: Tensor, e: Compensate) -> Tensor:
    """`rdquant.integer.arithmetic.compensate` for float32 ``v: (B, C, H, W)`` that holds integers."""
    rows, (b, h, w) = _rows(v)
    out = np.empty(rows.shape, np.float32)
    _compensate(rows, e, out)
    return torch.from_numpy(out).reshape(b, h, w, -1).permute(0, 3, 1, 2)


def run_stage(stage: Stage, q: Tensor) -> Tensor:
    """One stage: ``(B, I, H, W)`` float32 -> ``(B, O, H', W')`` float32, channels last."""
    acc, (b, h, w) = _rows(accumulate(q, stage.conv))
    bias = stage.conv.bias.numpy()
    e = stage.epilogue
    out = np.empty(acc.shape, np.float32)
    if isinstance(e, DivisiveNormalization):
        gamma = e.gamma.double().T.contiguous()
        args = (e.beta.numpy(), e.inverse, e.factor.m.numpy(), e.factor.shift.numpy(), e.lo, e.hi)
        for start in range(0, len(acc), CHUNK):
            rows = slice(start, start + CHUNK)
            x, v = kernels.widen(acc[rows], bias, e.widen.m.numpy(), e.widen.shift.numpy())
            norm = (torch.from_numpy(v) @ gamma).numpy()  # float64: exact, sums stay below 2^53
            kernels.normalize(x, norm, *args, out[rows])
    elif isinstance(e, Compensate):
        factor = e.factor.m.numpy(), e.factor.shift.numpy()
        kernels.requantize(acc, bias, *factor, *factor, -V_LIMIT, V_LIMIT, out)
        _compensate(out, e, out)
    else:
        negative = e.negative or e.factor
        kernels.requantize(
            acc, bias, e.factor.m.numpy(), e.factor.shift.numpy(),
            negative.m.numpy(), negative.shift.numpy(), e.lo, e.hi, out,
        )  # fmt: skip
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
    """Whether float32 convolutions of this machine are exact on worst-case integers (cached).

    Sums just below 2^24 with alternating signs and odd values: an algorithm with fractions or a
    shortened mantissa cannot get them right.
    """
    generator = torch.Generator().manual_seed(0)
    ok = True
    for channels, k, stride, transposed in ((96, 5, 2, False), (96, 5, 2, True), (64, 3, 1, False)):
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
