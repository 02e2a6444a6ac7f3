"""Rounding channel after channel, each error passed on to the channels still to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...errors import BadModel
from ...lazy import torch
from ..arithmetic import (
    ACC_LIMIT,
    ERROR_BITS,
    ERROR_LIMIT,
    FEEDBACK_BITS,
    FEEDBACK_SUM_LIMIT,
    V_LIMIT,
    Multiplier,
    compensate,
    requantize,
)
from ..kernels import compensate_rows
from .base import Operation, Port, Rounding, Values, check_array, check_range, per_channel

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Compensate(Operation):
    """Accumulators to activations in a range of each channel's own: `rdquant.graph.arithmetic.compensate`.

    ``factor`` leads to units of ``2^-ERROR_BITS`` activations.
    """

    kind = "compensate"
    integers: ClassVar = {"feedback": np.int16}

    factor: Multiplier
    lo: int
    hi: int
    offset: Values
    """int32 ``(C,)``: the range of channel c is ``[lo + offset[c], hi + offset[c]]``, and holds 0."""
    feedback: Values
    """int16 ``(C, C)``, zero on the diagonal and below."""

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Each channel's least and largest activation, two ``(C,)`` float64."""
        offset = self.offset.astype(np.float64)
        return self.lo + offset, self.hi + offset

    def exact(self, *q: np.ndarray) -> np.ndarray:
        v = requantize(q[0], self.factor, -V_LIMIT, V_LIMIT)
        return compensate(v, self.lo, self.hi, self.offset, self.feedback)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        v = q[0] * per_channel(self.factor.as_float(), q[0])
        plain = v * 2.0**-ERROR_BITS
        if rounding is not Rounding.ROUNDED:  # clipped by channel it would be, and hardly ever is
            return plain
        rounded = self.fast(torch.floor(v.detach() + 0.5).clamp(-V_LIMIT, V_LIMIT).float().cpu().numpy())
        return plain + (torch.from_numpy(rounded).to(plain) - plain).detach()

    def fast(self, v: np.ndarray) -> np.ndarray:
        """`rdquant.graph.arithmetic.compensate` of float32 ``v: (B, C, H, W)`` that holds integers; tested
        equal to it.
        """
        b, c, h, w = v.shape
        rows = np.ascontiguousarray(v.transpose(0, 2, 3, 1)).reshape(-1, c)
        out = compensate_rows(rows, None, None, *self.ends(), self.feedback.astype(np.float64))
        return out.reshape(b, h, w, c).transpose(0, 3, 1, 2)

    def check(self, name: str, *ports: Port) -> Port:
        (port,) = ports
        channels = port.channels
        if max(-port.lo, port.hi) >= ACC_LIMIT:
            raise BadModel(f"{name} is given [{port.lo}, {port.hi}], over the contract's 2^36")
        check_range(name, self.lo, self.hi)
        check_array(f"{name}.offset", self.offset, np.int32, (channels,))
        least, most = int(self.offset.min()), int(self.offset.max())
        if self.lo + most > 0 or self.hi + least < 0:
            raise BadModel(f"{name}.offset in {least}..{most} leaves a range [lo, hi] without 0")
        check_range(f"{name} with its offsets", self.lo + least, self.hi + most)
        self.factor.check(f"{name}.factor", channels)
        check_array(f"{name}.feedback", self.feedback, np.int16, (channels, channels))
        if np.tril(self.feedback).any():
            raise BadModel(f"{name}.feedback must be zero on the diagonal and below")
        ways = (self.feedback.clip(min=0), self.feedback.clip(max=0))
        up, down = (way.sum(0, dtype=np.int64) for way in ways)
        reached = int((up - down).max()) * ERROR_LIMIT
        if reached + V_LIMIT * 2**FEEDBACK_BITS >= FEEDBACK_SUM_LIMIT:
            raise BadModel(f"{name}.feedback can pass on {reached}, over the contract's 2^40")
        return Port(channels, self.lo + least, self.hi + most)
