"""Factorized prior (Ballé et al. 2018), CompressAI's `bmshj2018-factorized`."""

from __future__ import annotations

from torch import Tensor, nn

from .base import FloatCodec, Forward, LatentMode, quantize_latent
from .bottleneck import EntropyBottleneck
from .layers import GDN, conv, deconv


class FactorizedPrior(FloatCodec):
    """Analysis, synthesis and one learned density per latent channel; no side information."""

    architecture = "bmshj2018-factorized"
    downsampling = 16
    has_hyperprior = False

    def __init__(self, N: int, M: int) -> None:
        super().__init__(N, M)
        self.entropy_bottleneck = EntropyBottleneck(M)
        self.g_a = nn.Sequential(
            conv(3, N), GDN(N), conv(N, N), GDN(N), conv(N, N), GDN(N), conv(N, M)
        )  # fmt: skip
        self.g_s = nn.Sequential(
            deconv(M, N), GDN(N, inverse=True),
            deconv(N, N), GDN(N, inverse=True),
            deconv(N, N), GDN(N, inverse=True),
            deconv(N, 3),
        )  # fmt: skip

    def forward(self, x: Tensor, mode: LatentMode = "noise", step: float = 0.5) -> Forward:
        y = self.g_a(x).float()
        y_rate, y_hat = quantize_latent(y, self.entropy_bottleneck.medians().detach(), mode)
        x_hat = self.g_s(y_hat)
        return Forward(x_hat.float(), {"y": self.entropy_bottleneck.likelihood(y_rate)})
