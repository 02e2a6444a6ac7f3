"""Building blocks whose operations all have an exact integer form: convolutions, sums, gates, shuffles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.01


def pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(in_channels, out_channels, 1)


def activation() -> nn.LeakyReLU:
    return nn.LeakyReLU(SLOPE)


class DepthBlock(nn.Module):
    """Spatial mixing, then a gated pair of 1x1 convolutions, each with a shortcut. 5 C^2 + 9 C a position.

    DCVC-RT's DepthConvBlock (Jia et al. 2025, arXiv 2502.20762) with a narrower, gated second half.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.mix_in = pointwise(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.mix_out = pointwise(channels, channels)
        self.expand = pointwise(channels, 2 * channels)
        self.project = pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix_out(self.depthwise(F.leaky_relu(self.mix_in(x), SLOPE)))
        value, gate = self.expand(x).chunk(2, 1)
        return x + self.project(value * torch.sigmoid(gate))


class GatedBlock(nn.Module):
    """Depthwise convolution, 1x1 expansion, gate, 1x1 projection, one shortcut. 3 C^2 + k^2 C a position."""

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.expand = pointwise(channels, 2 * channels)
        self.project = pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.expand(self.depthwise(x)).chunk(2, 1)
        return x + self.project(value * torch.sigmoid(gate))


def down(in_channels: int, out_channels: int, factor: int = 2) -> nn.Sequential:
    """(B, C, H, W) -> (B, C', H/factor, W/factor): pixels into channels, then 1x1."""
    return nn.Sequential(nn.PixelUnshuffle(factor), pointwise(in_channels * factor**2, out_channels))


def up(in_channels: int, out_channels: int, factor: int = 2) -> nn.Sequential:
    """(B, C, H, W) -> (B, C', H*factor, W*factor): 1x1, then channels into pixels."""
    return nn.Sequential(pointwise(in_channels, out_channels * factor**2), nn.PixelShuffle(factor))
