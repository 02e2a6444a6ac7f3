"""Mean-scale hyperprior (Minnen et al. 2018, without the context model), CompressAI's `mbt2018-mean`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..priors import Hyperprior, Prior
from .base import FloatCodec
from .bottleneck import EntropyBottleneck
from .factorized import analysis_transform, synthesis_transform, widths
from .layers import conv, deconv


def hyper_analysis(N: int, M: int) -> nn.Sequential:
    """y -> z of a quarter of the resolution."""
    return nn.Sequential(
        conv(M, N, kernel_size=3, stride=1), nn.LeakyReLU(0.01),
        conv(N, N), nn.LeakyReLU(0.01),
        conv(N, N),
    )  # fmt: skip


def hyper_synthesis(N: int, M: int) -> nn.Sequential:
    """z_hat -> scales and means of y."""
    return nn.Sequential(
        deconv(N, M), nn.LeakyReLU(0.01),
        deconv(M, M * 3 // 2), nn.LeakyReLU(0.01),
        conv(M * 3 // 2, M * 2, kernel_size=3, stride=1),
    )  # fmt: skip


class MeanScaleHyperprior(FloatCodec):
    """z carries mean and scale of each element of y. ``h_s`` gives scales first, then means."""

    architecture = "mbt2018-mean"
    prior: Prior = Hyperprior()

    def __init__(self, N: int, M: int) -> None:
        super().__init__()
        self.N, self.M = N, M
        self.g_a, self.g_s = analysis_transform(N, M), synthesis_transform(N, M)
        self.h_a, self.h_s = hyper_analysis(N, M), hyper_synthesis(N, M)
        self.entropy_bottleneck = EntropyBottleneck(N)

    @classmethod
    def identify(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        found = widths(tensors)
        fits = tensors["h_s.4.weight"].shape[0] == 2 * found["M"]
        return found if fits and "context_prediction.weight" not in tensors else None
