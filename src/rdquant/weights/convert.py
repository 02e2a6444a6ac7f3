"""A float codec and what was observed of it, turned into an integer codec.

Scales exist only here. What leaves is integers: weights, biases, multipliers, ranges, thresholds and
CDF tables. The scales of a layer's input channels are multiplied into its weights, which then get one
scale ``s_w[c]`` per output channel: an accumulator of channel c counts units of ``s_w[c]``, its bias is
stored in them, and the factor to the next activation of scale ``s_o[c]`` is ``s_w[c] / s_o[c]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..codecs import FloatCodec
from ..codecs.layers import GDN
from ..entropy import gaussian_tables, pmf_tables, scale_boundaries, scale_table
from ..errors import BadModel, UsageError
from ..integer import (
    LATENT_SHIFT_LIMIT,
    Z_FRACTION_BITS,
    Compensate,
    DivisiveNormalization,
    IntegerCodec,
    IntegerConv,
    IntegerNetwork,
    Requantize,
    Stage,
    scale_thresholds,
)
from ..integer.arithmetic import (
    ERROR_BITS,
    FEEDBACK_BITS,
    MULTIPLIER_BITS,
    ROOT_SHIFT,
    SQUARE_SHIFT,
    Multiplier,
)
from ..integer.stages import X_HI
from ..latents import FIXED_HI, FIXED_LO
from .calibration import Calibration, Observed
from .config import QuantizeConfig, is_mixing
from .formats import uniform
from .mixing import LATENT, Mixing
from .ranges import (
    ActivationFormat,
    activation_format,
    coded_scales,
    fit_levels,
    full_range_format,
    quantize_weight,
    weight_scales,
)
from .rounding import phases, round_kernel

#: room above the largest value seen, for 16-bit tensors that must not clip on other pictures
HEADROOM = 1.5
#: least magnitude of a channel inside GDN that gets a scale of its own, of the largest channel's
QUIETEST = 1e-3
#: room above the largest mixed value seen: all channels of a position clip at once
MIXED_HEADROOM = 1.5
ENTROPY_PATH_BITS = 7
#: factors on the weight scales of a layer that compensated rounding tries below 8 bits
NARROW_CLIPS = (0.7, 0.8, 0.9, 1.0, 1.12, 1.25)
#: least width of GDN's gammas: 1.5 % of the parameters, and much depends on them
GAMMA_BITS = 8
#: and the most: norms must stay below 2^32
MOST_GAMMA_BITS = 10


@dataclass(frozen=True)
class _Layer:
    """A convolution and the nonlinearity after it, if any, with their names in the network."""

    name: str
    conv: nn.Conv2d | nn.ConvTranspose2d
    after_name: str
    after: nn.Module | None


def _layers(network: nn.Sequential) -> list[_Layer]:
    modules: list[tuple[str, nn.Module | None]] = [*network.named_children(), ("", None)]
    layers, i = [], 0
    while i < len(modules) - 1:
        (name, module), (after_name, after) = modules[i], modules[i + 1]
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            raise BadModel(f"cannot quantize {type(module).__name__} where a convolution is expected")
        if isinstance(after, nn.Conv2d | nn.ConvTranspose2d):
            after_name, after = "", None
        layers.append(_Layer(name, module, after_name, after))
        i += 1 if after is None else 2
    return layers


@dataclass(frozen=True)
class Unrounded:
    """What a stage's integers were before rounding: same layouts, float64."""

    weight: Tensor
    gamma: Tensor | None = None


def _format(
    seen: Observed, config: QuantizeConfig, layer: str, stretch: Mapping[str, Any]
) -> ActivationFormat:
    bits = config.activation_bits_of(layer)
    if is_mixing(layer):
        found = full_range_format(seen, bits, MIXED_HEADROOM)
    else:
        found = activation_format(
            seen, bits, config.activation_range, config.granularity, config.channel_exponent
        )
    return dataclasses.replace(found, scale=found.scale * stretch.get(layer, 1.0))


