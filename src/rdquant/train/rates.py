"""Codecs of many rates in training: levels of the gains, and what they stand for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..codecs import FloatCodec
from .config import TrainConfig

#: lambda at which a picture of a codec of many rates counts once
J_REFERENCE = 0.013


def lambda_at(codec: FloatCodec, level: Tensor) -> Tensor:
    """Of a codec of many rates; geometric between its ends."""
    assert codec.lambdas is not None and codec.levels is not None
    low, high = codec.lambdas
    return low * torch.exp(level * (math.log(high / low) / (codec.levels - 1)))


def level_of(codec: FloatCodec, lambda_: float) -> float:
    """The inverse of `lambda_at`."""
    assert codec.lambdas is not None and codec.levels is not None
    low, high = codec.lambdas
    return (codec.levels - 1) * math.log(lambda_ / low) / math.log(high / low)


def weighted(
    codec: FloatCodec, config: TrainConfig, level: Tensor | None, bpp: Tensor, mse: Tensor
) -> Tensor:
    """The loss of pictures with ``bpp``, ``mse`` and, of many rates, ``level``: ``(B,)`` each, or means."""
    if level is None:
        return (config.lambda_ * mse + bpp).mean()
    lambda_ = lambda_at(codec, level)
    return ((lambda_ * mse + bpp) * (lambda_ / J_REFERENCE) ** -config.rate_weight).mean()


def random_levels(count: int, levels: int) -> Tensor:
    """``(count,)`` levels, one from each of ``count`` equal parts of their range, in random order."""
    strata = torch.randperm(count) + torch.rand(count)
    return strata * ((levels - 1) / count)


@torch.no_grad()
def validate_at(codec: FloatCodec, pictures: Tensor, lambda_: float, chunk: int = 4) -> dict[str, float]:
    """``pictures: (P, 3, H, W)`` uint8 -> means over them: everything truly rounded, pictures clamped and
    rounded; bits are estimated, by the densities and not by a file.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for part in pictures.split(chunk):
        x = part.contiguous(memory_format=torch.channels_last).float() / 255
        if codec.levels is not None:
            codec.at(torch.full((len(x),), level_of(codec, lambda_)))
        out = codec(x, "round")
        bpp = out.bits() / (x.shape[2] * x.shape[3])
        error = (torch.round(out.x_hat.clamp(0, 1) * 255) - part.float()) ** 2
        mse = error.mean((1, 2, 3))
        psnr = 10 * torch.log10(255**2 / mse.clamp(min=1e-3))
        sums += torch.stack([v.double().sum() for v in (bpp, mse, psnr)])
    codec.at(None)
    bpp, mse, psnr = (sums / len(pictures)).tolist()
    found = {"lambda": lambda_, "J": lambda_ * mse + bpp, "bpp": bpp, "mse": mse, "psnr": psnr}
    return {name: round(value, 4) for name, value in found.items()}
