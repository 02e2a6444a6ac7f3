"""GDN and its inverse on tiles: squares of 16 bits, of which a product makes norms, and the division by their
roots. Reference: `rdquant.graph.operations.gdn`.
"""

from __future__ import annotations

import numpy as np

from ..compiled import njit, whole_vectors
from ..graph.arithmetic import GDN_BITS, ROOT_SHIFT, SQUARE_SHIFT, X_HI, X_LO
from ..graph.kernels import lifted, scaled, shifted

#: squares are taken less it, to fit signed words
MIDDLE = 1 << GDN_BITS - 1
_TWICE_ROOT, _ROOT_ONE = np.int32(2 * ROOT_SHIFT), np.float32(2**ROOT_SHIFT)
_X_LO, _X_HI = float(X_LO), float(X_HI)
_SQUARE_SHIFT, _HALF_SQUARE = np.int32(SQUARE_SHIFT), np.int32(1 << SQUARE_SHIFT - 1)
_MIDDLE_SQUARE, _MOST_SQUARE = np.int32(MIDDLE), np.int32(2 * MIDDLE - 1)
#: of what is rounded in float32: how near to a whole number its exact value may be on the other side
_MARGIN = np.float32(2**-21)


@njit(cache=True, nogil=True, inline="always")
def _squared(v):  # type: ignore[no-untyped-def]
    """Of 16 bits, less the middle of what it can be."""
    square = shifted(np.int32(np.int32(v * v) + _HALF_SQUARE), _SQUARE_SHIFT)
    return np.int16(min(square, _MOST_SQUARE) - _MIDDLE_SQUARE)


@njit(cache=True, nogil=True, error_model="numpy")
def widen(acc, line, count, channels, factors, x, squares):  # type: ignore[no-untyped-def]
    whole_vectors()
    wide = factors[0]
    for p in range(count):
        a, o = acc[p * line : p * line + channels], x[p * line : p * line + channels]
        s = squares[p * line : p * line + channels]
        for c in range(channels):
            v = np.int32(min(max(np.floor(np.float64(a[c]) * wide[c] + 0.5), _X_LO), _X_HI))
            o[c], s[c] = np.int16(v), _squared(v)


@njit(cache=True, nogil=True, error_model="numpy")
def widen_words(acc, line, count, channels, words, up, x, squares):  # type: ignore[no-untyped-def]
    whole_vectors()
    m, shift, lo, hi = words[0], words[1], np.int32(X_LO), np.int32(X_HI)
    for p in range(count):
        a, o = acc[p * line : p * line + channels], x[p * line : p * line + channels]
        s = squares[p * line : p * line + channels]
        for c in range(channels):
            v = np.int32(min(max(scaled(lifted(a[c], up), m[c], shift[c]), lo), hi))
            o[c], s[c] = np.int16(v), _squared(v)


@njit(cache=True, nogil=True, inline="always")
def root(norm):  # type: ignore[no-untyped-def]
    """``floor(sqrt(norm * 2^10))`` of uint32, int32. In float32 a root, below 2^21, is off by 0.3 at most:
    what is nearest is it, or one more; and how far its square is off has 32 bits.
    """
    near = np.int32(np.sqrt(np.float32(norm)) * _ROOT_ONE + np.float32(0.5))
    beyond = np.int32(np.int32(near * near) - lifted(np.int32(norm), _TWICE_ROOT))
    return np.int32(near - np.int32(beyond > 0))


@njit(cache=True, nogil=True, inline="always")
def _doubtful(y, whole):  # type: ignore[no-untyped-def]
    """Whether ``whole``, that of ``y``, which three roundings of float32 were made for, may be another's."""
    part, margin = y - whole, np.abs(y) * _MARGIN + _MARGIN
    return np.int32((part < margin) | (part > np.float32(1) - margin))


@njit(cache=True, nogil=True, error_model="numpy")
def denormalize(x, norms, line, wide, count, channels, factors, single, lo, hi, out):  # type: ignore[no-untyped-def]
    """In float32; positions where that may not do, in float64."""
    whole_vectors()
    factor, least, most = factors[1], np.float32(lo), np.float32(hi)
    for p in range(count):
        a, o = x[p * line : p * line + channels], out[p * line : p * line + channels]
        n, doubts = norms[p * wide : p * wide + channels], np.int32(0)
        for c in range(channels):
            y = np.float32(a[c]) * np.float32(root(n[c])) * single[c] + np.float32(0.5)
            whole = np.floor(y)
            doubts = np.int32(doubts | _doubtful(y, whole))
            o[c] = np.int32(min(max(whole, least), most))
        if doubts:
            for c in range(channels):
                v = np.floor(np.float64(a[c]) * np.float64(root(n[c])) * factor[c] + 0.5)
                o[c] = np.int32(min(max(v, lo), hi))


@njit(cache=True, nogil=True, error_model="numpy")
def normalize(x, norms, line, wide, count, channels, factors, single, lo, hi, out):  # type: ignore[no-untyped-def]
    """In float32; positions where that may not do, in float64."""
    whole_vectors()
    m, power, least, most = factors[1], factors[2], np.float32(lo), np.float32(hi)
    for p in range(count):
        a, o = x[p * line : p * line + channels], out[p * line : p * line + channels]
        n, doubts = norms[p * wide : p * wide + channels], np.int32(0)
        for c in range(channels):
            y = np.float32(a[c]) * single[c] / np.float32(root(n[c])) + np.float32(0.5)
            whole = np.floor(y)
            doubts = np.int32(doubts | _doubtful(y, whole))
            o[c] = np.int32(min(max(whole, least), most))
        if doubts:
            for c in range(channels):
                d = np.float64(root(n[c])) * power[c]
                v = np.floor((2.0 * np.float64(a[c]) * m[c] + d) / (2.0 * d))
                o[c] = np.int32(min(max(v, lo), hi))
