"""Candidates a and b: the strided convolutions and GDN of Ballé et al. 2018 and Minnen et al. 2018."""

from __future__ import annotations

from torch import nn

from rdquant.codecs.layers import GDN, conv, deconv

from .base import AllRatesCodec
from .blocks import DepthBlock, activation
from .prior import FourPartPrior, OnePassPrior


def analysis(widths: tuple[int, int, int], M: int) -> nn.Sequential:
    """1/16 of each side; ``widths`` at 1/2, 1/4 and 1/8."""
    a, b, c = widths
    return nn.Sequential(conv(3, a), GDN(a), conv(a, b), GDN(b), conv(b, c), GDN(c), conv(c, M))


def synthesis(widths: tuple[int, int, int], M: int) -> nn.Sequential:
    """16 times each side; ``widths`` at 1/8, 1/4 and 1/2."""
    a, b, c = widths
    return nn.Sequential(
        deconv(M, a), GDN(a, inverse=True), deconv(a, b), GDN(b, inverse=True), deconv(b, c),
        GDN(c, inverse=True), deconv(c, 3),
    )  # fmt: skip


def hyper_analysis(N: int, M: int) -> nn.Sequential:
    return nn.Sequential(conv(M, N, 3, 1), activation(), conv(N, N), activation(), conv(N, N))


class MeanScale(AllRatesCodec):
    """The mean-scale hyperprior with gain units."""

    architecture = "mean-scale"

    def __init__(self, N: int = 64, M: int = 96) -> None:
        super().__init__(N, M)
        self.g_a, self.g_s = analysis((N, N, N), M), synthesis((N, N, N), M)
        self.h_a = hyper_analysis(N, M)
        self.h_s = nn.Sequential(
            deconv(N, M), activation(), deconv(M, M * 3 // 2), activation(), conv(M * 3 // 2, 2 * M, 3, 1)
        )
        self.prior = OnePassPrior()


class MeanScaleContext(AllRatesCodec):
    """Its transforms, a wider latent and the four-part context; a narrower last layer pays for them."""

    architecture = "mean-scale-context"

    def __init__(self, N: int = 64, M: int = 128, width: int = 128, last: int = 48) -> None:
        super().__init__(N, M)
        self.g_a, self.g_s = analysis((N, N, N), M), synthesis((N, N, last), M)
        self.h_a = hyper_analysis(N, M)
        self.h_s = nn.Sequential(
            deconv(N, N), activation(), deconv(N, width), activation(), conv(width, width, 3, 1), activation()
        )
        self.prior = FourPartPrior(M, width, width, DepthBlock)
