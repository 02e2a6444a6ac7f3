"""The zoo's rd-s: blocks of 1x1 and depthwise convolutions on shuffled pixels, one model for every rate.

In the manner of DCVC-RT's intra codec (Jia et al. 2025, arXiv 2502.20762), whose blocks these are with
LeakyReLU for its activations, which costs integers nothing: nearly all work is at an eighth of each side.
Four-part context (DCVC-DC, Li et al. 2023); gain units around the latent (Cui et al. 2021).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..graph.operations import Gain, Pointwise
from ..graph.operations.gain import POSITIONS
from ..priors import FourPart, Prior
from .base import FloatCodec
from .bottleneck import EntropyBottleneck
from .layers import conv, conv1, lower_bound

SLOPE = 0.01
#: levels of the gains
LEVELS = 8
#: lambda of the lowest and the highest quality
LAMBDAS = (0.0018, 0.06)
SCALES = (0.11, 256.0)


class GainUnit(nn.Module):
    """A gain per channel and level, as natural logarithms; see `rdquant.graph.operations.Gain`.

    Starts with high-rate theory's step for a transform that keeps lengths, ``255 step = sqrt(12 * 3 / (2 ln 2
    * lambda))`` with three components a pixel, or its inverse.
    """

    #: in training: of each picture of the batch, ``(B,)`` in levels; None is the middle
    level: Tensor | None = None

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        lambdas = np.geomspace(*LAMBDAS, LEVELS)
        start = 0.5 * np.log(255**2 * 2 * math.log(2) / (12 * 3) * lambdas) * (-1 if inverse else 1)
        self.log_gain = nn.Parameter(torch.from_numpy(start).float()[:, None].repeat(1, channels))

    def operation(self) -> Gain:
        return Gain(self.log_gain / math.log(2), (LEVELS - 1) * POSITIONS // 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.level is None:
            return self.operation().real(x)
        levels = torch.arange(LEVELS, device=x.device, dtype=torch.float32)
        weights = torch.relu(1 - (self.level.float()[:, None] - levels).abs())
        # sums of products, not a matmul: gains stay float32 under autocast
        logs = (weights[:, :, None] * self.log_gain).sum(1)
        return x.float() * torch.exp(logs)[:, :, None, None]


class Scales(nn.Module):
    """Logarithms of scales to scales: one table between a network and the coder."""

    def operation(self) -> Pointwise:
        return Pointwise("exp", (math.log(SCALES[0]), math.log(SCALES[1])))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.operation().arguments
        return torch.exp(lower_bound(x.float(), low).clamp(max=high))  # the same, and leads back from below


class DepthBlock(nn.Module):
    """Spatial mixing, then two 1x1 convolutions, each pair beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix_in, self.mix_out = conv1(channels, channels), conv1(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.expand, self.project = conv1(channels, 2 * channels), conv1(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix_out(self.depthwise(F.leaky_relu(self.mix_in(x), SLOPE)))
        return x + self.project(F.leaky_relu(self.expand(x), SLOPE))


def blocks(channels: int, count: int) -> list[nn.Module]:
    return [DepthBlock(channels) for _ in range(count)]


def down(in_channels: int, out_channels: int, factor: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.PixelUnshuffle(factor), conv1(in_channels * factor**2, out_channels))


def up(in_channels: int, out_channels: int, factor: int = 2) -> nn.Sequential:
    return nn.Sequential(conv1(in_channels, out_channels * factor**2), nn.PixelShuffle(factor))


class ContextParameters(nn.Module):
    """What the four passes ask: the first of the features alone, the others of what is known as well."""

    def __init__(self, M: int, features: int) -> None:
        super().__init__()
        self.first = conv1(features, 2 * M)
        self.adaptors = nn.ModuleList(conv1(M + features, features) for _ in range(3))
        self.blocks = nn.ModuleList(blocks(features, 1))
        self.heads = nn.ModuleList(conv1(features, 2 * M) for _ in range(3))
        self.scales = Scales()

    def split(self, x: Tensor) -> Tensor:
        log_scales, means = x.chunk(2, 1)
        return torch.cat([self.scales(log_scales), means], 1)

    def later(self, k: int, features: Tensor, y_hat: Tensor) -> Tensor:
        hidden = self.blocks[0](self.adaptors[k - 1](torch.cat([y_hat, features], 1)))
        return self.split(self.heads[k - 1](hidden))


class Unshuffle8(FloatCodec):
    """``hyper``: channels of the hyperprior's networks; ``width``: at 1/8, in ``encoder`` and ``decoder``
    blocks.
    """

    architecture = "unshuffle8"
    levels, lambdas = LEVELS, LAMBDAS
    OPTIONS = ("N", "M", "hyper", "width", "encoder", "decoder")
    prior: Prior = FourPart()

    def __init__(
        self,
        N: int = 64,
        M: int = 320,
        hyper: int = 112,
        width: int = 128,
        encoder: int = 5,
        decoder: int = 5,
    ) -> None:
        super().__init__()
        self.N, self.M, self.hyper, self.width = N, M, hyper, width
        self.encoder, self.decoder = encoder, decoder
        self.g_a = nn.Sequential(down(3, width, 8), *blocks(width, encoder), down(width, M))
        self.g_s = nn.Sequential(up(M, width), *blocks(width, decoder), up(width, 3, 8))
        self.h_a = nn.Sequential(
            conv1(M, hyper), *blocks(hyper, 1), conv(hyper, hyper, 3), nn.LeakyReLU(SLOPE), conv(hyper, N, 3)
        )
        self.h_s = nn.Sequential(up(N, hyper), *blocks(hyper, 1), up(hyper, hyper), *blocks(hyper, 1))
        self.context = ContextParameters(M, hyper)
        self.gain, self.inverse_gain = GainUnit(M), GainUnit(M, inverse=True)
        self.entropy_bottleneck = EntropyBottleneck(N)

    def at(self, level: Tensor | None) -> None:
        self.gain.level = self.inverse_gain.level = level

    def analysis(self, x: Tensor) -> Tensor:
        return self.gain(self.g_a(x))

    def synthesis(self, y_hat: Tensor) -> Tensor:
        return self.g_s(self.inverse_gain(y_hat))

    def parameters_0(self, features: Tensor) -> Tensor:
        return self.context.split(self.context.first(features))

    def parameters_1(self, features: Tensor, y_hat: Tensor) -> Tensor:
        return self.context.later(1, features, y_hat)

    def parameters_2(self, features: Tensor, y_hat: Tensor) -> Tensor:
        return self.context.later(2, features, y_hat)

    def parameters_3(self, features: Tensor, y_hat: Tensor) -> Tensor:
        return self.context.later(3, features, y_hat)
