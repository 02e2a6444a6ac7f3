"""The layers the hyperprior family is built from: strided convolutions and (inverse) GDN.

Parameter names and shapes are CompressAI's, so its checkpoints load without renaming.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

    def forward(self, x: Tensor) -> Tensor:
        beta, gamma = self.effective()
        norm = F.conv2d(x * x, gamma[:, :, None, None], beta)
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))
