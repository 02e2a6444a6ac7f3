"""Residual blocks (Cheng et al. 2020), one Gaussian: CompressAI's `cheng2020-anchor` and `cheng2020-attn`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..priors import Prior, Serial
from .base import FloatCodec
from .blocks import AttentionBlock, ResidualBlock, ResidualBlockUpsample, ResidualBlockWithStride
from .bottleneck import EntropyBottleneck
from .joint import entropy_parameters
from .layers import MaskedConv2d, conv3, subpel

_ATTENTION = "g_a.3.conv_a.0.conv.0.weight"


class Cheng2020Anchor(FloatCodec):
    """All widths are N. The prior is that of `mbt2018`."""

    architecture = "cheng2020-anchor"
    OPTIONS = ("N",)
    prior: Prior = Serial()

    def __init__(self, N: int) -> None:
        super().__init__()
        self.N = self.M = N
        self.g_a = nn.Sequential(
            ResidualBlockWithStride(3, N), ResidualBlock(N),
            ResidualBlockWithStride(N, N), ResidualBlock(N),
            ResidualBlockWithStride(N, N), ResidualBlock(N),
            conv3(N, N, stride=2),
        )  # fmt: skip
        self.g_s = nn.Sequential(
            ResidualBlock(N), ResidualBlockUpsample(N),
            ResidualBlock(N), ResidualBlockUpsample(N),
            ResidualBlock(N), ResidualBlockUpsample(N),
            ResidualBlock(N), subpel(N, 3),
        )  # fmt: skip
        self.h_a = nn.Sequential(
            conv3(N, N), nn.LeakyReLU(0.01),
            conv3(N, N), nn.LeakyReLU(0.01),
            conv3(N, N, stride=2), nn.LeakyReLU(0.01),
            conv3(N, N), nn.LeakyReLU(0.01),
            conv3(N, N, stride=2),
        )  # fmt: skip
        self.h_s = nn.Sequential(
            conv3(N, N), nn.LeakyReLU(0.01),
            subpel(N, N), nn.LeakyReLU(0.01),
            conv3(N, N * 3 // 2), nn.LeakyReLU(0.01),
            subpel(N * 3 // 2, N * 3 // 2), nn.LeakyReLU(0.01),
            conv3(N * 3 // 2, N * 2),
        )  # fmt: skip
        self.entropy_bottleneck = EntropyBottleneck(N)
        self.context_prediction = MaskedConv2d(N, 2 * N)
        self.entropy_parameters = entropy_parameters(N)

    @classmethod
    def identify(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        found = {"N": tensors["g_a.0.conv1.weight"].shape[0]}
        fits = (_ATTENTION in tensors) == issubclass(cls, Cheng2020Attention)
        return found if fits and "context_prediction.weight" in tensors else None

    def context(self, y_hat: Tensor) -> Tensor:
        return self.context_prediction(y_hat)


class Cheng2020Attention(Cheng2020Anchor):
    """With a gate at a quarter and at a sixteenth of the resolution."""

    architecture = "cheng2020-attn"

    def __init__(self, N: int) -> None:
        super().__init__(N)
        self.g_a.insert(3, AttentionBlock(N))
        self.g_a.append(AttentionBlock(N))
        self.g_s.insert(4, AttentionBlock(N))
        self.g_s.insert(0, AttentionBlock(N))
