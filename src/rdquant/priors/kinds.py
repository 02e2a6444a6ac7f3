"""The kinds of entropy models that need no context: factorized, and hyperprior."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .base import Part, Prior, Run, RunArrays, register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class Factorized(Prior):
    """One density for each channel of y (Balle et al. 2017): nothing else is known of it."""

    kind = "factorized"
    hyper = False
    no_trellis = "it has no hyperprior"

    @property
    def networks(self) -> dict[str, tuple[str, ...]]:
        return {}

    def outputs(self, channels: int) -> dict[str, int]:
        return {}


@register
@dataclass(frozen=True)
class Hyperprior(Prior):
    """z carries the scale of each element of y (Balle et al. 2018), and its mean (Minnen et al. 2018)."""

    kind = "hyperprior"

    means: bool = True

    def outputs(self, channels: int) -> dict[str, int]:
        return {"hyper_synthesis": channels}

    def walk(
        self, run: RunArrays, features: np.ndarray, y_hat: np.ndarray
    ) -> Iterator[tuple[Part, np.ndarray, np.ndarray | None]]:
        yield self.of(Part(slice(0, y_hat.shape[1])), features)

    def all_parameters(
        self, run: Run[Tensor], features: Tensor, y_hat: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return self.split(features)
