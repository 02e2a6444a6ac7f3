"""Mean-scale hyperprior (Minnen et al. 2018, without the context model), CompressAI's `mbt2018-mean`."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import conv, deconv
from .scale_hyperprior import ScaleHyperprior


class MeanScaleHyperprior(ScaleHyperprior):
    """z carries mean and scale of each element of y. ``h_s`` gives scales first, then means."""

    architecture = "mbt2018-mean"
    has_means = True

    def __init__(self, N: int, M: int) -> None:
        super().__init__(N, M)
        self.h_a = nn.Sequential(
            conv(M, N, kernel_size=3, stride=1), nn.LeakyReLU(0.01),
            conv(N, N), nn.LeakyReLU(0.01),
            conv(N, N),
        )  # fmt: skip
        self.h_s = nn.Sequential(
            deconv(N, M), nn.LeakyReLU(0.01),
            deconv(M, M * 3 // 2), nn.LeakyReLU(0.01),
            conv(M * 3 // 2, M * 2, kernel_size=3, stride=1),
        )  # fmt: skip

    def hyper_input(self, y: Tensor) -> Tensor:
        return y

    def gaussian_parameters(self, z_hat: Tensor) -> tuple[Tensor, Tensor | None]:
        scales, means = self.h_s(z_hat).chunk(2, dim=1)
        return scales, means
