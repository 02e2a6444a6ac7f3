"""numba kernels of the fast engine. Reference: `rdquant.integer.arithmetic`; tested equal.

Rows are positions, columns are channels (channels-last). All arithmetic is int64, or float64 where a
square root or division is needed: single IEEE operations on integers below 2^53.
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
_SQUARE_HALF = 1 << (SQUARE_SHIFT - 1)


@njit(cache=True, parallel=True, nogil=True)
def requantize(acc, bias, m, shift, negative_m, negative_shift, lo, hi, out):  # type: ignore[no-untyped-def]
    """``acc: (P, C)`` float -> ``out: (P, C)`` float32; `negative_*` serve accumulators below zero."""
    rows, channels = acc.shape
    half = np.empty(channels, np.int64)
    negative_half = np.empty(channels, np.int64)
    for c in range(channels):
        half[c] = (np.int64(1) << np.int64(shift[c])) >> 1
        negative_half[c] = (np.int64(1) << np.int64(negative_shift[c])) >> 1
    for p in prange(rows):
        for c in range(channels):
            a = np.int64(acc[p, c]) + bias[c]
            positive = (a * np.int64(m[c]) + half[c]) >> np.int64(shift[c])
            negative = (a * np.int64(negative_m[c]) + negative_half[c]) >> np.int64(negative_shift[c])
            q = positive if a >= 0 else negative
            out[p, c] = np.float32(min(max(q, lo), hi))


@njit(cache=True, parallel=True, nogil=True)
def compensate(v, lo, hi, feedback, out):  # type: ignore[no-untyped-def]
    """``v: (P, C)`` in units of ``2^-ERROR_BITS`` steps -> ``out: (P, C)`` float32; may be the same array.

    ``lo, hi: (C,)`` float64; ``feedback: (C, C)`` float64, upper triangle used. Channels go one after
    another, so that vectors run over a block of positions.
    """
    rows, channels = v.shape
    for b in prange((rows + _BLOCK - 1) // _BLOCK):
        start = b * _BLOCK
        count = min(_BLOCK, rows - start)
        u = np.zeros((channels, _BLOCK), np.float64)
        errors = np.empty(_BLOCK, np.float64)
        for p in range(count):
            for c in range(channels):
                u[c, p] = min(max(np.float64(v[start + p, c]), -_V_LIMIT), _V_LIMIT) * _FEEDBACK_ONE
        for i in range(channels):
            low, high = lo[i], hi[i]
            for p in range(_BLOCK):
                q = min(max(np.floor(u[i, p] * (1 / (_ERROR_ONE * _FEEDBACK_ONE)) + 0.5), low), high)
                error = np.floor(u[i, p] * (1 / _FEEDBACK_ONE) + 0.5) - q * _ERROR_ONE
                errors[p] = min(max(error, -_ERROR_LIMIT), _ERROR_LIMIT)
                u[i, p] = q
            for j in range(i + 1, channels):
                factor = feedback[i, j]
                for p in range(_BLOCK):
                    u[j, p] += errors[p] * factor
        for p in range(count):
            for c in range(channels):
                out[start + p, c] = np.float32(u[c, p])


@njit(cache=True, parallel=True, nogil=True)
def widen(acc, bias, m, shift):  # type: ignore[no-untyped-def]
    """Accumulators to 16-bit x and its squares v (float64, for the matrix product)."""
    rows, channels = acc.shape
    x = np.empty((rows, channels), np.int16)
    v = np.empty((rows, channels), np.float64)
    for p in prange(rows):
        for c in range(channels):
            a = np.int64(acc[p, c]) + bias[c]
            s = np.int64(shift[c])
            q = (a * np.int64(m[c]) + ((np.int64(1) << s) >> 1)) >> s
            q = min(max(q, X_LO), X_HI)
            x[p, c] = q
            v[p, c] = np.float64(min((q * q + _SQUARE_HALF) >> SQUARE_SHIFT, 65535))
    return x, v


@njit(cache=True, parallel=True, nogil=True)
def normalize(x, norm, beta, inverse, m, shift, lo, hi, out):  # type: ignore[no-untyped-def]
    """(Inverse) GDN of 16-bit x with ``norm`` still without beta; writes float32 activations."""
    rows, channels = x.shape
    for p in prange(rows):
        for c in range(channels):
            n = norm[p, c] + np.float64(beta[c])
            root = np.int64(np.floor(np.sqrt(n * _ROOT_FACTOR)))
            s = np.int64(shift[c])
            if inverse:
                q = (np.int64(x[p, c]) * root * np.int64(m[c]) + ((np.int64(1) << s) >> 1)) >> s
            else:
                d = np.float64(root << s)
                q = np.int64(np.floor((2.0 * np.float64(x[p, c]) * np.float64(m[c]) + d) / (2.0 * d)))
            out[p, c] = np.float32(min(max(q, lo), hi))
