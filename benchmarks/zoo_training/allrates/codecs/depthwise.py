"""Candidates c and d: depthwise blocks on shuffled pixels, in the manner of DCVC-RT's intra codec
(Jia et al. 2025, arXiv 2502.20762). Almost all work is 1x1 convolutions at 1/8 and 1/16 of each side.
"""

from __future__ import annotations

from torch import nn

from rdquant.codecs.layers import conv

from .base import AllRatesCodec
from .blocks import DepthBlock, activation, down, pointwise, up
from .prior import FourPartPrior


def stack(block: type[nn.Module], channels: int, count: int) -> list[nn.Module]:
    return [block(channels) for _ in range(count)]


def hyper_analysis(N: int, M: int, width: int, block: type[nn.Module]) -> nn.Sequential:
    """1/16 -> 1/64 of each side."""
    return nn.Sequential(
        pointwise(M, width), block(width), conv(width, width, 3, 2), activation(), conv(width, N, 3, 2)
    )


def hyper_synthesis(N: int, width: int, block: type[nn.Module]) -> nn.Sequential:
    """1/64 -> 1/16 of each side."""
    return nn.Sequential(up(N, width), block(width), up(width, width), block(width))


class Unshuffle8(AllRatesCodec):
    """c: pixels to channels by 8, and blocks at 1/8."""

    architecture = "unshuffle8"

    def __init__(
        self,
        N: int = 64,
        M: int = 256,
        hyper: int = 128,
        width: int = 128,
        encoder: int = 6,
        decoder: int = 6,
    ) -> None:
        super().__init__(N, M)
        self.g_a = nn.Sequential(down(3, width, 8), *stack(DepthBlock, width, encoder), down(width, M))
        self.g_s = nn.Sequential(up(M, width), *stack(DepthBlock, width, decoder), up(width, 3, 8))
        self.h_a = hyper_analysis(N, M, hyper, DepthBlock)
        self.h_s = hyper_synthesis(N, hyper, DepthBlock)
        self.prior = FourPartPrior(M, hyper, hyper, DepthBlock)


class Pyramid(AllRatesCodec):
    """d: blocks at 1/4, 1/8 and 1/16, a 3x3 convolution next to the pixels, a deeper encoder."""

    architecture = "pyramid"

    def __init__(
        self,
        N: int = 64,
        M: int = 160,
        hyper: int = 128,
        widths: tuple[int, int, int] = (64, 128, 192),
        encoder: tuple[int, int, int] = (1, 4, 3),
        decoder: tuple[int, int, int] = (1, 3, 3),
    ) -> None:
        super().__init__(N, M)
        fine, middle, coarse = widths
        self.g_a = nn.Sequential(
            nn.PixelUnshuffle(4), conv(48, fine, 3, 1), *stack(DepthBlock, fine, encoder[0]),
            down(fine, middle), *stack(DepthBlock, middle, encoder[1]),
            down(middle, coarse), *stack(DepthBlock, coarse, encoder[2]), pointwise(coarse, M),
        )  # fmt: skip
        self.g_s = nn.Sequential(
            pointwise(M, coarse), *stack(DepthBlock, coarse, decoder[2]),
            up(coarse, middle), *stack(DepthBlock, middle, decoder[1]),
            up(middle, fine), *stack(DepthBlock, fine, decoder[0]), up(fine, 3, 4),
        )  # fmt: skip
        self.h_a = hyper_analysis(N, M, hyper, DepthBlock)
        self.h_s = hyper_synthesis(N, hyper, DepthBlock)
        self.prior = FourPartPrior(M, hyper, hyper, DepthBlock)
