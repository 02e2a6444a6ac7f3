"""The integers of each operation, made from its real form and the formats around it."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from ..errors import BadModel
from ..graph.arithmetic import (
    GDN_SHIFT_LIMIT,
    LAYER_BIAS_BITS,
    MULTIPLIER_BITS,
    ROOT_SHIFT,
    SHIFT_LIMIT,
    SQUARE_SHIFT,
    X_HI,
    X_LO,
    Multiplier,
)
from ..graph.operations import (
    Convolution,
    DivisiveNormalization,
    Gain,
    LayerNorm,
    Pointwise,
    Sum,
    WindowAttention,
)
from ..graph.operations.attention import LOGIT_BITS, exponentials
from ..graph.operations.gain import LOG_BITS, LOG_LIMIT
from ..graph.operations.pointwise import TABLE_BITS
from .calibration import Observed
from .config import QuantizeConfig
from .formats import FormatName, uniform
from .latent_range import HEADROOM
from .mixed import Mixing
from .ranges import ActivationFormat, coded_scales, fit_levels, quantize_weight, weight_scales
from .rounding import problems, round_kernel

#: least magnitude of a channel of 16 bits that gets a scale of its own, of the largest channel's
QUIETEST = 1e-3
ENTROPY_PATH_BITS = 7
#: room above the largest value seen of a residual stream: pictures exceed it, and 16 bits have it to spare
STREAM_HEADROOM = 6.0
#: least unit of accumulators, of a channel's bias
BIAS_UNIT = 2.0**-30
#: factors on the weight scales of a layer that compensated rounding tries below 8 bits
NARROW_CLIPS = (0.7, 0.8, 0.9, 1.0, 1.12, 1.25)
#: least width of GDN's gammas: 1.5 % of the parameters, and much depends on them
GAMMA_BITS = 8
#: and the most: norms must stay below 2^32
MOST_GAMMA_BITS = 10


def wide_format(seen: Observed, headroom: float = STREAM_HEADROOM) -> ActivationFormat:
    """16 bits for each channel: residual streams, gates; mixed latents, what GDN squares, with less room."""
    assert seen.low is not None and seen.high is not None
    top = torch.maximum(-seen.low, seen.high).double()
    top = top.clamp(min=max(QUIETEST * float(top.max()), 1e-6))
    return ActivationFormat(headroom * top / X_HI, X_LO, X_HI)


def index_format(seen: Observed) -> ActivationFormat:
    """What a table is looked up with: `TABLE_BITS`, one scale for all channels."""
    assert seen.low is not None and seen.high is not None
    low, high = min(float(seen.low.min()), 0.0), max(float(seen.high.max()), 0.0)
    steps = 2**TABLE_BITS - 1
    scale = max(HEADROOM * (high - low) / steps, 1e-9)
    lo = max(-steps, min(0, round((HEADROOM * (low + high) / 2 - HEADROOM * (high - low) / 2) / scale)))
    return ActivationFormat.uniform(scale, lo, lo + steps, len(seen.low))


def integer_convolution(
    op: Convolution,
    source: ActivationFormat,
    grams: list[Tensor],
    sensitivity: Tensor | None,
    config: QuantizeConfig,
    bits: float,
    number_format: FormatName,
    entropy_path: bool,
    stretch: float = 1.0,
) -> tuple[Convolution, Tensor, Tensor]:
    """The convolution, the real value of one unit of its accumulators ``(O,)``, the unrounded kernel.

    ``stretch``: a factor on the scales that the range rule gives.
    """
    # where wide activations were asked for, products are not of bytes
    entropy_path = entropy_path and (config.prior_activation_bits is None or source.hi - source.lo < 2**8)
    if entropy_path and bits <= 8 and number_format == "uniform":
        bits = min(bits, ENTROPY_PATH_BITS)
    # the input's scales go into the weights, so that integers of all channels can be added
    weight = op.by_output().detach().double() * _by_input(op, source.scale)
    flat = weight.flatten(1)
    importance = _importance(op, source, grams)
    levels = fit_levels(flat, round(bits), number_format, importance)
    if number_format == "coded":
        if entropy_path:
            levels = uniform(ENTROPY_PATH_BITS)
        scales = coded_scales(flat, levels, bits, sensitivity)
    else:
        scales = weight_scales(flat, levels, config.weight_range, config.percentile) * stretch
    # a row of next to nothing must not blow up its bias: accumulators stay below 2^36
    scales = torch.maximum(scales, op.bias.detach().double().abs() * BIAS_UNIT)
    if config.rounding != "nearest":
        cost = sensitivity if config.rounding == "two_sided" else None
        clips = NARROW_CLIPS if number_format == "uniform" and bits < 8 else (1.0,)
        q, scales = round_kernel(op, weight, scales, source.scale, grams, levels, cost, clips)
    else:
        q = quantize_weight(flat, scales, levels).reshape(weight.shape)
    unrounded = (flat / scales[:, None]).reshape(weight.shape)
    found = dataclasses.replace(
        op, weight=op.stored_as(q).contiguous().numpy(),
        bias=torch.round(op.bias.double() / scales).to(torch.int64).numpy(),
        bits=levels.bits, levels=None if levels.symmetric_range else levels.values.numpy(),
    )  # fmt: skip
    return found, scales, op.stored_as(unrounded).contiguous()


def _by_input(op: Convolution, scale: Tensor) -> Tensor:
    """``scale: (I,)`` as it meets `Convolution.by_output`."""
    grouped = scale.reshape(op.groups, 1, -1).expand(-1, op.out_channels // op.groups, -1)
    return grouped.reshape(op.out_channels, -1, 1, 1)


def _importance(op: Convolution, source: ActivationFormat, grams: list[Tensor]) -> Tensor:
    """Energy of the integer input that each weight of a row ``(I / groups * k * k,)`` meets, on average."""
    energy = torch.zeros(op.in_channels, op.kernel_size**2, dtype=torch.float64)
    for (_, ins, phase), gram in zip(problems(op), grams, strict=True):
        energy[ins, phase] = gram.diagonal().reshape(-1, len(phase))
    energy = energy / source.scale[:, None] ** 2
    return energy.reshape(op.groups, -1).mean(0)


def integer_mixing(
    mixing: Mixing, source: ActivationFormat, out: ActivationFormat | None = None
) -> tuple[Convolution, Tensor, Tensor]:
    """As `integer_convolution`, and exact. ``out``: what it is rounded to; of doubled channels only."""
    levels = mixing.levels[mixing.rows(), :, None, None].contiguous()
    # exact if the scales that T was made for are these or all in one proportion to them
    unit = mixing.unit[mixing.rows()] * (source.scale / mixing.input_scale)[0]
    bias = torch.zeros(len(levels)) if out is None else torch.round(mixing.shift() * out.scale / unit)
    return Convolution(levels.numpy(), bias.long().numpy(), bits=mixing.bits), unit, levels.double()


def integer_gdn(
    gdn: DivisiveNormalization, unit: Tensor, seen_x: Observed, out: ActivationFormat, layer_bits: float
) -> tuple[DivisiveNormalization, Tensor]:
    """The normalization, and gamma before rounding."""
    bits = min(max(round(layer_bits), GAMMA_BITS), MOST_GAMMA_BITS)
    beta, gamma = gdn.beta.detach().double(), gdn.gamma.detach().double()
    # a scale for each channel: quiet ones keep their digits, and a row of gammas spans less
    x_scale = wide_format(seen_x, HEADROOM).scale
    weighted = gamma * x_scale**2 * 2.0**SQUARE_SHIFT
    # a row of tiny gammas must not blow up its beta: norms stay below 2^32
    norm_unit = torch.maximum(weighted.amax(1) / (2**bits - 1), beta * 2.0**-30)
    if not gdn.inverse:  # and the factor to the output representable, with a bit to spare
        finest = x_scale * 2.0**ROOT_SHIFT / (2.0 ** (MULTIPLIER_BITS - 1) * out.scale)
        norm_unit = torch.maximum(norm_unit, finest**2)
    root_unit = torch.sqrt(norm_unit) * 2.0**-ROOT_SHIFT
    factor = x_scale * root_unit / out.scale if gdn.inverse else x_scale / (root_unit * out.scale)
    unrounded = weighted / norm_unit[:, None]
    found = DivisiveNormalization(
        gdn.inverse, torch.round(unrounded).to(torch.int16).numpy(),
        torch.round(beta / norm_unit).clamp(min=1).to(torch.int64).numpy(),
        Multiplier.saturating(unit / x_scale), Multiplier.from_float(factor), out.lo, out.hi, bits,
    )  # fmt: skip
    return found, unrounded


def integer_sum(op: Sum, sources: list[ActivationFormat], out: ActivationFormat) -> Sum:
    """All terms of a channel share the shift at which the largest factor has 16 bits."""
    ratios = torch.stack([s.scale / out.scale for s in sources])
    _, exponent = torch.frexp(ratios.amax(0))
    shift = (MULTIPLIER_BITS - 1 - exponent).clamp(0, SHIFT_LIMIT)
    m = torch.round(ratios * torch.exp2(shift.double()))
    if float(m.max()) >= 2**MULTIPLIER_BITS:
        raise BadModel(f"a sum's terms are {float(ratios.max())} times as wide as the sum; at most 2^16")
    signed = m.numpy().astype(np.int32) * np.array(op.signs, np.int32)[:, None]
    return dataclasses.replace(op, m=signed, shift=shift.numpy().astype(np.int32), lo=out.lo, hi=out.hi)


def integer_gain(op: Gain, source: ActivationFormat, out: ActivationFormat) -> Gain:
    log2 = op.log2.detach().double() + torch.log2(source.scale / out.scale)
    whole = torch.round(log2 * 2**LOG_BITS).clamp(-LOG_LIMIT, LOG_LIMIT).to(torch.int32)
    return dataclasses.replace(op, log2=whole.numpy(), lo=out.lo, hi=out.hi)


def integer_table(op: Pointwise, index: ActivationFormat, out: ActivationFormat) -> Pointwise:
    q = torch.arange(index.lo, index.hi + 1, dtype=torch.float64)
    found = op.real(q * index.scale[0]) / out.scale[0]
    values = torch.floor(found + 0.5).clamp(out.lo, out.hi).to(torch.int32)
    return dataclasses.replace(op, values=values.numpy(), lo=index.lo)


def layer_norm_format(op: LayerNorm, out: ActivationFormat) -> ActivationFormat:
    """``out``, or so much coarser that the factors of `integer_layer_norm` can be represented."""
    assert op.weight is not None
    finest = op.weight.detach().double().abs() * len(op.bias) ** 0.5 * 2.0 ** (ROOT_SHIFT - MULTIPLIER_BITS)
    return dataclasses.replace(out, scale=torch.maximum(out.scale, 1.01 * finest))


def integer_layer_norm(op: LayerNorm, scale: float, out: ActivationFormat) -> LayerNorm:
    """``scale``: of the input, all channels alike."""
    assert op.weight is not None
    channels = len(op.bias)
    weight = op.weight.detach().double()
    factor = Multiplier.from_float(weight.abs() * channels**0.5 * 2.0**ROOT_SHIFT / out.scale)
    bias = torch.round(op.bias.detach().double() / out.scale * 2.0**LAYER_BIAS_BITS).clamp(-(2**30), 2**30)
    floor = max(1, round(channels * op.eps / scale**2))
    sign = torch.where(weight < 0, -1, 1).to(torch.int32)
    return dataclasses.replace(
        op,
        weight=None,
        bias=bias.to(torch.int32).numpy(),
        sign=sign.numpy(),
        factor=factor,
        floor=floor,
        lo=out.lo,
        hi=out.hi,
    )


def integer_attention(
    op: WindowAttention, source: ActivationFormat, out: ActivationFormat
) -> WindowAttention:
    """``source``: of queries, keys and values, all channels alike."""
    scale, channels = float(source.scale[0]), len(source.scale) // 3
    per_logit = scale**2 * (channels // op.heads) ** -0.5 * 2.0**LOGIT_BITS
    bias = torch.round(op.bias.detach().double() * 2.0**LOGIT_BITS).clamp(-(2**15) + 1, 2**15 - 1)
    factor = Multiplier.from_float(scale / out.scale)
    if int(factor.shift.max()) > GDN_SHIFT_LIMIT:
        raise BadModel("attention's output is too wide for its input")
    return dataclasses.replace(
        op, bias=bias.to(torch.int32).numpy(), logit=Multiplier.from_float(np.full(op.heads, per_logit)),
        exponential=exponentials(), factor=factor, lo=out.lo, hi=out.hi,
    )  # fmt: skip
