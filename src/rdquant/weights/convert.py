"""A float codec and what was observed of it, turned into an integer codec.

Scales exist only here. What leaves is integers: weights, biases, multipliers, ranges, thresholds and
CDF tables. The scales of a layer's input channels are multiplied into its weights, which then get one
scale ``s_w[c]`` per output channel: an accumulator of channel c counts units of ``s_w[c]``, its bias is
stored in them, and the factor to the next activation of scale ``s_o[c]`` is ``s_w[c] / s_o[c]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..codecs import FloatCodec
from ..codecs.layers import GDN
from ..entropy import gaussian_tables, pmf_tables, scale_boundaries, scale_table
from ..errors import BadModel
from ..integer import (
    Z_FRACTION_BITS,
    DivisiveNormalization,
    IntegerCodec,
    IntegerConv,
    IntegerNetwork,
    Requantize,
    Stage,
    scale_thresholds,
)
from ..integer.arithmetic import MULTIPLIER_BITS, ROOT_SHIFT, SQUARE_SHIFT, Multiplier
from ..integer.stages import X_HI
from ..latents import FIXED_HI, FIXED_LO
from .calibration import Calibration, Observed
from .config import QuantizeConfig
from .ranges import ActivationFormat, activation_format, quantize_weight, weight_scales
from .rounding import round_kernel

#: room above the largest value seen, for 16-bit tensors that must not clip on other pictures
HEADROOM = 1.5
ENTROPY_PATH_BITS = 7


def _pairs(network: nn.Sequential) -> list[tuple[int, nn.Conv2d | nn.ConvTranspose2d, nn.Module | None]]:
    """``(index of the convolution, convolution, nonlinearity after it or None)`` in order."""
    modules = list(network)
    pairs, i = [], 0
    while i < len(modules):
        after = modules[i + 1] if i + 1 < len(modules) else None
        module = modules[i]
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            raise BadModel(f"cannot quantize {type(module).__name__} where a convolution is expected")
        if after is not None and isinstance(after, nn.Conv2d | nn.ConvTranspose2d):
            after = None
        pairs.append((i, module, after))
        i += 1 if after is None else 2
    return pairs


def _format(seen: Observed, config: QuantizeConfig) -> ActivationFormat:
    return activation_format(
        seen, config.activation_bits, config.activation_range, config.granularity, config.channel_exponent
    )


def _integer_conv(
    module: nn.Conv2d | nn.ConvTranspose2d,
    source: ActivationFormat,
    grams: list[Tensor],
    bits: int,
    config: QuantizeConfig,
) -> tuple[IntegerConv, Tensor]:
    """The convolution and the real value of one unit of its accumulators, ``(O,)`` float64."""
    transposed = isinstance(module, nn.ConvTranspose2d)
    weight = module.weight.detach().double()
    if transposed:
        weight = weight.transpose(0, 1)
    # the input's scales go into the weights, so that integers of all channels can be added
    weight = weight * source.scale[None, :, None, None]
    limit = 2 ** (bits - 1) - 1
    scales = weight_scales(weight.flatten(1), limit, config.weight_range)
    if config.rounding == "compensated":
        q = round_kernel(module, weight, scales, source.scale, grams, limit)
    else:
        q = quantize_weight(weight.flatten(1), scales, limit).reshape(weight.shape)
    if transposed:
        q = q.transpose(0, 1)
    bias = torch.zeros(module.out_channels) if module.bias is None else module.bias.detach()
    integer_bias = torch.round(bias.double() / scales).to(torch.int64)
    conv = IntegerConv(q.contiguous(), integer_bias, module.stride[0], transposed, source.lo, source.hi, bits)
    return conv, scales


def _integer_gdn(
    gdn: GDN, unit: Tensor, seen_x: Observed, out: ActivationFormat, bits: int
) -> DivisiveNormalization:
    beta, gamma = (t.detach().double() for t in gdn.effective())
    x_scale = HEADROOM * max(seen_x.largest, 1e-6) / X_HI
    v_scale = x_scale**2 * 2.0**SQUARE_SHIFT
    # a row of tiny gammas must not blow up its beta: norms stay below 2^32
    gamma_scale = torch.maximum(gamma.amax(1) / (2**bits - 1), beta / v_scale * 2.0**-30)
    if not gdn.inverse:  # and the factor to the output representable, with a bit to spare
        finest = x_scale * 2.0**ROOT_SHIFT / (2.0 ** (MULTIPLIER_BITS - 1) * out.scale)
        gamma_scale = gamma_scale.clamp(min=finest**2 / v_scale)
    norm_unit = gamma_scale * v_scale
    root_unit = torch.sqrt(norm_unit) * 2.0**-ROOT_SHIFT
    factor = x_scale * root_unit / out.scale if gdn.inverse else x_scale / (root_unit * out.scale)
    return DivisiveNormalization(
        inverse=gdn.inverse,
        widen=Multiplier.from_float(unit / x_scale),
        gamma=torch.round(gamma / gamma_scale[:, None]).to(torch.int16),
        beta=torch.round(beta / norm_unit).clamp(min=1).to(torch.int64),
        factor=Multiplier.from_float(factor),
        lo=out.lo,
        hi=out.hi,
        bits=bits,
    )


def _network(
    part: str,
    network: nn.Sequential,
    source: ActivationFormat,
    end: ActivationFormat,
    seen: Calibration,
    config: QuantizeConfig,
) -> IntegerNetwork:
    """One of g_a, g_s, h_a, h_s; ``source`` and ``end`` are the formats at its two ends."""
    bits = min(config.weight_bits, ENTROPY_PATH_BITS) if part == "h_s" else config.weight_bits
    stages = []
    pairs = _pairs(network)
    for index, module, after in pairs:
        name = f"{part}.{index}"
        conv, unit = _integer_conv(module, source, seen.grams[name], bits, config)
        out = end
        if index != pairs[-1][0]:
            observed = seen.tensors[name if after is None else f"{part}.{index + 1}"]
            out = _format(observed, config)
        epilogue: Requantize | DivisiveNormalization
        if isinstance(after, GDN):
            epilogue = _integer_gdn(after, unit, seen.tensors[name], out, config.weight_bits)
        elif isinstance(after, nn.LeakyReLU):
            negative = Multiplier.from_float(unit / out.scale * after.negative_slope)
            epilogue = Requantize(Multiplier.from_float(unit / out.scale), negative, out.lo, out.hi)
        elif after is None or isinstance(after, nn.ReLU):
            lo = 0 if after is not None else out.lo
            epilogue = Requantize(Multiplier.from_float(unit / out.scale), None, lo, out.hi)
        else:
            raise BadModel(f"{part}.{index + 1}: no integer form of {type(after).__name__}")
        stages.append(Stage(name, conv, epilogue))
        source = out
    return IntegerNetwork(tuple(stages))


def _fraction_bits(y: Observed) -> int:
    """The most fraction bits (at most 8) with which 16 bits hold the latent and its headroom."""
    largest = HEADROOM * y.largest
    bits = 8
    while bits > 0 and largest * 2**bits > FIXED_HI:
        bits -= 1
    return bits


def to_integer(
    codec: FloatCodec,
    seen: Calibration,
    config: QuantizeConfig,
    description: dict[str, Any] | None = None,
) -> IntegerCodec:
    """The integer codec, checked against the contract.

    ``seen`` comes from `rdquant.weights.calibration.observe`. Raises `BadModel` or `CalibrationError`.
    """
    hyper = codec.has_hyperprior
    fraction_bits = _fraction_bits(seen.tensors["y"])
    pixels = ActivationFormat.uniform(1 / 255, 0, 255, 3)
    latent = ActivationFormat.uniform(2.0**-fraction_bits, FIXED_LO, FIXED_HI, codec.M)
    networks = {
        "g_a": _network("g_a", codec.g_a, pixels, latent, seen, config),
        "g_s": _network("g_s", codec.g_s, latent, pixels, seen, config),
    }
    z_tables = thresholds = hyper_input = None
    if hyper:
        observed = seen.tensors["hyper_input"]
        source = _format(observed, config)
        hyper_input = Requantize(
            Multiplier.from_float(latent.scale / source.scale), None, source.lo, source.hi
        )
        z = ActivationFormat.uniform(
            2.0**-Z_FRACTION_BITS, FIXED_LO, FIXED_HI, codec.entropy_bottleneck.channels
        )
        networks["h_a"] = _network("h_a", codec.h_a, source, z, seen, config)
        outputs = codec.M * (2 if codec.has_means else 1)
        parameters = ActivationFormat.uniform(2.0**-fraction_bits, FIXED_LO, FIXED_HI, outputs)
        networks["h_s"] = _network("h_s", codec.h_s, z, parameters, seen, config)
        levels = scale_table()
        y_tables = gaussian_tables(levels)
        z_tables = pmf_tables(*codec.entropy_bottleneck.pmfs())
        thresholds = scale_thresholds(scale_boundaries(levels), fraction_bits)
    else:
        y_tables = pmf_tables(*codec.entropy_bottleneck.pmfs())
    factorized_bits = Z_FRACTION_BITS if hyper else fraction_bits
    medians = torch.round(codec.entropy_bottleneck.medians().detach().flatten() * 2.0**factorized_bits)
    medians = medians.clamp(FIXED_LO, FIXED_HI).to(torch.int32)
    integer = IntegerCodec(
        codec.architecture, codec.N, codec.M, networks, y_tables, z_tables, thresholds, hyper_input,
        medians, fraction_bits, codec.has_means,
        {"quantize": config.to_json(), **(description or {})},
    )  # fmt: skip
    integer.check()
    return integer
