"""Generalized divisive normalization (Balle et al. 2016) and its approximate inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...errors import BadModel
from ...lazy import F, torch
from ..arithmetic import (
    ACC_LIMIT,
    GDN_SHIFT_LIMIT,
    NORM_LIMIT,
    ROOT_SHIFT,
    SQUARE_SHIFT,
    X_HI,
    X_LO,
    Multiplier,
    by_channel,
    gdn,
    requantize,
    squares,
)
from .base import Operation, Port, Rounding, Values, check_array, check_range, per_channel, round_ste, tensor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DivisiveNormalization(Operation):
    """``x / sqrt(beta + gamma x^2)``, or ``x * sqrt(...)`` if ``inverse``.

    Real: ``gamma: (C, C)`` and ``beta: (C,)`` as they enter the formula. In integers: 16-bit x from the
    accumulators by ``widen``, 16-bit squares v, ``norm = gamma v + beta``, integer root, and by ``factor``
    to activations in [lo, hi]; ``gamma`` int16, not negative, at most ``2^bits - 1``; ``beta`` int64, at
    least 1.
    """

    kind = "gdn"
    integers: ClassVar = {"gamma": np.int16, "beta": np.int64}

    inverse: bool
    gamma: Values
    beta: Values
    widen: Multiplier | None = None
    factor: Multiplier | None = None
    lo: int = 0
    hi: int = 0
    bits: int = 0

    def real(self, *x: Tensor) -> Tensor:
        norm = self._norm(x[0] * x[0])
        return x[0] * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))

    def _norm(self, squared: Tensor) -> Tensor:
        gamma, beta = tensor(self.gamma, squared), tensor(self.beta, squared)
        return F.conv2d(squared, gamma[:, :, None, None], beta)

    def exact(self, *q: np.ndarray) -> np.ndarray:
        assert self.widen is not None and self.factor is not None
        x = requantize(q[0], self.widen, X_LO, X_HI)
        flat = squares(x).reshape(*x.shape[:2], -1)
        norm = (self.gamma.astype(np.float64) @ flat).reshape(x.shape) + by_channel(self.beta)
        return gdn(x, norm, self.inverse, self.factor, self.lo, self.hi)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        assert self.widen is not None and self.factor is not None
        x = q[0] * per_channel(self.widen.as_float(), q[0])
        norm = self._norm(x * x * 2.0**-SQUARE_SHIFT)
        root = 2.0 ** (ROOT_SHIFT if self.inverse else -ROOT_SHIFT)
        out = x * per_channel(self.factor.as_float() * root, x)
        out = out * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))
        if rounding is Rounding.FREE:
            return out
        return (round_ste(out) if rounding is Rounding.ROUNDED else out).clamp(self.lo, self.hi)

    def norm_bound(self) -> int:
        """Largest norm that 16-bit squares can reach."""
        return int((self.gamma.sum(1, dtype=np.float64) * 65535 + self.beta).max())

    def check(self, name: str, *ports: Port) -> Port:
        (port,) = ports
        channels = port.channels
        if max(-port.lo, port.hi) >= ACC_LIMIT:
            raise BadModel(f"{name} is given [{port.lo}, {port.hi}], over the contract's 2^36")
        if self.widen is None or self.factor is None:
            raise BadModel(f"{name} lacks its factors")
        check_range(name, self.lo, self.hi)
        self.widen.check(f"{name}.widen", channels)
        self.factor.check(f"{name}.factor", channels)
        check_array(f"{name}.gamma", self.gamma, np.int16, (channels, channels))
        check_array(f"{name}.beta", self.beta, np.int64, (channels,))
        if not 1 <= self.bits <= 15:
            raise BadModel(f"{name}.bits must be 1..15, got {self.bits}")
        top = 2**self.bits - 1
        if int(self.gamma.min()) < 0 or int(self.gamma.max()) > top:
            raise BadModel(
                f"{name}.gamma must be in 0..{top}, got {int(self.gamma.min())}..{int(self.gamma.max())}"
            )
        if int(self.beta.min()) < 1 or self.norm_bound() >= NORM_LIMIT:
            raise BadModel(
                f"{name} has norms in {int(self.beta.min())}..{self.norm_bound()}, contract 1..2^32"
            )
        if not self.inverse and int(self.factor.shift.max()) > GDN_SHIFT_LIMIT:
            raise BadModel(f"{name}.factor.shift must be at most {GDN_SHIFT_LIMIT}")
        return Port(channels, self.lo, self.hi)
