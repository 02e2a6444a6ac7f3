"""The layers that codecs are built from. Parameter names and shapes are CompressAI's.

A module with a method ``operation()`` is captured as that operation of `rdquant.graph`, which is also what it
computes: a layer's meaning is written down once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..graph.operations import Convolution, DivisiveNormalization, LayerNorm
from ..graph.operations import WindowAttention as Attention

# CompressAI's NonNegativeParametrizer: a stored value v stands for max(v, bound)^2 - pedestal.
REPARAM_OFFSET = 2.0**-18
PEDESTAL = REPARAM_OFFSET**2
BETA_MIN = 1e-6


class _LowerBound(torch.autograd.Function):
    """max(x, bound), passing the gradient where x is inside or would be pushed back inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where((x >= ctx.bound) | (grad < 0), grad, 0.0), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound) with a gradient that can bring x back above the bound (Ballé et al. 2018)."""
    return _LowerBound.apply(x, bound)


def conv(in_channels: int, out_channels: int, kernel_size: int = 5, stride: int = 2) -> nn.Conv2d:
    """A convolution with "same" padding: (B, C, H, W) -> (B, C', H/stride, W/stride)."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)


class SampledConv2d(nn.Conv2d):
    """A 1x1 convolution of a stride: `rdquant.graph.operations.Convolution` says why it is not PyTorch's."""

    def operation(self) -> Convolution:
        assert self.bias is not None
        return Convolution(self.weight, self.bias, stride=self.stride[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.operation().real(x)


def conv1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    if stride > 1:
        return SampledConv2d(in_channels, out_channels, 1, stride)
    return conv(in_channels, out_channels, 1, stride)


def conv3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return conv(in_channels, out_channels, 3, stride)


def deconv(in_channels: int, out_channels: int, kernel_size: int = 5, stride: int = 2) -> nn.ConvTranspose2d:
    """A transposed convolution: (B, C, H, W) -> (B, C', H*stride, W*stride)."""
    return nn.ConvTranspose2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        output_padding=stride - 1,
    )


def subpel(in_channels: int, out_channels: int, factor: int = 2) -> nn.Sequential:
    """A sub-pixel convolution: (B, C, H, W) -> (B, C', H*factor, W*factor)."""
    return nn.Sequential(conv3(in_channels, out_channels * factor**2), nn.PixelShuffle(factor))


class MaskedConv2d(nn.Conv2d):
    """A convolution of odd kernel that sees the neighbours that are decoded before a position: those above it
    and to its left, or with ``checkerboard`` those at an odd distance.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 5, checkerboard: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        at = torch.arange(kernel_size)
        if checkerboard:
            seen = (at[:, None] + at[None, :]) % 2 == 1
        else:
            seen = at[:, None] * kernel_size + at[None, :] < kernel_size**2 // 2
        self.mask: Tensor
        self.register_buffer("mask", seen.to(self.weight.dtype)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, 1, self.padding)


class Joined(nn.Sequential):
    """A network over the channels of several tensors."""

    def forward(self, *x: Tensor) -> Tensor:
        return super().forward(torch.cat(x, 1))


class GDN(nn.Module):
    """Generalized divisive normalization (Ballé et al. 2016), or its approximate inverse.

    ``y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)``; the inverse multiplies by the square root.

    ``x: (B, C, H, W)`` -> the same shape. ``beta`` and ``gamma`` hold the stored (square-root) form
    of CompressAI; `effective` returns the values the formula uses.
    """

    def __init__(self, channels: int, inverse: bool = False, gamma_init: float = 0.1) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.sqrt(torch.ones(channels) + PEDESTAL))
        self.gamma = nn.Parameter(torch.sqrt(gamma_init * torch.eye(channels) + PEDESTAL))

    def effective(self) -> tuple[Tensor, Tensor]:
        """``(beta: (C,), gamma: (C, C))`` as they enter the formula, both non-negative."""
        beta = lower_bound(self.beta, (BETA_MIN + PEDESTAL) ** 0.5) ** 2 - PEDESTAL
        gamma = lower_bound(self.gamma, REPARAM_OFFSET) ** 2 - PEDESTAL
        return beta, gamma

    def operation(self) -> DivisiveNormalization:
        beta, gamma = self.effective()
        return DivisiveNormalization(self.inverse, gamma, beta)

    def forward(self, x: Tensor) -> Tensor:
        return self.operation().real(x)


class LayerNorm2d(nn.Module):
    """Normalization of the channels of each position (Ba, Kiros and Hinton 2016)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def operation(self) -> LayerNorm:
        return LayerNorm(self.weight, self.bias, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.operation().real(x)


class WindowAttention(nn.Module):
    """Self-attention of queries, keys and values ``(B, 3 C, H, W)`` within windows (Liu et al. 2021)."""

    def __init__(self, heads: int, window: int, shift: int = 0) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.bias = nn.Parameter(torch.zeros(heads, (2 * window - 1) ** 2))

    def operation(self) -> Attention:
        return Attention(self.heads, self.window, self.shift, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.operation().real(x)
