"""From the hyperprior to the parameters of y: a Gaussian for every element, in one pass or in four.

Networks give the logarithm of a scale, so the index of a scale's integer table is a linear function of an
output: nothing but a multiplication and a rounding separates a network from the coder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rdquant.codecs.base import ste_round
from rdquant.codecs.layers import lower_bound

from .blocks import pointwise

SCALES, SCALE_MIN, SCALE_MAX = 64, 0.11, 256.0
LOG_MIN, LOG_MAX = math.log(SCALE_MIN), math.log(SCALE_MAX)
LOG_STEP = (LOG_MAX - LOG_MIN) / (SCALES - 1)
#: which of the 2x2 positions channel group g has in pass k: g XOR ORDER[k]; the second pass is the
#: diagonal neighbour of the first
ORDER = (0, 3, 1, 2)


@dataclass(frozen=True)
class Latent:
    """y as a decoder would know it, and what it is coded with. All ``(B, M, H/16, W/16)``, float32."""

    y_hat: Tensor
    means: Tensor
    scales: Tensor


def bounded_scales(log_scales: Tensor) -> Tensor:
    """Scales 0.11..256 with a gradient that leads back from below."""
    return torch.exp(lower_bound(log_scales.float(), LOG_MIN).clamp(max=LOG_MAX))


def table_scales(log_scales: Tensor) -> Tensor:
    """The scale of the integer table that each log-scale selects."""
    index = torch.round((log_scales.float() - LOG_MIN) / LOG_STEP).clamp(0, SCALES - 1)
    return torch.exp(LOG_MIN + LOG_STEP * index)


class OnePassPrior(nn.Module):
    """``features: (B, 2M, ...)`` are the parameters themselves: the mean-scale hyperprior."""

    def forward(self, y: Tensor, features: Tensor, tables: bool = False) -> Latent:
        log_scales, means = features.float().chunk(2, 1)
        scales = table_scales(log_scales) if tables else bounded_scales(log_scales)
        return Latent(ste_round(y - means) + means, means, scales)


class FourPartPrior(nn.Module):
    """Four passes; each codes one position of every 2x2 square for each of four channel groups.

    The groups take different positions, so a pass sees all positions of other channels and other
    positions of its own (DCVC-DC, Li et al. 2023). A pass adds 1x1 convolutions around one block.
    """

    def __init__(
        self, M: int, features: int, width: int, block: type[nn.Module], shared: bool = True
    ) -> None:
        super().__init__()
        self.M = M
        self.first = pointwise(features, 2 * M)
        self.adaptors = nn.ModuleList(pointwise(M + features, width) for _ in range(3))
        self.blocks = nn.ModuleList(block(width) for _ in range(1 if shared else 3))
        self.heads = nn.ModuleList(pointwise(width, 2 * M) for _ in range(3))
        position = torch.arange(4).reshape(1, 1, 2, 2)
        group = (torch.arange(M) * 4 // M).reshape(1, M, 1, 1)
        order = torch.tensor(ORDER).reshape(4, 1, 1, 1)
        self.register_buffer(
            "pattern", (torch.bitwise_xor(group, order) == position).float(), persistent=False
        )
        self.pattern: Tensor

    def masks(self, height: int, width: int) -> Tensor:
        """``(4, M, height, width)``: one where a pass codes an element."""
        return self.pattern.repeat(1, 1, height // 2, width // 2)

    def parameters_of(self, k: int, known: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """``(log-scales, means)`` of pass ``k``, given the elements of earlier passes (zero elsewhere)."""
        if k == 0:
            out = self.first(features)
        else:
            hidden = self.adaptors[k - 1](torch.cat([known.to(features.dtype), features], 1))
            out = self.heads[k - 1](self.blocks[(k - 1) % len(self.blocks)](hidden))
        log_scales, means = out.float().chunk(2, 1)
        return log_scales, means

    def forward(self, y: Tensor, features: Tensor, tables: bool = False) -> Latent:
        masks = self.masks(*y.shape[2:])
        y_hat = means = log_scales = torch.zeros_like(y)
        for k in range(4):
            pass_scales, pass_means = self.parameters_of(k, y_hat, features)
            y_hat = y_hat + masks[k] * (ste_round(y - pass_means) + pass_means)
            means = means + masks[k] * pass_means
            log_scales = log_scales + masks[k] * pass_scales
        scales = table_scales(log_scales) if tables else bounded_scales(log_scales)
        return Latent(y_hat, means, scales)
