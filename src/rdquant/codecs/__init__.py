"""Float codecs: one architecture per file, CompressAI's parameter names."""

from __future__ import annotations

from ..errors import UsageError
from .base import FloatCodec, Forward, LatentMode
from .factorized import FactorizedPrior
from .mean_scale import MeanScaleHyperprior
from .scale_hyperprior import ScaleHyperprior

__all__ = [
    "ARCHITECTURES",
    "FactorizedPrior",
    "FloatCodec",
    "Forward",
    "LatentMode",
    "MeanScaleHyperprior",
    "ScaleHyperprior",
    "build",
]

ARCHITECTURES: dict[str, type[FloatCodec]] = {
    cls.architecture: cls for cls in (FactorizedPrior, ScaleHyperprior, MeanScaleHyperprior)
}


def build(architecture: str, N: int, M: int) -> FloatCodec:
    """A codec with fresh weights. Raises `UsageError` for an unknown name or an impossible width."""
    if architecture not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    for name, width in (("N", N), ("M", M)):
        if not 1 <= width <= 4096:
            raise UsageError(f"{name} must be 1..4096, got {width}")
    return ARCHITECTURES[architecture](N, M)
