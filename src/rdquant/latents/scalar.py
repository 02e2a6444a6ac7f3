"""Uniform scalar quantization of a latent around its mean: in float, and in fixed point.

``quantize`` gives the integers that are coded, ``dequantize`` what the synthesis receives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: y, means and y_hat of integer codecs are 16-bit fixed point
FIXED_LO, FIXED_HI = -(2**15), 2**15 - 1


@dataclass(frozen=True)
class UniformScalar:
    """``symbols = round(y - means)``; all arrays ``(B, M, H, W)`` float32, symbols int32."""

    step = 1.0  #: of a symbol, in units of y
    unit = 256  #: what a symbol's step is in the units that container files count in
    value_of_unit = 1 / 256  #: in units of y
    ends = -np.inf, np.inf  #: of what is reconstructed

    def quantize(self, y: np.ndarray, means: np.ndarray) -> np.ndarray:
        return np.round(y - means).astype(np.int32)

    def dequantize(self, symbols: np.ndarray, means: np.ndarray) -> np.ndarray:
        return symbols.astype(means.dtype) + means


@dataclass(frozen=True)
class FixedPointScalar:
    """The same on integers that stand for ``value * 2^fraction_bits``, rounding half up.

    ``y`` and ``means`` hold 16-bit integers in any dtype; results are int32. The reconstruction is
    clipped to 16 bits, on both sides alike.
    """

    fraction_bits: int
    value_of_unit = 1  #: in units of y
    ends = FIXED_LO, FIXED_HI

    @property
    def step(self) -> float:
        """Of a symbol, in units of y."""
        return float(1 << self.fraction_bits)

    @property
    def unit(self) -> int:
        return 1 << self.fraction_bits

    def quantize(self, y: np.ndarray, means: np.ndarray) -> np.ndarray:
        found = y.astype(np.int32)
        found += (1 << self.fraction_bits) >> 1
        found -= means.astype(np.int32, copy=False)
        found >>= self.fraction_bits
        return found

    def dequantize(self, symbols: np.ndarray, means: np.ndarray) -> np.ndarray:
        # clip first: a damaged or hostile file may hold any 32-bit symbol
        top = 2 ** (17 - self.fraction_bits)
        found = symbols.clip(-top, top).astype(np.int32, copy=False)
        found <<= self.fraction_bits
        found += means.astype(np.int32, copy=False)
        return found.clip(FIXED_LO, FIXED_HI, out=found)