def _integer_conv(
    name: str,
    module: nn.Conv2d | nn.ConvTranspose2d,
    source: ActivationFormat,
    grams: list[Tensor],
    sensitivity: Tensor | None,
    config: QuantizeConfig,
) -> tuple[IntegerConv, Tensor, Tensor]:
    """The convolution, the real value of one unit of its accumulators ``(O,)``, the unrounded kernel."""
    bits = config.bits_of(name)
    number_format = config.format_of(name)
    if name.startswith("h_s.") and bits <= 8 and number_format == "uniform":
        bits = min(bits, ENTROPY_PATH_BITS)
    transposed = isinstance(module, nn.ConvTranspose2d)
    weight = module.weight.detach().double()
    if transposed:
        weight = weight.transpose(0, 1)
    # the input's scales go into the weights, so that integers of all channels can be added
    weight = weight * source.scale[None, :, None, None]
    flat = weight.flatten(1)
    importance = _importance(module, source, grams)
    levels = fit_levels(flat, bits, number_format, importance)
    if number_format == "coded":
        if name.startswith("h_s."):
            levels = uniform(ENTROPY_PATH_BITS)
        scales = coded_scales(flat, levels, bits, sensitivity)
    else:
        scales = weight_scales(flat, levels, config.weight_range)
    if config.rounding != "nearest":
        cost = sensitivity if config.rounding == "two_sided" else None
        clips = NARROW_CLIPS if number_format == "uniform" and bits < 8 else (1.0,)
        q, scales = round_kernel(module, weight, scales, source.scale, grams, levels, cost, clips)
    else:
        q = quantize_weight(flat, scales, levels).reshape(weight.shape)
    unrounded = (flat / scales[:, None]).reshape(weight.shape)
    if transposed:
        q, unrounded = q.transpose(0, 1), unrounded.transpose(0, 1)
    bias = torch.zeros(module.out_channels) if module.bias is None else module.bias.detach()
    integer_bias = torch.round(bias.double() / scales).to(torch.int64)
    conv = IntegerConv(
        q.contiguous(), integer_bias, module.stride[0], transposed, *source.reach(), levels.bits,
        None if levels.symmetric_range else levels.values,
    )  # fmt: skip
    return conv, scales, unrounded.contiguous()


def _integer_mixing(mixing: Mixing, source: ActivationFormat) -> tuple[IntegerConv, Tensor, Tensor]:
    """As `_integer_conv`, and exact."""
    levels = mixing.levels[:, :, None, None].contiguous()
    bias = torch.zeros(len(levels), dtype=torch.int64)
    conv = IntegerConv(levels, bias, 1, False, source.lo, source.hi, mixing.bits)
    # exact if the scales that T was made for are these or all in one proportion to them
    return conv, mixing.unit * (source.scale / mixing.input_scale)[0], levels.double()


def _mixed_latent(seen: Observed) -> ActivationFormat:
    """16 bits for each channel, like the latent itself."""
    assert seen.low is not None and seen.high is not None
    top = torch.maximum(-seen.low, seen.high).double()
    top = top.clamp(min=max(QUIETEST * float(top.max()), 1e-6))
    return ActivationFormat(HEADROOM * top / FIXED_HI, FIXED_LO, FIXED_HI)


def _compensate(mixing: Mixing, unit: Tensor, out: ActivationFormat) -> Compensate:
    assert out.offset is not None
    factor = Multiplier.from_float(unit / out.scale * 2.0**ERROR_BITS)
    feedback = torch.round(mixing.feedback(out.scale) * 2.0**FEEDBACK_BITS)
    feedback = feedback.clamp(-(2**15), 2**15 - 1).to(torch.int16)
    return Compensate(factor, out.lo, out.hi, out.offset, feedback)


def _importance(
    module: nn.Conv2d | nn.ConvTranspose2d, source: ActivationFormat, grams: list[Tensor]
) -> Tensor:
    """Energy of the integer input that each weight of a row ``(I * k * k,)`` meets."""
    taps = module.kernel_size[0] ** 2
    energy = torch.zeros(module.in_channels, taps, dtype=torch.float64)
    for phase, gram in zip(phases(module), grams, strict=True):
        energy[:, phase] = gram.diagonal().reshape(module.in_channels, len(phase))
    return (energy / source.scale[:, None] ** 2).flatten()


