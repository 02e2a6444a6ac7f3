"""numba kernels of the fast engine. Reference: the ``exact`` of `rdquant.graph.operations`; tested equal.

Rows are positions, columns are channels (channels-last). Arithmetic is float64, which vectorizes where int64
does not (IEEE operations on integers, or integers times powers of two, of at most 53 bits), or of 32 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from ..compiled import njit, whole_vectors
from ..threads import share
from .arithmetic import (
    ERROR_BITS,
    ERROR_LIMIT,
    FEEDBACK_BITS,
    LAYER_BIAS_BITS,
    ROOT_SHIFT,
    V_LIMIT,
)

_ROOT_FACTOR = float(4**ROOT_SHIFT)
_BIAS_TWICE = float(2 ** (LAYER_BIAS_BITS + 1))
_ERROR_ONE, _FEEDBACK_ONE = float(2**ERROR_BITS), float(2**FEEDBACK_BITS)
_ERROR_LIMIT, _V_LIMIT = float(ERROR_LIMIT), float(V_LIMIT)
#: positions that compensated rounding takes at a time
_BLOCK = 32
#: positions and channels of one call of its kernel
_CHUNK, _GROUP = 4096, 32


def compensate_rows(
    rows: np.ndarray,
    bias: np.ndarray | None,
    factor: np.ndarray | None,
    low: np.ndarray,
    high: np.ndarray,
    feedback: np.ndarray,
) -> np.ndarray:
    """Compensated rounding of ``rows: (P, C)`` float -> ``(P, C)`` float32.

    ``bias, factor, low, high: (C,)`` float64, as in `compensate`; without bias and factor rows are in units
    of ``2^-ERROR_BITS``. ``feedback: (C, C)`` float64. Errors go from one group of channels to the
    later ones as a matrix product, which is exact: sums stay below 2^40.
    """
    count, channels = rows.shape
    bias = np.zeros(channels) if bias is None else bias
    factor = np.ones(channels) if factor is None else factor
    groups = [slice(first, first + _GROUP) for first in range(0, channels, _GROUP)]
    inside = [np.ascontiguousarray(feedback[group, group]) for group in groups]
    out = np.empty((count, channels), np.float32)

    def through(first: int, last: int) -> None:
        room = np.empty((min(last - first, _CHUNK), channels))
        for start in range(first, last, _CHUNK):
            part = slice(start, min(start + _CHUNK, last))
            errors = room[: len(rows[part])]
            for group, own in zip(groups, inside, strict=True):
                passed = errors[:, : group.start] @ feedback[: group.start, group]
                compensate(
                    rows[part, group], bias[group], factor[group], passed, low[group], high[group], own,
                    errors[:, group], out[part, group],
                )  # fmt: skip

    share(count, through, _BLOCK)
    return out


@njit(cache=True, nogil=True)
def compensate(acc, bias, factor, passed, lo, hi, feedback, errors, out):  # type: ignore[no-untyped-def]
    """A group of channels: ``acc: (P, G)`` -> ``out: (P, G)`` float32.

    ``bias, factor: (G,)`` float64, to units of ``2^-ERROR_BITS`` steps, as in `requantize`.
    ``passed: (P, G)`` float64: what earlier groups pass on; ``errors: (P, G)`` float64 is filled, for later
    ones. ``lo, hi: (G,)``, ``feedback: (G, G)`` float64, upper triangle used. Channels go one after another,
    so that vectors run over a block of positions.
    """
    rows, channels = acc.shape
    for b in range((rows + _BLOCK - 1) // _BLOCK):
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


# from here on ``out`` is stored in any type, less ``zero: (C,)`` int32


@njit(cache=True, nogil=True, error_model="numpy")
def rescale(q, up, down, lo, hi, zero, out):  # type: ignore[no-untyped-def]
    """``clip(floor(q up + 1/2), lo, hi)``, of negative q with ``down``: ``q, out: (P, C)``, factors ``(C,)``
    float64.
    """
    whole_vectors()
    rows, channels = q.shape
    for p in range(rows):
        for c in range(channels):
            v, above, below = np.float64(q[p, c]), up[c], down[c]  # loaded first: no gather of either
            v = np.floor(v * (above if v >= 0 else below) + 0.5)
            out[p, c] = np.int32(min(max(v, lo), hi)) - zero[c]


@njit(cache=True, nogil=True, error_model="numpy")
def add(a, b, m, n, scale, lo, hi, zero, out):  # type: ignore[no-untyped-def]
    """``clip(floor((a m + b n) scale + 1/2), lo, hi)``: ``a, b, out: (P, C)`` of 17 bits at most.

    ``m, n, scale: (C,)`` float64, integers of 16 bits and powers of two.
    """
    whole_vectors()
    rows, channels = a.shape
    for p in range(rows):
        for c in range(channels):
            q = (np.float64(a[p, c]) * m[c] + np.float64(b[p, c]) * n[c]) * scale[c]
            out[p, c] = np.int32(min(max(np.floor(q + 0.5), lo), hi)) - zero[c]


# of 16-bit integers, in 32 bits: twice as fast


def _emit_down(typingctx, value, by):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.ashr(*args)

    return types.int32(types.int32, types.int32), codegen


def _emit_up(typingctx, value, by):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.shl(*args)

    return types.int32(types.int32, types.int32), codegen


_ONE, _HALF, _LOW_HALF = np.int32(1), np.int32(16), np.int32(0xFFFF)
#: ``value >> by`` and ``value << by``, all int32, by 0..31; Python's would have 64 bits
shifted: Any = intrinsic(_emit_down)
lifted: Any = intrinsic(_emit_up)


@njit(cache=True, nogil=True, inline="always")
def scaled(v, m, shift):  # type: ignore[no-untyped-def]
    """``floor(v m / 2^(shift + 17) + 1/2)`` of int32, ``m`` below 2^16."""
    carried = np.int32(np.uint32(np.uint32(v & _LOW_HALF) * np.uint32(m)) >> _HALF)
    high = np.int32(np.int32(shifted(v, _HALF) * m) + carried)
    return shifted(np.int32(shifted(high, shift) + _ONE), _ONE)


def in_words(shift: np.ndarray, m: np.ndarray, least: int) -> np.ndarray | None:
    """``shift - least`` as kernels in 32 bits take it, or None where one of them is negative. Above 31
    nothing is left but the rounding, which is the same at 31. Factors of 0 have any shift.
    """
    found = np.where(m == 0, 0, shift.astype(np.int64) - least)
    return None if (found < 0).any() else np.minimum(found, 31).astype(np.int32)


@njit(cache=True, nogil=True, error_model="numpy")
def rescale_words(q, m, shift, lo, hi, zero, out):  # type: ignore[no-untyped-def]
    """`rescale` by ``m / 2^(shift + 1)``: ``q: (P, C)`` int16, ``m, shift: (C,)`` int32."""
    whole_vectors()
    rows, channels = q.shape
    for p in range(rows):
        a, o = q[p], out[p]
        for c in range(channels):
            v = shifted(np.int32(np.int32(a[c]) * m[c]), shift[c])
            v = shifted(np.int32(v + _ONE), _ONE)
            o[c] = min(max(v, lo), hi) - zero[c]


@njit(cache=True, nogil=True, error_model="numpy")
def add_words(a, b, m, n, shift, lo, hi, zero, out):  # type: ignore[no-untyped-def]
    """`add` by ``m / 2^(shift + 2)`` and ``n / 2^(shift + 2)``: ``a, b: (P, C)`` int16, the rest int32. Half
    the sum of two products has 32 bits.
    """
    whole_vectors()
    rows, channels = a.shape
    for p in range(rows):
        x, y, o = a[p], b[p], out[p]
        for c in range(channels):
            u, v = np.int32(np.int32(x[c]) * m[c]), np.int32(np.int32(y[c]) * n[c])
            half = np.int32(shifted(u, _ONE) + shifted(v, _ONE) + (u & v & _ONE))
            half = shifted(np.int32(shifted(half, shift[c]) + _ONE), _ONE)
            o[c] = min(max(half, lo), hi) - zero[c]


@njit(cache=True, nogil=True, error_model="numpy")
def multiply(a, b, factor, lo, hi, zero, out):  # type: ignore[no-untyped-def]
    """``clip(floor(a b factor + 1/2), lo, hi)``, shapes as in `add`; ``factor: (C,)`` float64."""
    whole_vectors()
    rows, channels = a.shape
    for p in range(rows):
        for c in range(channels):
            q = np.float64(a[p, c]) * np.float64(b[p, c]) * factor[c]
            out[p, c] = np.int32(min(max(np.floor(q + 0.5), lo), hi)) - zero[c]


@njit(cache=True, nogil=True)
def look_up(q, values, lo, zero, out):  # type: ignore[no-untyped-def]
    """``out = values[q - lo]``: ``q, out: (P, C)``, ``values: (K,)`` int32; q lies in the table."""
    rows, channels = q.shape
    for p in range(rows):
        for c in range(channels):
            out[p, c] = values[np.int64(q[p, c]) - lo] - zero[c]


def looked_up(q: np.ndarray, values: np.ndarray, lo: int) -> np.ndarray:
    """``values[q - lo]``, int32: integers of any shape, which lie in the table, by all threads."""
    if not q.size:
        return np.empty(q.shape, np.int32)
    rows = np.ascontiguousarray(q).reshape(-1, q.shape[-1])
    out, none = np.empty(rows.shape, np.int32), np.zeros(rows.shape[1], np.int32)
    least = max(1, _CHUNK * 4 // rows.shape[1])
    share(len(rows), lambda a, b: look_up(rows[a:b], values, lo, none, out[a:b]), least)
    return out.reshape(q.shape)


@njit(cache=True, nogil=True)
def layer_norm(q, least, m, power, bias, lo, hi, zero, out):  # type: ignore[no-untyped-def]
    """`rdquant.graph.operations.LayerNorm`: ``q, out: (P, C)``; ``m`` (signed), ``power`` (2^shift)
    and ``bias`` (``2 bias + 2^8`` of the operation's) ``(C,)`` float64; ``least``: is added to the squares.
    """
    rows, channels = q.shape
    for p in range(rows):
        total = 0.0
        for c in range(channels):
            total += np.float64(q[p, c])
        d = np.empty(channels, np.float64)
        squared = least
        for c in range(channels):
            v = 2.0 * (channels * np.float64(q[p, c]) - total) + channels
            d[c] = np.floor(v / (2.0 * channels))
            squared += d[c] * d[c]
        root = np.floor(np.sqrt(squared * _ROOT_FACTOR))
        for c in range(channels):
            below = root * power[c]
            v = np.floor((_BIAS_TWICE * d[c] * m[c] + below * bias[c]) / (_BIAS_TWICE * below))
            out[p, c] = np.int32(min(max(v, lo), hi)) - zero[c]


@njit(cache=True, nogil=True)
def attend(start, stop, x, window, shift, bias, logit, exponential, m, power, lo, hi, zero, out):  # type: ignore[no-untyped-def]
    """Windows ``start .. stop - 1`` of `rdquant.graph.operations.WindowAttention`.

    ``x: (B, H, W, 3 C)``, ``out: (B, H, W, C)``, sides multiples of ``window``. All else float64:
    ``bias: (heads, window^2, window^2)``, ``logit: (heads,)``,
    ``exponential: (K,)``, ``m, power: (C,)``, power being 2^shift of the factor.
    """
    _, h, w, channels = out.shape
    heads, n, _ = bias.shape
    d, last, per_row = channels // heads, len(exponential) - 1, w // window
    for p in range(start, stop):
        picture, rest = p // (h // window * per_row), p % (h // window * per_row)
        top_row, left = rest // per_row * window, rest % per_row * window
        rows, columns, label = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
        for i in range(n):
            r, c = top_row + i // window, left + i % window
            rows[i], columns[i] = (r - shift) % h, (c - shift) % w
            label[i] = 2 * (r < shift) + (c < shift)
        keys, values = np.empty((d, n), np.float64), np.empty((n, d), np.float64)
        for head in range(heads):
            first = head * d
            for i in range(n):
                for c in range(d):
                    keys[c, i] = x[picture, rows[i], columns[i], channels + first + c]
                    values[i, c] = x[picture, rows[i], columns[i], 2 * channels + first + c]
            for i in range(n):
                t, above = np.zeros(n, np.float64), np.zeros(d, np.float64)
                for c in range(d):
                    q = np.float64(x[picture, rows[i], columns[i], first + c])
                    for j in range(n):
                        t[j] += q * keys[c, j]
                largest = -np.inf
                for j in range(n):
                    t[j] = np.floor(t[j] * logit[head] + 0.5) + bias[head, i, j]
                    if label[j] == label[i]:
                        largest = max(largest, t[j])
                total = 0.0
                for j in range(n):
                    if label[j] == label[i]:
                        e = exponential[np.int64(min(largest - t[j], np.float64(last)))]
                        total += e
                        for c in range(d):
                            above[c] += e * values[j, c]
                for c in range(d):
                    below = total * power[first + c]
                    v = np.floor((2.0 * above[c] * m[first + c] + below) / (2.0 * below))
                    found = np.int32(min(max(v, lo), hi)) - zero[first + c]
                    out[picture, rows[i], columns[i], first + c] = found
