"""Gain units: one model serves every rate (Cui et al. 2021, "Asymmetric gained deep image compression").

A quality is a real number q in 0..LEVELS-1; lambda rises geometrically with it. Every whole q has a positive
gain per latent channel, and between two of them gains are interpolated in the logarithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LEVELS = 8
LAMBDA_MIN, LAMBDA_MAX = 0.0018, 0.06
#: lambda at which, for a transform that keeps lengths, the best uniform step of high-rate theory is
#: 0.175 of the picture's range: sqrt(12 * 3 / (2 ln 2 * lambda)) / 255, three components a pixel
REFERENCE_LAMBDA, REFERENCE_GAIN = 0.013, 5.7


def lambda_of(q: Tensor) -> Tensor:
    """Lambda of qualities ``q``, any shape, float32."""
    return LAMBDA_MIN * torch.exp(q.float() * (math.log(LAMBDA_MAX / LAMBDA_MIN) / (LEVELS - 1)))


def quality_of(lambda_: float) -> float:
    """The inverse of `lambda_of`."""
    return (LEVELS - 1) * math.log(lambda_ / LAMBDA_MIN) / math.log(LAMBDA_MAX / LAMBDA_MIN)


class GainUnit(nn.Module):
    """``q: (B,)`` -> gains ``(B, channels, 1, 1)``, positive. Starts at high-rate theory's step sizes."""

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        log_gain = torch.log(REFERENCE_GAIN * torch.sqrt(lambda_of(torch.arange(LEVELS)) / REFERENCE_LAMBDA))
        self.log_gain = nn.Parameter((-log_gain if inverse else log_gain)[:, None].repeat(1, channels))

    def forward(self, q: Tensor) -> Tensor:
        levels = torch.arange(LEVELS, device=q.device, dtype=torch.float32)
        weights = torch.relu(1 - (q.float()[:, None] - levels).abs())
        # sums of products, not a matmul: gains stay float32 under autocast
        return torch.exp((weights[:, :, None] * self.log_gain).sum(1))[:, :, None, None]