def _integer_gdn(
    gdn: GDN, unit: Tensor, seen_x: Observed, out: ActivationFormat, bits: int
) -> tuple[DivisiveNormalization, Tensor]:
    """The normalization, and gamma before rounding."""
    beta, gamma = (t.detach().double() for t in gdn.effective())
    assert seen_x.low is not None and seen_x.high is not None
    # a scale for each channel: quiet ones keep their digits, and a row of gammas spans less
    top = torch.maximum(-seen_x.low, seen_x.high).double()
    x_scale = HEADROOM * top.clamp(min=max(QUIETEST * float(top.max()), 1e-6)) / X_HI
    weighted = gamma * x_scale**2 * 2.0**SQUARE_SHIFT
    # a row of tiny gammas must not blow up its beta: norms stay below 2^32
    norm_unit = torch.maximum(weighted.amax(1) / (2**bits - 1), beta * 2.0**-30)
    if not gdn.inverse:  # and the factor to the output representable, with a bit to spare
        finest = x_scale * 2.0**ROOT_SHIFT / (2.0 ** (MULTIPLIER_BITS - 1) * out.scale)
        norm_unit = torch.maximum(norm_unit, finest**2)
    root_unit = torch.sqrt(norm_unit) * 2.0**-ROOT_SHIFT
    factor = x_scale * root_unit / out.scale if gdn.inverse else x_scale / (root_unit * out.scale)
    unrounded = weighted / norm_unit[:, None]
    stage = DivisiveNormalization(
        inverse=gdn.inverse,
        widen=Multiplier.from_float(unit / x_scale),
        gamma=torch.round(unrounded).to(torch.int16),
        beta=torch.round(beta / norm_unit).clamp(min=1).to(torch.int64),
        factor=Multiplier.from_float(factor),
        lo=out.lo,
        hi=out.hi,
        bits=bits,
    )
    return stage, unrounded


def _network(
    part: str,
    network: nn.Sequential,
    source: ActivationFormat,
    end: ActivationFormat,
    seen: Calibration,
    config: QuantizeConfig,
    unrounded: dict[str, Unrounded],
    stretch: Mapping[str, Any],
) -> IntegerNetwork:
    """One of g_a, g_s, h_a, h_s; ``source`` and ``end`` are the formats at its two ends."""
    stages = []
    layers = _layers(network)
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        name, after = f"{part}.{layer.name}", layer.after
        if isinstance(layer.conv, Mixing):
            conv, unit, kernel = _integer_mixing(layer.conv, source)
        else:
            # rounding of the other formats gains next to nothing from it where no GDN follows
            wanted = isinstance(after, GDN) or config.format_of(name) == "coded"
            sensitivity = seen.sensitivities.get(name) if wanted else None
            conv, unit, kernel = _integer_conv(
                name, layer.conv, source, seen.grams[name], sensitivity, config
            )
        gamma = None
        out = end
        if following is not None and isinstance(following.conv, Mixing):
            top = following.conv.input_top
            out = ActivationFormat(following.conv.input_scale, -top, top)
        elif following is not None:
            observed = seen.tensors[name if after is None else f"{part}.{layer.after_name}"]
            out = _mixed_latent(observed) if name == LATENT else _format(observed, config, name, stretch)
        epilogue: Requantize | DivisiveNormalization | Compensate
        if isinstance(layer.conv, Mixing) and name != LATENT:
            epilogue = _compensate(layer.conv, unit, out)
        elif isinstance(after, GDN):
            bits = min(max(config.bits_of(name), GAMMA_BITS), MOST_GAMMA_BITS)
            epilogue, gamma = _integer_gdn(after, unit, seen.tensors[name], out, bits)
        elif isinstance(after, nn.LeakyReLU):
            negative = Multiplier.from_float(unit / out.scale * after.negative_slope)
            epilogue = Requantize(Multiplier.from_float(unit / out.scale), negative, out.lo, out.hi)
        elif after is None or isinstance(after, nn.ReLU):
            lo = 0 if after is not None else out.lo
            epilogue = Requantize(Multiplier.from_float(unit / out.scale), None, lo, out.hi)
        else:
            raise BadModel(f"{part}.{layer.after_name}: no integer form of {type(after).__name__}")
        stages.append(Stage(name, conv, epilogue))
        unrounded[name] = Unrounded(kernel, gamma)
        source = out
    return IntegerNetwork(tuple(stages))


