"""Normalization of a position's channels (Ba, Kiros and Hinton 2016), in fixed point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadModel
from ...lazy import torch
from ..arithmetic import LAYER_BIAS_BITS, Multiplier, by_channel, integer_root
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


@dataclass(frozen=True)
class LayerNorm(Operation):
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the channels of each position.

    In integers, all channels of one scale: ``d = floor(x - sum(x) / C + 1/2)``, ``root =
    floor(sqrt((sum(d^2) + floor) * 2^10))``, and ``q = floor(d * m / (root * 2^shift) + bias / 2^8 + 1/2)``,
    clipped to [lo, hi], with ``factor`` signed by ``sign``. ``floor`` stands for eps and is at least 1;
    ``bias`` is int32.
    """

    kind = "layer_norm"

    weight: Values | None
    bias: Values
    eps: float = 1e-5
    sign: Values | None = None
    factor: Multiplier | None = None
    floor: int = 1
    lo: int = 0
    hi: int = 0

    def real(self, *x: Tensor) -> Tensor:
        assert self.weight is not None
        centred = x[0] - x[0].mean(1, keepdim=True)
        normal = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + self.eps)
        return normal * per_channel(self.weight, x[0]) + per_channel(self.bias, x[0])

    def exact(self, *q: np.ndarray) -> np.ndarray:
        assert self.factor is not None and self.sign is not None
        c = q[0].shape[1]
        d = np.floor((2 * (c * q[0] - q[0].sum(1, keepdims=True)) + c) / (2 * c))
        root = integer_root((d * d).sum(1, keepdims=True) + self.floor)
        below = root * by_channel(np.ldexp(1.0, self.factor.shift))
        above = 2 ** (LAYER_BIAS_BITS + 1) * d * by_channel(self.factor.m * self.sign)
        above = above + below * (2 * by_channel(self.bias) + 2**LAYER_BIAS_BITS)
        return np.floor(above / (2 ** (LAYER_BIAS_BITS + 1) * below)).clip(self.lo, self.hi)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        assert self.factor is not None and self.sign is not None
        d = q[0] - q[0].mean(1, keepdim=True)
        root = torch.sqrt(d.square().sum(1, keepdim=True) + self.floor) * 2.0**5
        out = d * per_channel(self.factor.as_float(), d) * per_channel(self.sign, d) / root
        return finish(out + per_channel(self.bias, d) * 2.0**-LAYER_BIAS_BITS, self.lo, self.hi, rounding)

    def check(self, name: str, *ports: Port) -> Port:
        (port,) = ports
        check_fits(name, port)
        check_range(name, self.lo, self.hi)
        c = port.channels
        if self.factor is None or self.sign is None or not 1 <= c <= 1024:
            raise BadModel(f"{name} lacks its factor, or has {c} channels (at most 1024)")
        self.factor.check(f"{name}.factor", c)
        check_array(f"{name}.sign", self.sign, np.int32, (c,))
        check_array(f"{name}.bias", self.bias, np.int32, (c,))
        if not set(self.sign.tolist()) <= {-1, 1}:
            raise BadModel(f"{name}.sign must hold 1 and -1")
        reach = port.hi - port.lo
        most = c * reach**2 + self.floor
        if not 1 <= self.floor < 2**40 or most >= 2**42:
            raise BadModel(f"{name}: sums of squares can reach {most}, over 2^42")
        below = (int((most * 2**10) ** 0.5) + 1) << int(self.factor.shift.max())
        bias = 2 * largest(self.bias) + 2**LAYER_BIAS_BITS
        if below * (bias + 2 ** (LAYER_BIAS_BITS + 1)) + 2 ** (LAYER_BIAS_BITS + 17) * reach >= 2**53:
            raise BadModel(f"{name}.factor.shift and bias are too large: the division needs over 53 bits")
        return Port(c, self.lo, self.hi)
