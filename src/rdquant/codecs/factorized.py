"""Factorized prior (Ballé et al. 2018): CompressAI's `bmshj2018-factorized`, also with ReLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..priors import Factorized, Prior
from .base import FloatCodec
from .bottleneck import EntropyBottleneck
from .layers import GDN, conv, deconv


def analysis_transform(N: int, M: int) -> nn.Sequential:
    """Pixels -> y of a 16th of the resolution."""
    return nn.Sequential(conv(3, N), GDN(N), conv(N, N), GDN(N), conv(N, N), GDN(N), conv(N, M))


def synthesis_transform(N: int, M: int) -> nn.Sequential:
    return nn.Sequential(
        deconv(M, N), GDN(N, inverse=True),
        deconv(N, N), GDN(N, inverse=True),
        deconv(N, N), GDN(N, inverse=True),
        deconv(N, 3),
    )  # fmt: skip


def widths(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of these transforms, from a checkpoint. Raises `KeyError`."""
    return {"N": tensors["g_a.0.weight"].shape[0], "M": tensors["g_a.6.weight"].shape[0]}


class FactorizedPrior(FloatCodec):
    """Analysis, synthesis and one learned density per latent channel; no side information."""

    architecture = "bmshj2018-factorized"
    downsampling = 16
    prior: Prior = Factorized()

    def __init__(self, N: int, M: int) -> None:
        super().__init__()
        self.N, self.M = N, M
        self.entropy_bottleneck = EntropyBottleneck(M)
        self.g_a, self.g_s = analysis_transform(N, M), synthesis_transform(N, M)

    @classmethod
    def identify(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        return widths(tensors) if "g_a.1.beta" in tensors and "h_s.0.weight" not in tensors else None


class FactorizedReLU(FactorizedPrior):
    """The same with rectifiers."""

    architecture = "bmshj2018-factorized-relu"

    def __init__(self, N: int, M: int) -> None:
        super().__init__(N, M)
        for transform in (self.g_a, self.g_s):
            for i in (1, 3, 5):
                transform[i] = nn.ReLU()

    @classmethod
    def identify(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        return widths(tensors) if "g_a.1.beta" not in tensors and "h_s.0.weight" not in tensors else None
