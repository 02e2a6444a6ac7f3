"""J of a whole plan: measured, remembered and counted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from torch import Tensor

from ..measure.bootstrap import RESAMPLES, Interval, interval
from .table import WidthTwins


class Judge:
    """Relative increase of J of a whole plan. ``x: (B, 3, H, W)`` of 0..255; ``outputs``: activations
    quantized as well. ``evaluations`` and ``seconds`` are those of the model, parts of it included.
    """

    def __init__(
        self, twins: WidthTwins, x: Tensor, lambda_: float, j_float: float, outputs: bool = True
    ) -> None:
        self.twins, self.x, self.lambda_, self.j_float, self.outputs = twins, x, lambda_, j_float, outputs
        self.evaluations, self.seconds = 0, 0.0
        #: widths, relative increase and seconds so far, of each evaluation in turn
        self.log: list[tuple[dict[str, int], float, float]] = []
        self._known: dict[tuple[tuple[str, int], ...], float] = {}

    def __call__(self, bits: Mapping[str, int]) -> float:
        key = tuple(sorted(bits.items()))
        if key not in self._known:
            start = time.perf_counter()
            j = self.twins.cost(bits, self.x, self.lambda_, self.outputs)
            self._known[key] = (j - self.j_float) / self.j_float
            self.evaluations += 1
            self.seconds += time.perf_counter() - start
            self.log.append((dict(bits), self._known[key], self.seconds))
        return self._known[key]

    def interval(self, bits: Mapping[str, int]) -> Interval | None:
        """95 % of the relative increase, by bootstrap over the pictures, each coded by itself; for what a
        search ends with, and not counted as evaluations. None for one picture.
        """
        j, j_float = self._by_picture(bits), self._float
        return interval(lambda weights: float(weights @ j / (weights @ j_float)) - 1, len(j), RESAMPLES)

    @cached_property
    def _float(self) -> np.ndarray:
        return self._by_picture(None)

    def _by_picture(self, bits: Mapping[str, int] | None) -> np.ndarray:
        """J of each picture, ``(B,)``."""
        return np.array([self.twins.cost(bits, x, self.lambda_, self.outputs) for x in self.x.split(1)])
