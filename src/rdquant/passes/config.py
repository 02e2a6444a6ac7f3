"""How a codec is quantized, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..errors import UsageError
from .formats import CODED_BITS, FORMATS, FormatName

#: "minmax": the whole observed range. "percentile": all but the outermost samples.
#: "mse": the clipped range with the least mean squared error.
RangeRule = Literal["minmax", "percentile", "mse"]
RANGE_RULES: tuple[RangeRule, ...] = get_args(RangeRule)

#: "nearest"; "compensated": each rounding error spread over the weights not yet rounded (GPTQ);
#: "two_sided": and over the output channels, see `rdquant.passes.rounding`.
Rounding = Literal["nearest", "compensated", "two_sided"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
#: of activations. "channel" costs nothing at run time: a channel's scale is folded into the weights
#: that read it, and into the requantization that writes it.
Granularity = Literal["tensor", "channel"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)

#: "plain": rounded after an invertible 1x1 convolution. "compensated": and each rounding error passed on to
#: the channels not yet rounded.
Mix = Literal["none", "plain", "compensated"]
MIXES: tuple[Mix, ...] = get_args(Mix)

NUMBER_FORMATS = ("auto", *FORMATS)
#: the least width of weights that "auto" makes uniform
UNIFORM_FROM = 8

CONFIG_VERSION = 2

#: what a name stands for. "portable": what every int8 engine has: weights of at most 8 bits by output
#: channel, one scale for each activation (those of channels go into weights), rounded to nearest
PROFILES: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "portable": {
        "mixing": "plain",
        "doubled": 0.5,
        "wide_ends": False,
        "number_format": "uniform",
        "clip_cost": 4.0,
    },
}


def profile_options(name: str) -> Mapping[str, Any]:
    """Options of `QuantizeConfig` that a profile stands for. Raises `UsageError`."""
    if name not in PROFILES:
        raise UsageError(f"the profile must be one of {', '.join(PROFILES)}, got {name!r}")
    return PROFILES[name]


#: networks that a decoder does not need to read symbols
OUTSIDE_PRIOR = ("analysis", "hyper_analysis", "synthesis")
#: networks between pixels and latents
TRANSFORMS = ("analysis", "synthesis")
#: of weights and activations outside the scope
WIDE_BITS = 12


@dataclass(frozen=True)
class QuantizeConfig:
    """Uniform post-training quantization of every layer. Round-trips through JSON."""

    weight_bits: int = 8
    """Convolution weights and GDN gammas: symmetric, per output channel. Layers that a decoder needs to read
    symbols (hyper_synthesis and all that follows it in the prior) use at most 7, unless
    ``prior_activation_bits`` makes them read more than 8."""
    activation_bits: int = 8
    """Activations between layers: static, as wide to each side as was observed."""
    weight_range: RangeRule = "mse"
    activation_range: RangeRule = "mse"
    rounding: Rounding = "two_sided"
    granularity: Granularity = "channel"
    """Static scales of activations: one per tensor, or one per channel."""
    number_format: FormatName | Literal["auto"] = "auto"
    """Of convolution weights, see `rdquant.passes.formats`. "auto": uniform from 8 bits on, which integer
    kernels like best; below, a codebook, whose error is half as large.
    """
    layer_bits: Mapping[str, float] = field(default_factory=dict)
    """Weight bits of single layers by name (``g_a.0``), over ``weight_bits``: mixed precision. Fractions of a
    bit are for the coded format only, whose widths are steps (`rdquant.passes.sized`)."""
    layer_activation_bits: Mapping[str, int] = field(default_factory=dict)
    """Bits of what single nodes (``g_a.1``) put out, over ``activation_bits``."""
    wide_ends: bool = True
    """Four bits more, up to 12, for the weights of the transforms' first and last convolutions, for what the
    last one reads, for sums that end residual blocks and for those with y_hat, unless a mixing does their
    work; of codecs of many rates for more of the last blocks: see `rdquant.passes.ends`."""
    prior_activation_bits: int | None = None
    """Bits of activations in the hyper-coder and in the networks that follow it in the prior, if more than
    ``activation_bits``; None: 12 where parts of the latent are coded given others (`rdquant.passes.ends`), no
    more elsewhere. Products of 8 bits are faster than wider ones where they have an instruction (VNNI).
    """
    scope: tuple[str, ...] = ()
    """Networks that get these widths, e.g. synthesis; none named: all. The others keep `WIDE_BITS`, which is
    as good as float."""
    channel_exponent: float = 0.75
    """Per channel: 1 gives each channel its own whole range, 0 none; between, weights share the burden."""

    clip_cost: float = 1.0
    """Of activations, by "mse": how often the error of a clipped value counts. Values of many channels are
    clipped together, and their errors add up in what reads them, where those of rounding cancel.
    """
    percentile: float = 0.9999
    """By "percentile": the share of samples below the upper end of the range, and above the lower."""
    mixing: Mix = "compensated"
    """Of the channels behind each GDN, before they are rounded: see `rdquant.passes.mixing`. With any,
    residual streams change their basis (`rdquant.passes.streams`) and activations are centred
    (`rdquant.passes.centring`), both of which cost nothing at run time."""
    doubled: float = 0.0
    """With plain mixing, and no other: of so many channels of all there are two, rounded half a level apart,
    which makes 9 bits of 8, and the layer that reads them so much larger (`rdquant.passes.mixed`)."""
    mixing_steps: int | None = None
    """Gradient steps of each round that learns a mixing; None: `rdquant.passes.mixing.STEPS`."""

    def __post_init__(self) -> None:
        for where, bits in (("weight bits", self.weight_bits), *self.layer_bits.items()):
            if not 2 <= bits <= 16:
                raise UsageError(f"{where} must be 2..16, got {bits}")
        broken = [b for b in self.layer_bits.values() if b != int(b)]
        if broken and self.number_format != "coded":
            raise UsageError(f"fractions of a bit are for the coded format only, got {broken[0]}")
        prior = self.prior_activation_bits or self.activation_bits
        for where, bits in (
            ("activation bits", self.activation_bits),
            ("prior_activation_bits", prior),
            *self.layer_activation_bits.items(),
        ):
            if not 4 <= bits <= 15:
                raise UsageError(f"{where} must be 4..15, got {bits}")
        if self.number_format not in NUMBER_FORMATS:
            raise UsageError(
                f"number_format must be one of {', '.join(NUMBER_FORMATS)}, got {self.number_format!r}"
            )
        for name in ("weight_range", "activation_range"):
            if getattr(self, name) not in RANGE_RULES:
                raise UsageError(
                    f"{name} must be one of {', '.join(RANGE_RULES)}, got {getattr(self, name)!r}"
                )
        if self.granularity not in GRANULARITIES:
            raise UsageError(f"granularity must be tensor or channel, got {self.granularity!r}")
        if self.rounding not in ROUNDINGS:
            raise UsageError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {self.rounding!r}")
        if self.mixing not in MIXES:
            raise UsageError(f"mixing must be one of {', '.join(MIXES)}, got {self.mixing!r}")
        if not 0 <= self.doubled <= 1:
            raise UsageError(f"doubled must be in 0..1, got {self.doubled}")
        if self.mixing_steps is not None and self.mixing_steps < 1:
            raise UsageError(f"mixing_steps must be 1 or more, got {self.mixing_steps}")
        if not 0.5 < self.percentile <= 1:
            raise UsageError(f"percentile must be above 0.5 and at most 1, got {self.percentile}")
        if not self.clip_cost > 0:
            raise UsageError(f"clip_cost must be positive, got {self.clip_cost}")
        if not 0 <= self.channel_exponent <= 1:
            raise UsageError(f"channel_exponent must be in 0..1, got {self.channel_exponent}")

    def in_scope(self, network: str) -> bool:
        """Whether a network is to be quantized to the wanted widths."""
        return not self.scope or network in self.scope

    def bits_of(self, layer: str, network: str) -> float:
        """Weight bits of a layer; whole, unless the format is coded."""
        return self.layer_bits.get(layer, self.weight_bits if self.in_scope(network) else WIDE_BITS)

    def format_of(self, layer: str, network: str) -> FormatName:
        """Number format of a layer's weights."""
        bits = self.bits_of(layer, network)
        if self.number_format == "coded" and bits > CODED_BITS:
            return "uniform"
        if self.number_format != "auto":
            return self.number_format
        return "uniform" if bits >= UNIFORM_FROM else "codebook"

    def activation_bits_of(self, edge: str, network: str) -> int:
        """Bits of what a node puts out, where products take it."""
        default = self.activation_bits if self.in_scope(network) else WIDE_BITS
        if self.prior_activation_bits is not None and network not in TRANSFORMS:
            default = max(default, self.prior_activation_bits)
        return self.layer_activation_bits.get(edge, default)

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        return {"version": CONFIG_VERSION, **fields, "scope": list(self.scope)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> QuantizeConfig:
        fields = dict(data)
        if (version := fields.pop("version", None)) != CONFIG_VERSION:
            raise UsageError(
                f"quantization config has version {version!r}, this release reads {CONFIG_VERSION}"
            )
        if isinstance(fields.get("scope"), list):
            fields["scope"] = tuple(fields["scope"])
        try:
            return cls(**fields)
        except TypeError as error:
            raise UsageError(f"quantization config: {error}") from None
