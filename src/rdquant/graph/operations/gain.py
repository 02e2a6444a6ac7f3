"""Gain units: one model for every rate (Cui et al. 2021, "Asymmetric gained deep image compression").

A codec for many rates multiplies its latent by a gain per channel before it is coded, and what was decoded by
another one, before the synthesis. Gains are learned at a few levels, and interpolated in the logarithm.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadModel
from ...lazy import torch
from ..arithmetic import MULTIPLIER_BITS, Multiplier, requantize
from .base import Operation, Port, Rounding, Values, check_fits, check_range, finish, per_channel

if TYPE_CHECKING:
    from torch import Tensor

#: positions from one level to the next
POSITIONS = 1024
#: fraction bits of the integers' logarithms (to base 2)
LOG_BITS = 12
LOG_LIMIT = 15 << LOG_BITS


def powers() -> np.ndarray:
    """``round(2^(15 + i / 4096))`` for i below 4096, int64: the multipliers of a fraction of a logarithm."""
    return np.round(np.exp2(MULTIPLIER_BITS - 1 + np.arange(1 << LOG_BITS) / (1 << LOG_BITS))).astype(
        np.int64
    )


@dataclass(frozen=True)
class Gain(Operation):
    """``x * 2^log2(position)`` by channel; ``log2: (levels, C)``, of integers int32 in units of 2^-12.

    ``position``: 0 is the first level, `POSITIONS` the second; between them, logarithms are interpolated. In
    integers: ``l = (log2[i] (1024 - f) + log2[i + 1] f + 512) >> 10`` of ``position = 1024 i + f``, then
    multiplied and rounded as by a multiplier ``(round(2^(15 + (l mod 4096) / 4096)), 15 - floor(l / 4096))``.
    """

    kind = "gain"

    log2: Values
    position: int
    lo: int = 0
    hi: int = 0

    @property
    def last(self) -> int:
        """The highest position."""
        return (len(self.log2) - 1) * POSITIONS

    def at(self, position: int) -> Gain:
        return dataclasses.replace(self, position=position)

    def channels(self, *channels: int) -> int:
        if channels[0] != self.log2.shape[1]:
            raise BadModel(f"a gain of {self.log2.shape[1]} channels is given {channels[0]}")
        return channels[0]

    def _neighbours(self) -> tuple[Values, Values, int]:
        level = min(self.position // POSITIONS, len(self.log2) - 2)
        return self.log2[level], self.log2[level + 1], self.position - level * POSITIONS

    def factor(self) -> Multiplier:
        """Of integers at the position."""
        low, high, f = self._neighbours()
        log = (
            low.astype(np.int64) * (POSITIONS - f) + high.astype(np.int64) * f + POSITIONS // 2
        ) // POSITIONS
        m = powers()[log % (1 << LOG_BITS)]
        shift = MULTIPLIER_BITS - 1 - log // (1 << LOG_BITS)
        return Multiplier(m.astype(np.int32), shift.astype(np.int32))

    def factors(self) -> Values:
        """``(C,)`` float64, at the position."""
        if isinstance(self.log2, np.ndarray):
            return self.factor().as_float()
        low, high, f = self._neighbours()
        return torch.exp2(torch.lerp(low, high, f / POSITIONS).double())

    def real(self, *x: Tensor) -> Tensor:
        return x[0] * per_channel(self.factors(), x[0])

    def exact(self, *q: np.ndarray) -> np.ndarray:
        return requantize(q[0], self.factor(), self.lo, self.hi)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        return finish(q[0] * per_channel(self.factor().as_float(), q[0]), self.lo, self.hi, rounding)

    def check(self, name: str, *ports: Port) -> Port:
        (port,) = ports
        check_fits(name, port)
        check_range(name, self.lo, self.hi)
        t = self.log2
        if t.dtype != np.int32 or t.ndim != 2 or not 2 <= len(t) <= 64 or t.shape[1] != port.channels:
            raise BadModel(f"{name}.log2 must be int32 (2..64 levels, {port.channels}), got {tuple(t.shape)}")
        if int(t.min()) < -LOG_LIMIT or int(t.max()) > LOG_LIMIT:
            raise BadModel(f"{name}.log2 must be within +-{LOG_LIMIT}, got {int(t.min())}..{int(t.max())}")
        if not 0 <= self.position <= self.last:
            raise BadModel(f"{name}.position must be 0..{self.last}, got {self.position}")
        return Port(port.channels, self.lo, self.hi)
