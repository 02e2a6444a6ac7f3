"""Convolutions and attention in windows, in the manner of TinyLIC (Lu et al. 2022); mean-scale hyperprior."""

from __future__ import annotations

from torch import nn

from ..errors import UsageError
from ..priors import Hyperprior, Prior
from .base import FloatCodec
from .blocks import WindowBlock
from .bottleneck import EntropyBottleneck
from .layers import conv, deconv
from .mean_scale import hyper_analysis, hyper_synthesis


class WindowAttentionCodec(FloatCodec):
    """Blocks at a quarter and at an eighth of the resolution; the second one there has shifted windows.

    ``window``: positions of a side, a divisor of 8; ``heads`` divide N.
    """

    architecture = "window-attention"
    OPTIONS = ("N", "M", "heads", "window")
    prior: Prior = Hyperprior()

    def __init__(self, N: int, M: int, heads: int = 4, window: int = 8) -> None:
        super().__init__()
        if N % heads:
            raise UsageError(f"heads must divide N = {N}, got {heads}")
        if 8 % window:
            raise UsageError(f"window must be 1, 2, 4 or 8, got {window}")
        self.N, self.M, self.heads, self.window = N, M, heads, window

        def block(shift: int = 0) -> WindowBlock:
            return WindowBlock(N, heads, window, shift)

        half = window // 2
        self.g_a = nn.Sequential(
            conv(3, N), nn.GELU(), conv(N, N), block(), conv(N, N), block(), block(half), conv(N, M)
        )
        self.g_s = nn.Sequential(
            deconv(M, N), block(), block(half), deconv(N, N), block(), deconv(N, N), nn.GELU(), deconv(N, 3)
        )
        self.h_a, self.h_s = hyper_analysis(N, M), hyper_synthesis(N, M)
        self.entropy_bottleneck = EntropyBottleneck(N)
