"""Scale hyperprior (Ballé et al. 2018), CompressAI's `bmshj2018-hyperprior`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..priors import Hyperprior, Prior
from .base import FloatCodec
from .bottleneck import EntropyBottleneck
from .factorized import analysis_transform, synthesis_transform, widths
from .layers import conv, deconv


class ScaleHyperprior(FloatCodec):
    """A hyper-latent z carries the scale of each element of y; means are zero."""

    architecture = "bmshj2018-hyperprior"
    prior: Prior = Hyperprior(means=False)

    def __init__(self, N: int, M: int) -> None:
        super().__init__()
        self.N, self.M = N, M
        self.g_a, self.g_s = analysis_transform(N, M), synthesis_transform(N, M)
        self.entropy_bottleneck = EntropyBottleneck(N)
        self.h_a = nn.Sequential(
            conv(M, N, kernel_size=3, stride=1), nn.ReLU(), conv(N, N), nn.ReLU(), conv(N, N)
        )  # fmt: skip
        self.h_s = nn.Sequential(
            deconv(N, N), nn.ReLU(), deconv(N, N), nn.ReLU(), conv(N, M, kernel_size=3, stride=1), nn.ReLU()
        )  # fmt: skip

    @classmethod
    def identify(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        found = widths(tensors)
        return found if tensors["h_s.4.weight"].shape[0] == found["M"] else None

    def hyper_analysis(self, y: Tensor) -> Tensor:
        return self.h_a(torch.abs(y))
