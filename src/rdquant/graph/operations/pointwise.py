"""Functions of one number: in integers, tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadModel
from ...lazy import F, torch
from .base import Operation, Port, Rounding, Values, tensor

if TYPE_CHECKING:
    from torch import Tensor

#: name -> function of ``(x, *arguments)``
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": lambda x: F.relu(x),
    "leaky_relu": lambda x, slope=0.01: F.leaky_relu(x, slope),
    "abs": lambda x: x.abs(),
    "clamp": lambda x, lo, hi: x.clamp(lo, hi),
    "exp": lambda x, lo, hi: torch.exp(x.clamp(lo, hi)),
    "gelu": lambda x: F.gelu(x),
    "silu": lambda x: F.silu(x),
    "sigmoid": lambda x: torch.sigmoid(x),
    "tanh": lambda x: torch.tanh(x),
}
#: that `Requantize` does by itself
PIECEWISE_LINEAR = ("relu", "leaky_relu", "abs")
#: bits of what a table is looked up with
TABLE_BITS = 12


@dataclass(frozen=True)
class Pointwise(Operation):
    """``function(x, *arguments)``; in integers ``values[q - lo]``, ``values: (K,)`` int32 within 16 bits.

    The table is the same for all channels. Between its entries ``relaxed`` is linear.
    """

    kind = "table"

    function: str
    arguments: tuple[float, ...] = ()
    values: Values | None = None
    lo: int = 0

    def real(self, *x: Tensor) -> Tensor:
        return FUNCTIONS[self.function](x[0], *self.arguments)

    def exact(self, *q: np.ndarray) -> np.ndarray:
        assert self.values is not None
        return self.values[(q[0] - self.lo).astype(np.int64)].astype(np.float64)

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        assert self.values is not None
        values = tensor(self.values, q[0])
        at = (q[0] - self.lo).clamp(0, len(values) - 1)
        low = at.detach().floor().long().clamp(max=len(values) - 2)
        return values[low] + (at - low) * (values[low + 1] - values[low])

    def check(self, name: str, *ports: Port) -> Port:
        (port,) = ports
        if self.function not in FUNCTIONS:
            raise BadModel(f"{name} is of an unknown function {self.function!r}")
        t = self.values
        if t is None or t.dtype != np.int32 or t.ndim != 1 or not 2 <= len(t) <= 2**16:
            raise BadModel(f"{name}.values must be 2..65536 int32")
        least, most = int(t.min()), int(t.max())
        if least < -(2**15) or most > 2**15 - 1:
            raise BadModel(f"{name}.values must fit 16 bits, got {least}..{most}")
        if port.lo < self.lo or port.hi > self.lo + len(t) - 1:
            raise BadModel(
                f"{name} is given [{port.lo}, {port.hi}], its table has [{self.lo}, {self.lo + len(t) - 1}]"
            )
        return Port(port.channels, min(least, 0), max(most, 0))