def _latent_shift(codec: FloatCodec, seen: Calibration, fraction_bits: int) -> Tensor:
    """Bits by which each latent channel is scaled up before g_s, int32 ``(M,)``.

    Few channels of a latent carry most of it, and the weights that read the others may be larger: they
    would set the scale at which all are rounded. Scaling such channels up and their weights down leaves the
    resolution to those that matter: with each channel's largest weight below T, the error is about
    ``T^2 * sum(energy * 4^shift)``; T is searched in powers of two.
    """
    first = codec.g_s[0]
    y = seen.tensors["y"]
    if isinstance(first, Mixing):
        return torch.zeros(codec.M, dtype=torch.int32)
    assert isinstance(first, nn.Conv2d | nn.ConvTranspose2d)
    assert y.low is not None and y.high is not None
    top = first.weight.detach().double().abs()
    top = top.amax((1, 2, 3)) if isinstance(first, nn.ConvTranspose2d) else top.amax((0, 2, 3))
    energy = torch.zeros(codec.M, dtype=torch.float64)
    for gram in seen.grams["g_s.0"]:
        energy += gram.diagonal().reshape(codec.M, -1).sum(1)
    reach = HEADROOM * torch.maximum(-y.low, y.high).double().clamp(min=1) * 2.0**fraction_bits
    room = torch.floor(torch.log2(FIXED_HI / reach)).clamp(0, LATENT_SHIFT_LIMIT)
    best, chosen = float("inf"), torch.zeros(codec.M, dtype=torch.int32)
    for halvings in range(LATENT_SHIFT_LIMIT + 1):
        limit = float(top.max()) * 2.0**-halvings
        shift = torch.ceil(torch.log2(top.clamp(min=1e-12) / limit)).clamp(min=0)
        shift = torch.minimum(shift, room)
        reached = float((top * 2.0**-shift).max())
        cost = reached**2 * float((energy * 4.0**shift).sum())
        if cost < best:
            best, chosen = cost, shift.to(torch.int32)
    return chosen


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
    stretch: Mapping[str, Any] | None = None,
) -> tuple[IntegerCodec, dict[str, Unrounded]]:
    """The integer codec, checked against the contract, and its weights before rounding, by stage.

    ``codec`` and ``seen`` come from `rdquant.weights.prepare`. ``stretch``: by layer, a factor (or one per
    channel) on the activation scales that the range rule gives, see `rdquant.weights.rdo`. Raises
    `BadModel` or `CalibrationError`, and `UsageError` for bits given to a layer that does not exist.
    """
    unrounded: dict[str, Unrounded] = {}
    stretch = stretch or {}
    layers = {n for n in seen.grams if not is_mixing(n)} | {"hyper_input"}
    if unknown := sorted({*config.layer_bits, *config.layer_activation_bits} - layers):
        raise UsageError(f"no layer {', '.join(unknown)}; the codec has {', '.join(sorted(layers))}")
    hyper = codec.has_hyperprior
    fraction_bits = _fraction_bits(seen.tensors["y"])
    pixels = ActivationFormat.uniform(1 / 255, 0, 255, 3)
    latent = ActivationFormat.uniform(2.0**-fraction_bits, FIXED_LO, FIXED_HI, codec.M)
    shift = _latent_shift(codec, seen, fraction_bits)
    entering = ActivationFormat(latent.scale * 2.0 ** -shift.double(), FIXED_LO, FIXED_HI)
    networks = {
        "g_a": _network("g_a", codec.g_a, pixels, latent, seen, config, unrounded, stretch),
        "g_s": _network("g_s", codec.g_s, entering, pixels, seen, config, unrounded, stretch),
    }
    z_tables = thresholds = hyper_input = None
    if hyper:
        observed = seen.tensors["hyper_input"]
        source = _format(observed, config, "hyper_input", stretch)
        hyper_input = Requantize(
            Multiplier.from_float(latent.scale / source.scale), None, source.lo, source.hi
        )
        z = ActivationFormat.uniform(
            2.0**-Z_FRACTION_BITS, FIXED_LO, FIXED_HI, codec.entropy_bottleneck.channels
        )
        networks["h_a"] = _network("h_a", codec.h_a, source, z, seen, config, unrounded, stretch)
        outputs = codec.M * (2 if codec.has_means else 1)
        parameters = ActivationFormat.uniform(2.0**-fraction_bits, FIXED_LO, FIXED_HI, outputs)
        networks["h_s"] = _network("h_s", codec.h_s, z, parameters, seen, config, unrounded, stretch)
        levels = scale_table()
        y_tables = gaussian_tables(levels)
        z_tables = pmf_tables(*codec.entropy_bottleneck.pmfs())
        thresholds = scale_thresholds(scale_boundaries(levels), fraction_bits)
    else:
        y_tables = pmf_tables(*codec.entropy_bottleneck.pmfs())
    factorized_bits = Z_FRACTION_BITS if hyper else fraction_bits
    medians = torch.round(codec.entropy_bottleneck.medians().detach().flatten() * 2.0**factorized_bits)
    medians = medians.clamp(FIXED_LO, FIXED_HI).to(torch.int32)
    gains = {} if seen.gains is None else {"latent_gains": [float(f"{g:.4g}") for g in seen.gains]}
    integer = IntegerCodec(
        codec.architecture, codec.N, codec.M, networks, y_tables, z_tables, thresholds, hyper_input,
        medians, fraction_bits, codec.has_means, shift,
        {"quantize": config.to_json(), **gains, **(description or {})},
    )  # fmt: skip
    integer.check()
    return integer, unrounded
