"""Residual and attention blocks of several architectures. Parameter names and shapes are CompressAI's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import GDN, LayerNorm2d, WindowAttention, conv1, conv3, subpel


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity (Cheng et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv3(channels, channels), conv3(channels, channels)
        self.leaky_relu = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.leaky_relu(self.conv2(self.leaky_relu(self.conv1(x)))) + x


class ResidualBlockWithStride(nn.Module):
    """Half the resolution, with GDN (Cheng et al. 2020)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv3(in_channels, out_channels, stride=2), conv3(out_channels, out_channels)
        self.leaky_relu, self.gdn = nn.LeakyReLU(0.01), GDN(out_channels)
        self.skip = conv1(in_channels, out_channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.gdn(self.conv2(self.leaky_relu(self.conv1(x)))) + self.skip(x)


class ResidualBlockUpsample(nn.Module):
    """Twice the resolution, with the inverse of GDN (Cheng et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.subpel_conv, self.conv = subpel(channels, channels), conv3(channels, channels)
        self.leaky_relu, self.igdn = nn.LeakyReLU(0.01), GDN(channels, inverse=True)
        self.upsample = subpel(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.igdn(self.conv(self.leaky_relu(self.subpel_conv(x)))) + self.upsample(x)


class ResidualBottleneckBlock(nn.Module):
    """A 3x3 convolution of half the channels beside the identity (He et al. 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.conv2, self.conv3 = conv1(channels, half), conv3(half, half), conv1(half, channels)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.relu2(self.conv2(self.relu1(self.conv1(x))))) + x


class _ResidualUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv = nn.Sequential(
            conv1(channels, half), nn.ReLU(), conv3(half, half), nn.ReLU(), conv1(half, channels)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) + x)


class AttentionBlock(nn.Module):
    """A gate over residual units, CompressAI's simplification of Cheng et al. 2020."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(_ResidualUnit(channels) for _ in range(3)))
        self.conv_b = nn.Sequential(*(_ResidualUnit(channels) for _ in range(3)), conv1(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_a(x) * torch.sigmoid(self.conv_b(x)) + x


class WindowBlock(nn.Module):
    """Attention in windows and a network at each position, both beside the identity (Liu et al. 2021)."""

    def __init__(self, channels: int, heads: int, window: int, shift: int = 0, expansion: int = 2) -> None:
        super().__init__()
        self.norm1, self.qkv = LayerNorm2d(channels), conv1(channels, 3 * channels)
        self.attention, self.projection = WindowAttention(heads, window, shift), conv1(channels, channels)
        self.norm2 = LayerNorm2d(channels)
        self.mlp = nn.Sequential(
            conv1(channels, expansion * channels), nn.GELU(), conv1(expansion * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.projection(self.attention(self.qkv(self.norm1(x))))
        return x + self.mlp(self.norm2(x))
