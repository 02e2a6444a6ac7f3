"""Float codecs: one architecture per file, CompressAI's parameter names."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from .base import FloatCodec, Forward, LatentMode
from .cheng2020 import Cheng2020Anchor, Cheng2020Attention
from .elic2022 import Elic2022, Elic2022Chandelier
from .factorized import FactorizedPrior, FactorizedReLU
from .joint import JointPrior
from .mean_scale import MeanScaleHyperprior
from .scale_hyperprior import ScaleHyperprior
from .unshuffle8 import Unshuffle8
from .window_attention import WindowAttentionCodec

__all__ = ["ARCHITECTURES", "FloatCodec", "Forward", "LatentMode", "build"]

ARCHITECTURES: dict[str, type[FloatCodec]] = {
    cls.architecture: cls
    for cls in (
        FactorizedPrior, FactorizedReLU, ScaleHyperprior, MeanScaleHyperprior, JointPrior,
        Cheng2020Anchor, Cheng2020Attention, Elic2022, Elic2022Chandelier, WindowAttentionCodec, Unshuffle8,
    )
}  # fmt: skip


def build(architecture: str, *widths: int, **options: Any) -> FloatCodec:
    """A codec with fresh weights. ``widths``: the first of its options, N and M, without their names.

    Raises `UsageError` for an unknown name or option, or an impossible value.
    """
    cls = ARCHITECTURES.get(architecture)
    if cls is None:
        raise UsageError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    given = {**dict(zip(cls.OPTIONS, widths, strict=False)), **options}
    if unknown := sorted(set(given) - set(cls.OPTIONS)) or len(widths) > len(cls.OPTIONS):
        raise UsageError(f"{architecture} has the options {', '.join(cls.OPTIONS)}, got {unknown}")
    for name, value in given.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if type(number) is not int or not 1 <= number <= 4096:
                raise UsageError(f"{name} must be 1..4096, got {number!r}")
    try:
        return cls(**given)
    except TypeError as error:
        raise UsageError(f"{architecture}: {error}") from None
