"""Where to cut: scales of weights and ranges of activations, by one of three rules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CalibrationError
from .calibration import Observed
from .config import Granularity, RangeRule
from .formats import CODED_BITS, FormatName, Levels, affine, codebook, symmetric_levels, uniform

#: a channel's scale is at least this fraction of the tensor's
CHANNEL_FLOOR = 1 / 64
#: fractions of the whole range that the "mse" rule tries, for weights
WEIGHT_CLIP_GRID = torch.linspace(0.1, 1.0, 19, dtype=torch.float64)
#: and for activations: down to 1/40, since tails are heavy
CLIP_GRID = torch.logspace(-1.6, 0, 41, dtype=torch.float64)


def weight_scales(weight: Tensor, levels: Levels, rule: RangeRule, percentile: float = 1.0) -> Tensor:
    """Scale per row under which the levels cover the row. ``weight: (O, K)`` -> ``(O,)`` float64.

    A row of zeros gets scale 1.
    """
    w = weight.detach().double()

    def needed(low: Tensor, high: Tensor) -> Tensor:
        up = high.clamp(min=0) / max(levels.high, 1)
        return torch.maximum(up, low.clamp(max=0) / min(levels.low, -1))

    full = needed(w.amin(1), w.amax(1))
    chosen = full
    if rule == "percentile":
        chosen = needed(*(torch.quantile(w, q, dim=1) for q in (1 - percentile, percentile)))
        chosen = torch.where(chosen > 0, chosen, full)
    if rule == "mse":
        best, w32 = torch.full_like(full, torch.inf), w.float()
        for ratio in WEIGHT_CLIP_GRID:
            s = (full * ratio).clamp(min=1e-30).float()[:, None]
            error = levels.nearest(w32 / s).mul_(s).sub_(w32).square_().sum(1)
            better = error < best
            best, chosen = torch.where(better, error, best), torch.where(better, full * ratio, chosen)
    return torch.where(chosen > 0, chosen, 1.0)


def coded_scales(weight: Tensor, levels: Levels, bits: float, sensitivity: Tensor | None) -> Tensor:
    """Steps of the rows of a layer in the coded format. ``weight: (O, K)`` -> ``(O,)`` float64.

    Bits are best spent where an error of any row's step costs the same: steps in inverse proportion to the
    root of ``sensitivity: (O, O)``'s diagonal (reverse water-filling). Their geometric mean is that of the
    steps with which ``bits`` bits just reach each row's largest weight; no step is so fine that ``levels``
    would not.
    """
    top = weight.detach().double().abs().amax(1)
    top = torch.where(top > 0, top, top.mean().clamp(min=1e-30))
    steps = torch.ones_like(top)
    if sensitivity is not None:
        cost = sensitivity.diagonal().double()
        steps = cost.clamp(min=max(1e-6 * float(cost.max()), 1e-30)).rsqrt()
    steps = steps * torch.exp(torch.log(top / (2 ** (bits - 1) - 1) / steps).mean())
    return torch.maximum(steps, top / levels.high)


def fit_levels(weight: Tensor, bits: int, name: FormatName, importance: Tensor) -> Levels:
    """The levels of a layer in one of the number formats.

    ``weight: (O, K)``; ``importance: (K,)``, what a squared error of each column costs (codebooks only).
    """
    if name == "coded":
        return uniform(CODED_BITS)
    w = weight.detach().double()
    if name == "affine":
        low, high = float(w.amin(1).clamp(max=0).mean()), float(w.amax(1).clamp(min=0).mean())
        steps = 2**bits - 1
        return affine(bits, round(steps * low / max(high - low, 1e-30)))
    if name == "codebook":
        top = w.abs().amax(1, keepdim=True)
        cost = importance.double() * top**2 * (top > 0)
        return codebook(bits, w / top.clamp(min=1e-30), cost)
    return symmetric_levels(name, bits)


def quantize_weight(weight: Tensor, scales: Tensor, levels: Levels) -> Tensor:
    """The level nearest to ``w / s``: ``(O, K)``, ``(O,)`` -> int16 ``(O, K)``."""
    return levels.nearest(weight.detach().double() / scales[:, None]).to(torch.int16)


#: room above the largest value seen: of mixed channels (all of a position clip at once) and wide ones, and of
#: mixed ones that are rounded to nearest, and these where some are doubled
MIXED_HEADROOM, PLAIN_HEADROOM, DOUBLED_HEADROOM = 1.5, 1.1, 1.25


@dataclass(frozen=True)
class ActivationFormat:
    """What integers q in [lo, hi] of a tensor stand for: ``q * scale[c]`` in channel c."""

    scale: Tensor  #: (C,) float64
    lo: int
    hi: int
    offset: Tensor | None = None  #: int32 (C,), added to lo and hi of each channel

    def reach(self) -> tuple[int, int]:
        """The least and the largest integer of any channel."""
        if self.offset is None:
            return self.lo, self.hi
        return self.lo + int(self.offset.min()), self.hi + int(self.offset.max())

    @classmethod
    def uniform(cls, scale: float, lo: int, hi: int, channels: int) -> ActivationFormat:
        return cls(torch.full((channels,), scale, dtype=torch.float64), lo, hi)

    @classmethod
    def joined(cls, formats: list[ActivationFormat]) -> ActivationFormat:
        """Of the channels of all these, one after another."""
        lo, hi = (
            f(ends)
            for f, ends in zip((min, max), zip(*(f.reach() for f in formats), strict=True), strict=True)
        )
        return cls(torch.cat([f.scale for f in formats]), lo, hi)

    def of_channels(self, channels: Tensor) -> ActivationFormat:
        """Of some of the channels, in this order."""
        offset = None if self.offset is None else self.offset[channels]
        return ActivationFormat(self.scale[channels], self.lo, self.hi, offset)


def tied(found: ActivationFormat, count: int) -> ActivationFormat:
    """With one scale, the largest, for each ``count`` neighbouring channels; 0: for all. Without offsets."""
    if count == 1:
        return found
    if found.offset is not None:
        raise CalibrationError("channels with ranges of their own cannot share a scale")
    groups = found.scale.reshape(-1, count or len(found.scale))
    return ActivationFormat(groups.amax(1, keepdim=True).expand_as(groups).flatten(), found.lo, found.hi)


def activation_format(
    seen: Observed,
    bits: int,
    rule: RangeRule,
    granularity: Granularity,
    exponent: float = 1.0,
    clip_cost: float = 1.0,
    percentile: float = 1.0,
) -> ActivationFormat:
    """The format of an observed activation: ``hi - lo = 2^bits - 1``, ``lo <= 0 <= hi``.

    Per tensor, one scale. Per channel, lo and hi stay common and each channel gets its own scale
    (`rdquant.passes.convert` folds it into the weights that read the channel): the tensor's scale
    times ``(range of channel / range of tensor)^exponent``.

    Raises `CalibrationError` if nothing but zero, or nothing finite, was seen.
    """
    assert seen.low is not None and seen.high is not None
    low, high = min(float(seen.low.min()), 0.0), max(float(seen.high.max()), 0.0)
    if not 0 < high - low < float("inf"):
        raise CalibrationError(f"an activation was always in [{low}, {high}]; use other calibration pictures")
    scale, lo, hi = _tensor_range(low, high, seen, bits, rule, clip_cost, percentile)

    def with_split(lo: int, hi: int, scale: float) -> ActivationFormat:
        scales = torch.full((len(seen.counts),), scale, dtype=torch.float64)  # type: ignore[arg-type]
        if granularity == "channel":
            tops = _channel_tops(seen, lo, hi, rule, clip_cost, percentile)
            ratio = (tops / scale).clamp(CHANNEL_FLOOR, 1.0 / CHANNEL_FLOOR)
            scales = scales * ratio**exponent
        return ActivationFormat(scales, lo, hi)

    if granularity == "tensor" or rule != "mse" or low == 0:
        return with_split(lo, hi, scale)
    # one outlier must not decide how the integers are split between signs
    steps = 2**bits - 1
    splits = [(lo, hi), *((-round(steps * k / 8), steps - round(steps * k / 8)) for k in range(1, 8))]
    formats = [with_split(a, b, scale) for a, b in splits]
    return min(formats, key=lambda f: float(seen.error(f.scale, f.lo, f.hi, clip_cost).sum()))


def mixed_format(seen: Observed, bits: int, compensated: bool, doubled: bool) -> ActivationFormat:
    """Of a mixing: each channel's own range as it was seen, and room; 0 stays in it.

    If rounding is not compensated, the same integers for all, without a zero point: not all engines have one.
    Then errors cannot go elsewhere, and less room pays: of 1, 1.1, 1.25 and 1.5, on the train split, 1.1, and
    1.25 where half of the channels are doubled.
    """
    assert seen.low is not None and seen.high is not None
    low, high = seen.low.double().clamp(max=0), seen.high.double().clamp(min=0)
    if not compensated:
        low, high = -torch.maximum(-low, high), torch.maximum(-low, high)
    steps, lo = 2**bits - 1, -(2 ** (bits - 1))
    span = (high - low).clamp(min=CHANNEL_FLOOR * float((high - low).max()))
    if not 0 < float(span.max()) < float("inf"):
        raise CalibrationError("an activation was always 0; use other calibration pictures")
    if not compensated:
        room = DOUBLED_HEADROOM if doubled else PLAIN_HEADROOM
        return ActivationFormat(room * span / (steps - 1), lo, lo + steps)
    scale = MIXED_HEADROOM * span / steps
    start = torch.round((low + high) / (2 * scale) - steps / 2).clamp(-steps, 0)
    return ActivationFormat(scale, lo, lo + steps, (start - lo).to(torch.int32))


def _channel_tops(
    seen: Observed, lo: int, hi: int, rule: RangeRule, clip_cost: float, percentile: float
) -> Tensor:
    """Per channel, the scale that its own range asks for within the common [lo, hi]. ``(C,)`` float64."""
    assert seen.low is not None and seen.high is not None

    def needed(low: Tensor, high: Tensor) -> Tensor:
        up = high.double().clamp(min=0) / max(hi, 1)
        down = low.double().clamp(max=0) / min(lo, -1)
        return torch.maximum(up if hi > 0 else torch.zeros_like(up), down if lo < 0 else torch.zeros_like(up))

    if rule == "percentile":
        return needed(*seen.quantiles(1 - percentile)).clamp(min=1e-12)
    full = needed(seen.low, seen.high).clamp(min=1e-12)
    if rule == "minmax":
        return full
    best, chosen = torch.full_like(full, torch.inf), full.clone()
    for ratio in CLIP_GRID:
        error = seen.error(full * ratio, lo, hi, clip_cost)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, full * ratio, chosen)
    return chosen


def _tensor_range(
    low: float, high: float, seen: Observed, bits: int, rule: RangeRule, clip_cost: float, percentile: float
) -> tuple[float, int, int]:
    if rule == "percentile":
        ends = _pooled_quantiles(seen, 1 - percentile)
        return _grid(min(ends[0], 0.0), max(ends[1], 1e-12), bits)
    if rule == "minmax":
        return _grid(low, high, bits)
    best, chosen = float("inf"), _grid(low, high, bits)
    for ratio in CLIP_GRID:
        scale, lo, hi = _grid(low * float(ratio), high * float(ratio), bits)
        error = float(seen.error(torch.full_like(seen.centres[:, 0], scale), lo, hi, clip_cost).sum())
        if error < best:
            best, chosen = error, (scale, lo, hi)
    return chosen


def _pooled_quantiles(seen: Observed, outside: float) -> tuple[float, float]:
    """Values below and above which a fraction ``outside`` of the whole tensor lies."""
    assert seen.counts is not None
    values, order = torch.sort(seen.centres.flatten())
    share = seen.counts.flatten()[order].cumsum(0)
    share = share / share[-1]
    last = len(values) - 1
    low, high = (int((share < level).sum()) for level in (outside, 1 - outside))
    return float(values[min(low, last)]), float(values[min(high, last)])


def _grid(low: float, high: float, bits: int) -> tuple[float, int, int]:
    steps = 2**bits - 1
    scale = (high - low) / steps
    lo = round(low / scale)
    return scale, lo, lo + steps
