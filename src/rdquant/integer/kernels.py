"""numba kernels of the fast engine. Reference: `rdquant.integer.arithmetic`; tested equal.

Rows are positions, columns are channels (channels-last). All arithmetic is float64, which vectorizes where
int64 does not: IEEE operations on integers, or integers times powers of two, of at most 53 bits.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .arithmetic import ERROR_BITS, ERROR_LIMIT, FEEDBACK_BITS, ROOT_SHIFT, SQUARE_SHIFT, V_LIMIT
from .stages import X_HI, X_LO

_ROOT_FACTOR = float(4**ROOT_SHIFT)
_ERROR_ONE, _FEEDBACK_ONE = float(2**ERROR_BITS), float(2**FEEDBACK_BITS)
_ERROR_LIMIT, _V_LIMIT = float(ERROR_LIMIT), float(V_LIMIT)
#: positions that compensated rounding takes at a time
_BLOCK = 32
_SQUARE_SCALE = 2.0**-SQUARE_SHIFT
_X_LO, _X_HI = float(X_LO), float(X_HI)


@njit(cache=True, parallel=True, nogil=True)
def requantize(acc, bias, factor, negative, lo, hi, out):  # type: ignore[no-untyped-def]
    """``acc: (P, C)`` float -> ``out: (P, C)`` float32; ``negative`` serves accumulators below zero.

    ``bias, factor, negative: (C,)`` float64: factors ``m * 2^-shift``. An accumulator has 36 bits and m 16,
    so that the product is exact, and so is the sum with 1/2 (shift <= 46).
    """
    rows, channels = acc.shape
    for p in prange(rows):
        for c in range(channels):
            a = np.float64(acc[p, c]) + bias[c]
            q = np.floor(a * (factor[c] if a >= 0 else negative[c]) + 0.5)
            out[p, c] = np.float32(min(max(q, lo), hi))


@njit(cache=True, parallel=True, nogil=True)
def compensate(acc, bias, factor, passed, lo, hi, feedback, errors, out):  # type: ignore[no-untyped-def]
    """A group of channels: ``acc: (P, G)`` -> ``out: (P, G)`` float32.

    ``bias, factor: (G,)`` float64, to units of ``2^-ERROR_BITS`` steps, as in `requantize`.
    ``passed: (P, G)`` float64: what earlier groups pass on; ``errors: (P, G)`` float64 is filled, for later
    ones. ``lo, hi: (G,)``, ``feedback: (G, G)`` float64, upper triangle used. Channels go one after another,
    so that vectors run over a block of positions. ``out`` may be ``acc``.
    """
    rows, channels = acc.shape
    for b in prange((rows + _BLOCK - 1) // _BLOCK):
        start = b * _BLOCK
        count = min(_BLOCK, rows - start)
        u = np.zeros((channels, _BLOCK), np.float64)
        e = np.empty((channels, _BLOCK), np.float64)
        for p in range(count):
            for c in range(channels):
                v = np.floor((np.float64(acc[start + p, c]) + bias[c]) * factor[c] + 0.5)
                u[c, p] = min(max(v, -_V_LIMIT), _V_LIMIT) * _FEEDBACK_ONE + passed[start + p, c]
        for i in range(channels):
            low, high = lo[i], hi[i]
            for p in range(_BLOCK):
                q = min(max(np.floor(u[i, p] * (1 / (_ERROR_ONE * _FEEDBACK_ONE)) + 0.5), low), high)
                error = np.floor(u[i, p] * (1 / _FEEDBACK_ONE) + 0.5) - q * _ERROR_ONE
                e[i, p] = min(max(error, -_ERROR_LIMIT), _ERROR_LIMIT)
                u[i, p] = q
            for j in range(i + 1, channels):
                share = feedback[i, j]
                for p in range(_BLOCK):
                    u[j, p] += e[i, p] * share
        for p in range(count):
            for c in range(channels):
                out[start + p, c] = np.float32(u[c, p])
                errors[start + p, c] = e[c, p]


@njit(cache=True, parallel=True, nogil=True)
def widen(acc, bias, factor):  # type: ignore[no-untyped-def]
    """Accumulators to 16-bit x and its squares, as ``256 high + low``, both float32 ``(P, C)``."""
    rows, channels = acc.shape
    x = np.empty((rows, channels), np.int16)
    high = np.empty((rows, channels), np.float32)
    low = np.empty((rows, channels), np.float32)
    for p in prange(rows):
        for c in range(channels):
            q = np.floor((np.float64(acc[p, c]) + bias[c]) * factor[c] + 0.5)
            q = min(max(q, _X_LO), _X_HI)
            x[p, c] = np.int16(q)
            v = min(np.floor(q * q * _SQUARE_SCALE + 0.5), 65535.0)
            h = np.floor(v * (1 / 256))
            high[p, c] = np.float32(h)
            low[p, c] = np.float32(v - 256.0 * h)
    return x, high, low


@njit(cache=True, parallel=True, nogil=True)
def denormalize(x, high, low, beta, factor, lo, hi, out):  # type: ignore[no-untyped-def]
    """Inverse GDN of 16-bit x with the norm ``256 high + low + beta``; writes float32 activations.

    ``beta, factor: (C,)`` float64. x has 16 bits, the root 21 and m 16: products are exact.
    """
    rows, channels = x.shape
    for p in prange(rows):
        for c in range(channels):
            norm = 256.0 * np.float64(high[p, c]) + np.float64(low[p, c]) + beta[c]
            root = np.floor(np.sqrt(norm * _ROOT_FACTOR))
            q = np.floor(np.float64(x[p, c]) * root * factor[c] + 0.5)
            out[p, c] = np.float32(min(max(q, lo), hi))


@njit(cache=True, parallel=True, nogil=True)
def normalize(x, high, low, beta, m, power, lo, hi, out):  # type: ignore[no-untyped-def]
    """GDN of 16-bit x, norms as in `denormalize`; ``m, power: (C,)`` float64, power being 2^shift."""
    rows, channels = x.shape
    for p in prange(rows):
        for c in range(channels):
            norm = 256.0 * np.float64(high[p, c]) + np.float64(low[p, c]) + beta[c]
            d = np.floor(np.sqrt(norm * _ROOT_FACTOR)) * power[c]
            q = np.floor((2.0 * np.float64(x[p, c]) * m[c] + d) / (2.0 * d))
            out[p, c] = np.float32(min(max(q, lo), hi))
