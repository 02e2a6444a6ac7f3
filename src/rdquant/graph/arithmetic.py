"""The arithmetic of the integer contract, as the float64 reference computes it.

Every function takes and returns float64 arrays that hold integers. Float64 carries them exactly: no value or
intermediate here reaches 2^53, and only additions, multiplications, divisions, square roots, floors
and scalings by powers of two are used, each of which IEEE 754 rounds correctly. So the results are
the same on every machine, thread count and device; `rdquant.graph.kernels` computes the same
numbers faster and is tested equal. Bounds that make this so, checked when a network is built:
accumulators below 2^36, multipliers below 2^16, GDN norms in 1..2^32, GDN shifts up to 30.

Rounding is always "half up": ``floor(v + 1/2)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadModel

if TYPE_CHECKING:
    from torch import Tensor

MULTIPLIER_BITS = 16
#: x in (inverse) GDN is requantized to 16 bits; its square keeps the upper 16 of 30 bits.
GDN_BITS = 16
X_LO, X_HI = -(2 ** (GDN_BITS - 1)), 2 ** (GDN_BITS - 1) - 1
SQUARE_SHIFT = 14
#: the integer square root works on the norm times 2^(2 * ROOT_SHIFT)
ROOT_SHIFT = 5
#: fraction bits of the errors that compensated rounding passes on, and of their factors
ERROR_BITS = 8
FEEDBACK_BITS = 8
#: an error passed on is at most 8 activation steps, values before rounding at most 2^15 steps
ERROR_LIMIT = 2**11
V_LIMIT = 2**23
#: fraction bits of a layer normalization's bias
LAYER_BIAS_BITS = 8
FEEDBACK_SUM_LIMIT = 2**40
NORM_LIMIT = 2**32
ACC_LIMIT = 2**36
SHIFT_LIMIT = 46
#: keeps `root * 2^shift` below 2^52 in forward GDN
GDN_SHIFT_LIMIT = 30


@dataclass(frozen=True)
class Multiplier:
    """Per-channel factor ``m * 2^-shift``: both int32 ``(C,)``, m in [2^15, 2^16) or 0, shift in 0..46."""

    m: np.ndarray
    shift: np.ndarray

    @classmethod
    def from_float(cls, factor: Any) -> Multiplier:
        """Nearest representable factors. ``factor: (C,)``, an array or a tensor, each in [0, 2^16).

        Raises `BadModel` for a negative, infinite or too large factor.
        """
        values = np.asarray(factor, np.float64)
        if not np.isfinite(values).all() or (values < 0).any():
            raise BadModel(f"requantization factor must be finite and not negative, got {values.min()}")
        mantissa, exponent = np.frexp(values)  # values = mantissa * 2^exponent, mantissa in [0.5, 1)
        m = np.asarray(np.round(np.ldexp(mantissa, MULTIPLIER_BITS)), np.int64)
        shift = MULTIPLIER_BITS - np.asarray(exponent, np.int64)
        carried = m == 2**MULTIPLIER_BITS
        m[carried] //= 2
        shift[carried] -= 1
        tiny = (m == 0) | (shift > SHIFT_LIMIT)
        m[tiny], shift[tiny] = 0, 0
        if (shift < 0).any():
            raise BadModel(f"requantization factor {values.max()} is too large for the contract (under 2^16)")
        return cls(m.astype(np.int32), shift.astype(np.int32))

    @classmethod
    def saturating(cls, factor: Any) -> Multiplier:
        """`from_float` for results that are clipped to 16 bits: with a factor of 2^16 or more any accumulator
        but 0 is clipped, and so it is with the largest factor that there is.
        """
        return cls.from_float(np.minimum(np.asarray(factor, np.float64), 2**MULTIPLIER_BITS - 1))

    def as_float(self) -> np.ndarray:
        """``(C,)`` float64, exact."""
        return np.ldexp(self.m.astype(np.float64), -self.shift)

    def check(self, name: str, channels: int) -> None:
        """Raise `BadModel` unless both arrays are what the contract says."""
        for field, low, high in (("m", 0, 2**MULTIPLIER_BITS - 1), ("shift", 0, SHIFT_LIMIT)):
            t = getattr(self, field)
            if t.dtype != np.int32 or t.shape != (channels,):
                raise BadModel(f"{name}.{field} must be int32 ({channels},), got {t.dtype} {tuple(t.shape)}")
            if channels and (int(t.min()) < low or int(t.max()) > high):
                raise BadModel(f"{name}.{field} must be in {low}..{high}, got {int(t.min())}..{int(t.max())}")


@dataclass(frozen=True)
class RealFactor:
    """Per-channel factors that are not yet rounded to a `Multiplier`; with gradients. ``value: (C,)``."""

    value: Tensor

    def as_float(self) -> Tensor:
        return self.value


def by_channel(t: np.ndarray) -> np.ndarray:
    """``(C,)`` -> ``(1, C, 1, 1)`` float64."""
    return t.astype(np.float64).reshape(1, -1, 1, 1)


def requantize(
    acc: np.ndarray,
    factor: Multiplier,
    lo: int,
    hi: int,
    negative: Multiplier | None = None,
) -> np.ndarray:
    """``clip(floor(acc * m / 2^shift + 1/2), lo, hi)`` per channel; ``acc: (B, C, H, W)`` float64.

    ``negative``, when given, is the factor of negative accumulators (leaky rectifier).
    """
    scaled = acc * by_channel(factor.as_float())
    if negative is not None:
        scaled = np.where(acc < 0, acc * by_channel(negative.as_float()), scaled)
    return np.floor(scaled + 0.5).clip(lo, hi)


def compensate(v: np.ndarray, lo: int, hi: int, offset: np.ndarray, feedback: np.ndarray) -> np.ndarray:
    """Round channel after channel, each error passed on to the channels not yet rounded.

    ``v: (B, C, H, W)`` float64 holding integers, in units of ``2^-ERROR_BITS`` of an activation;
    ``feedback: (C, C)``, in units of ``2^-FEEDBACK_BITS``: what an error of one in channel i adds to channel
    j > i. Exact: a channel's sum stays below 2^40 (`rdquant.graph.operations.Compensate.check`).
    """
    u = v.clip(-V_LIMIT, V_LIMIT) * 2.0**FEEDBACK_BITS
    k = feedback.astype(np.float64)
    out = np.empty_like(u)
    for i in range(u.shape[1]):
        low, high = lo + int(offset[i]), hi + int(offset[i])
        q = np.floor(u[:, i] * 2.0 ** -(ERROR_BITS + FEEDBACK_BITS) + 0.5).clip(low, high)
        error = np.floor(u[:, i] * 2.0**-FEEDBACK_BITS + 0.5) - q * 2.0**ERROR_BITS
        out[:, i] = q
        u[:, i + 1 :] += error.clip(-ERROR_LIMIT, ERROR_LIMIT)[:, None] * k[i, i + 1 :].reshape(1, -1, 1, 1)
    return out


def squares(x: np.ndarray) -> np.ndarray:
    """``v = min(floor(x^2 / 2^14 + 1/2), 65535)`` of 16-bit x."""
    return np.minimum(np.floor(x * x * 2.0**-SQUARE_SHIFT + 0.5), 65535)


def integer_root(norm: np.ndarray) -> np.ndarray:
    """``floor(sqrt(norm * 2^10))``, exact since the operand is below 2^52; below 2^21."""
    return np.floor(np.sqrt(norm * 4.0**ROOT_SHIFT))


def gdn(x: np.ndarray, norm: np.ndarray, inverse: bool, factor: Multiplier, lo: int, hi: int) -> np.ndarray:
    """(Inverse) GDN of 16-bit ``x`` given its integer ``norm = gamma v + beta >= 1``; all ``(B, C, H, W)``.

    Inverse: ``floor(x * root * m / 2^shift + 1/2)``. Forward: ``floor(x * m / (root * 2^shift) + 1/2)``,
    evaluated as one division ``(2 x m + d) / (2 d)`` with ``d = root * 2^shift``. Clipped to [lo, hi].
    """
    root = integer_root(norm)
    if inverse:
        return requantize(x * root, factor, lo, hi)
    d = root * by_channel(np.ldexp(1.0, factor.shift))
    return np.floor((2 * x * by_channel(factor.m) + d) / (2 * d)).clip(lo, hi)
