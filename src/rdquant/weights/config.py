"""How a codec is quantized, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import UsageError

#: "minmax": the whole observed range. "percentile": all but the outermost 0.01 % of samples.
#: "mse": the clipped range with the least mean squared error.
RangeRule = Literal["minmax", "percentile", "mse"]
RANGE_RULES: tuple[RangeRule, ...] = get_args(RangeRule)

#: "nearest", or "compensated": each rounding error spread over the weights not yet rounded (GPTQ).
Rounding = Literal["nearest", "compensated"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
#: of activations. "channel" costs nothing at run time: a channel's scale is folded into the weights
#: that read it, and into the requantization that writes it.
Granularity = Literal["tensor", "channel"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)

CONFIG_VERSION = 1


@dataclass(frozen=True)
class QuantizeConfig:
    """Uniform post-training quantization of every layer. Round-trips through JSON."""

    weight_bits: int = 8
    """Convolution weights and GDN gammas: symmetric, per output channel. Layers of h_s use at most 7."""
    activation_bits: int = 8
    """Activations between layers: static, per tensor, one side as wide as observed (no waste on signs)."""
    weight_range: RangeRule = "mse"
    activation_range: RangeRule = "mse"
    rounding: Rounding = "compensated"
    granularity: Granularity = "channel"
    """Static scales of activations: one per tensor, or one per channel."""
    channel_exponent: float = 0.75
    """Per channel: 1 gives each channel its own whole range, 0 none; between, weights share the burden."""

    def __post_init__(self) -> None:
        if not 2 <= self.weight_bits <= 16:
            raise UsageError(f"weight bits must be 2..16, got {self.weight_bits}")
        if not 4 <= self.activation_bits <= 15:
            raise UsageError(f"activation bits must be 4..15, got {self.activation_bits}")
        for name in ("weight_range", "activation_range"):
            if getattr(self, name) not in RANGE_RULES:
                raise UsageError(
                    f"{name} must be one of {', '.join(RANGE_RULES)}, got {getattr(self, name)!r}"
                )
        if self.granularity not in GRANULARITIES:
            raise UsageError(f"granularity must be tensor or channel, got {self.granularity!r}")
        if self.rounding not in ROUNDINGS:
            raise UsageError(f"rounding must be nearest or compensated, got {self.rounding!r}")
        if not 0 <= self.channel_exponent <= 1:
            raise UsageError(f"channel_exponent must be in 0..1, got {self.channel_exponent}")

    def to_json(self) -> dict[str, Any]:
        return {"version": CONFIG_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> QuantizeConfig:
        fields = dict(data)
        if (version := fields.pop("version", None)) != CONFIG_VERSION:
            raise UsageError(
                f"quantization config has version {version!r}, this release reads {CONFIG_VERSION}"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise UsageError(f"quantization config: {error}") from None
