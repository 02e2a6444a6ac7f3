"""From accumulators, or any wide integers, to activations of fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadModel
from ...lazy import torch
from ..arithmetic import ACC_LIMIT, Multiplier, requantize
from .base import Operation, Port, Rounding, check_range, finish, per_channel

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Requantize(Operation):
    """``clip(floor(acc * m / 2^shift + 1/2), lo, hi)`` by channel.

    ``negative``: the factor of negative accumulators (leaky rectifier). A rectifier is ``lo = 0``.
    ``absolute``: of ``|acc|`` instead.
    """

    kind = "requantize"

    factor: Multiplier
    negative: Multiplier | None
    lo: int
    hi: int
    absolute: bool = False

    def exact(self, *q: np.ndarray) -> np.ndarray:
        acc = np.abs(q[0]) if self.absolute else q[0]
        return requantize(acc, self.factor, self.lo, self.hi, self.negative)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        acc = q[0].abs() if self.absolute else q[0]
        out = acc * per_channel(self.factor.as_float(), acc)
        if self.negative is not None:
            out = torch.where(acc < 0, acc * per_channel(self.negative.as_float(), acc), out)
        return finish(out, self.lo, self.hi, rounding)

    def check(self, name: str, *ports: Port) -> Port:
        (port,) = ports
        check_range(name, self.lo, self.hi)
        if max(-port.lo, port.hi) >= ACC_LIMIT:
            raise BadModel(f"{name} is given [{port.lo}, {port.hi}], over the contract's 2^36")
        self.factor.check(f"{name}.factor", port.channels)
        if self.negative is not None:
            self.negative.check(f"{name}.negative", port.channels)
        return Port(port.channels, self.lo, self.hi)
