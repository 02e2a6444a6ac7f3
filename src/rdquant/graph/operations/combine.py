"""Sums and products of several tensors: residual streams and gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadModel
from ..arithmetic import MULTIPLIER_BITS, SHIFT_LIMIT, Multiplier, by_channel
from .base import (
    Operation,
    Port,
    Rounding,
    Values,
    check_array,
    check_fits,
    check_range,
    finish,
    largest,
    per_channel,
)

if TYPE_CHECKING:
    from torch import Tensor


def _common(name: str, ports: tuple[Port, ...], least: int) -> int:
    """The channels of inputs that must be alike. Raises `BadModel`."""
    if len(ports) < least or len({p.channels for p in ports}) != 1:
        found = [p.channels for p in ports]
        raise BadModel(f"{name} takes {least} or more inputs of equal channels, got {found}")
    for port in ports:
        check_fits(name, port)
    return ports[0].channels


@dataclass(frozen=True)
class Sum(Operation):
    """``clip(floor(sum_i(q_i * m_i) / 2^shift + 1/2), lo, hi)`` by channel; with ``lo = 0`` a rectifier, too.

    ``m: (n, C)`` int32, magnitudes below 2^16, negative for a difference; ``shift: (C,)`` int32, 0..46.
    Real: ``signs`` alone. At most 16 inputs, so that a sum has 36 bits.
    """

    kind = "sum"
    arity = None

    signs: tuple[int, ...]
    m: Values | None = None
    shift: Values | None = None
    lo: int = 0
    hi: int = 0

    def real(self, *x: Tensor) -> Tensor:
        out = x[0] if self.signs[0] > 0 else -x[0]
        for sign, t in zip(self.signs[1:], x[1:], strict=True):
            out = out + t if sign > 0 else out - t
        return out

    def exact(self, *q: np.ndarray) -> np.ndarray:
        assert self.m is not None and self.shift is not None
        total = sum(t * by_channel(m) for m, t in zip(self.m, q, strict=True))
        return np.floor(total * by_channel(np.ldexp(1.0, -self.shift)) + 0.5).clip(self.lo, self.hi)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        assert self.m is not None and self.shift is not None
        total = sum(t * per_channel(m, t) for m, t in zip(self.m, q, strict=True))
        return finish(total * per_channel(np.ldexp(1.0, -self.shift), q[0]), self.lo, self.hi, rounding)

    def check(self, name: str, *ports: Port) -> Port:
        channels = _common(name, ports, 1)
        check_range(name, self.lo, self.hi)
        if len(ports) > 16 or len(self.signs) != len(ports) or not set(self.signs) <= {-1, 1}:
            raise BadModel(f"{name} has {len(ports)} inputs and signs {self.signs}")
        check_array(f"{name}.m", self.m, np.int32, (len(ports), channels))
        check_array(f"{name}.shift", self.shift, np.int32, (channels,))
        assert self.m is not None and self.shift is not None
        if largest(self.m) >= 2**MULTIPLIER_BITS:
            raise BadModel(f"{name}.m must be below 2^16, got {largest(self.m)}")
        if not 0 <= int(self.shift.min()) <= int(self.shift.max()) <= SHIFT_LIMIT:
            raise BadModel(f"{name}.shift must be in 0..{SHIFT_LIMIT}")
        return Port(channels, self.lo, self.hi)


@dataclass(frozen=True)
class Product(Operation):
    """``clip(floor(a * b * m / 2^shift + 1/2), lo, hi)`` of two tensors, element by element: a gate."""

    kind = "product"
    arity = 2

    factor: Multiplier | None = None
    lo: int = 0
    hi: int = 0

    def real(self, *x: Tensor) -> Tensor:
        return x[0] * x[1]

    def exact(self, *q: np.ndarray) -> np.ndarray:
        assert self.factor is not None
        scaled = q[0] * q[1] * by_channel(self.factor.as_float())
        return np.floor(scaled + 0.5).clip(self.lo, self.hi)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        assert self.factor is not None
        return finish(q[0] * q[1] * per_channel(self.factor.as_float(), q[0]), self.lo, self.hi, rounding)

    def check(self, name: str, *ports: Port) -> Port:
        channels = _common(name, ports, 2)
        check_range(name, self.lo, self.hi)
        if self.factor is None:
            raise BadModel(f"{name} lacks its factor")
        self.factor.check(f"{name}.factor", channels)
        return Port(channels, self.lo, self.hi)
