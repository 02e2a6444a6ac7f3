"""Joint autoregressive and hierarchical prior (Minnen et al. 2018), CompressAI's `mbt2018`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..priors import Prior, Serial
from .factorized import widths
from .layers import Joined, MaskedConv2d, conv1
from .mean_scale import MeanScaleHyperprior


def entropy_parameters(M: int) -> Joined:
    """Features of z and of the context, 2 M channels each -> scales and means."""
    return Joined(
        conv1(M * 12 // 3, M * 10 // 3), nn.LeakyReLU(0.01),
        conv1(M * 10 // 3, M * 8 // 3), nn.LeakyReLU(0.01),
        conv1(M * 8 // 3, M * 6 // 3),
    )  # fmt: skip


class JointPrior(MeanScaleHyperprior):
    """Means and scales are told by z and by the elements above and to the left of each."""

    architecture = "mbt2018"
    prior: Prior = Serial()

    def __init__(self, N: int, M: int) -> None:
        super().__init__(N, M)
        self.context_prediction = MaskedConv2d(M, 2 * M)
        self.entropy_parameters = entropy_parameters(M)

    @classmethod
    def identify(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        return widths(tensors) if "context_prediction.weight" in tensors else None

    def context(self, y_hat: Tensor) -> Tensor:
        return self.context_prediction(y_hat)
