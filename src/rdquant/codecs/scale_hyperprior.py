"""Scale hyperprior (Ballé et al. 2018), CompressAI's `bmshj2018-hyperprior`."""

from __future__ import annotations

from torch import Tensor, nn

from .base import FloatCodec
from .bottleneck import EntropyBottleneck
from .factorized import FactorizedPrior
from .layers import conv, deconv


class ScaleHyperprior(FloatCodec):
    """A hyper-latent z carries the scale of each element of y; means are zero."""

    architecture = "bmshj2018-hyperprior"
    downsampling = 64

    def __init__(self, N: int, M: int) -> None:
        super().__init__(N, M)
        transforms = FactorizedPrior(N, M)
        self.g_a, self.g_s = transforms.g_a, transforms.g_s
        self.entropy_bottleneck = EntropyBottleneck(N)
        self.h_a = nn.Sequential(
            conv(M, N, kernel_size=3, stride=1), nn.ReLU(), conv(N, N), nn.ReLU(), conv(N, N)
        )  # fmt: skip
        self.h_s = nn.Sequential(
            deconv(N, N), nn.ReLU(), deconv(N, N), nn.ReLU(), conv(N, M, kernel_size=3, stride=1), nn.ReLU()
        )  # fmt: skip

    def hyper_input(self, y: Tensor) -> Tensor:
        return y.abs()

    def gaussian_parameters(self, z_hat: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.h_s(z_hat), None
