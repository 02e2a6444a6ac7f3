"""Generalized divisive normalization (Balle et al. 2016) and its approximate inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import BadModel
from ..arithmetic import (
    ACC_LIMIT,
    GDN_SHIFT_LIMIT,
    NORM_LIMIT,
    ROOT_SHIFT,
    SQUARE_SHIFT,
    X_HI,
    X_LO,
    Multiplier,
    gdn,
    requantize,
    squares,
)
from .base import Operation, Port, Rounding, check_range, check_tensor, per_channel, round_ste


@dataclass(frozen=True)
class DivisiveNormalization(Operation):
    """``x / sqrt(beta + gamma x^2)``, or ``x * sqrt(...)`` if ``inverse``.

    Real: ``gamma: (C, C)`` and ``beta: (C,)`` as they enter the formula. In integers: 16-bit x from the
    accumulators by ``widen``, 16-bit squares v, ``norm = gamma v + beta``, integer root, and by ``factor``
    to activations in [lo, hi]; ``gamma`` int16, not negative, at most ``2^bits - 1``; ``beta`` int64, at
    least 1.
    """

    kind = "gdn"
    integers: ClassVar = {"gamma": torch.int16, "beta": torch.int64}

    inverse: bool
    gamma: Tensor
    beta: Tensor
    widen: Multiplier | None = None
    factor: Multiplier | None = None
    lo: int = 0
    hi: int = 0
    bits: int = 0

    def real(self, *x: Tensor) -> Tensor:
        norm = F.conv2d(x[0] * x[0], self.gamma.to(x[0])[:, :, None, None], self.beta.to(x[0]))
        return x[0] * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))

    def exact(self, *q: Tensor) -> Tensor:
        assert self.widen is not None and self.factor is not None
        x = requantize(q[0], self.widen, X_LO, X_HI)
        gamma = self.gamma.to(x)[:, :, None, None]
        norm = torch.round(F.conv2d(squares(x), gamma)) + per_channel(self.beta, x)
        return gdn(x, norm, self.inverse, self.factor, self.lo, self.hi)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        assert self.widen is not None and self.factor is not None
        x = q[0] * per_channel(self.widen.as_float(), q[0])
        norm = F.conv2d(x * x * 2.0**-SQUARE_SHIFT, self.gamma.to(x)[:, :, None, None], self.beta.to(x))
        root = 2.0 ** (ROOT_SHIFT if self.inverse else -ROOT_SHIFT)
        out = x * per_channel(self.factor.as_float() * root, x)
        out = out * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))
        if rounding is Rounding.FREE:
            return out
        return (round_ste(out) if rounding is Rounding.ROUNDED else out).clamp(self.lo, self.hi)

    def norm_bound(self) -> int:
        """Largest norm that 16-bit squares can reach."""
        return int((self.gamma.double().sum(1) * 65535 + self.beta.double()).max())

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
        check_tensor(f"{name}.gamma", self.gamma, torch.int16, (channels, channels))
        check_tensor(f"{name}.beta", self.beta, torch.int64, (channels,))
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
