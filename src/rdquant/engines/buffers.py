"""Integers between steps, and between them and the buffers and tiles of a convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiled import njit, whole_vectors

_BYTE, _TWO_BYTES = np.int32(8), np.int32(16)
#: bytes of a line of the cache, at a multiple of which arrays begin: vectors, and rows of tiles, that lie in
#: two lines take up to twice as long
LINE = 64


def empty(shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """`numpy.empty` at the beginning of a line."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    raw = np.empty(size + LINE, np.uint8)
    skip = -raw.ctypes.data % LINE
    return raw[skip : skip + size].view(kind).reshape(shape)


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy at the beginning of a line."""
    found = empty(values.shape, values.dtype)
    found[...] = values
    return found


@njit(cache=True, nogil=True, inline="always")
def room(size):  # type: ignore[no-untyped-def]
    """So many bytes, the same in kernels."""
    raw = np.empty(size + LINE, np.uint8)
    skip = -np.int64(raw.ctypes.data) & np.int64(LINE - 1)
    return raw[skip : skip + size]


@dataclass(frozen=True)
class Form:
    """How the integers of an edge are stored: ``size`` bytes each, less ``zero: (C,)`` int32. One byte is
    unsigned, more are signed and have no zero.
    """

    size: int
    zero: np.ndarray

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("u1" if self.size == 1 else f"i{self.size}")

    def store(self, values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values - self.zero if self.zero.any() else values, self.dtype)


def flat(values: np.ndarray) -> np.ndarray:
    """The bytes of each picture, ``(B, n)``, a view."""
    return values.reshape(len(values), -1).view(np.uint8)


@njit(cache=True, nogil=True, error_model="numpy", makes_arrays=False)
def _fill(x, size, at, count, channels, zero, bytewise, cell, into, start):  # type: ignore[no-untyped-def]
    """``count`` positions of ``x`` from element ``at``, ``size`` bytes each, one or two, to cells from byte
    ``start``.
    """
    whole_vectors()
    if cell == channels * size:  # nothing between positions
        n, first, to = count * cell // 4, at * size // 4, start // 4
        # sliced before the loop: LLVM gathers from `words[first + i]`
        words, o = x.view(np.int32)[first : first + n], into.view(np.int32)[to : to + n]
        for i in range(n):
            o[i] = words[i]
        return
    if bytewise and channels == 3:  # a picture
        a, o = x[at : at + 3 * count], into.view(np.int32)[start // 4 : start // 4 + count]
        for i in range(count):
            two = np.int32(a[3 * i]) | np.int32(np.int32(a[3 * i + 1]) << _BYTE)
            o[i] = two | np.int32(np.int32(a[3 * i + 2]) << _TWO_BYTES)
        return
    if bytewise:
        for i in range(count):
            a, to = x[at + i * channels : at + (i + 1) * channels], start + i * cell
            for c in range(channels):
                into[to + c] = a[c]
        return
    halves = into.view(np.int16)
    for i in range(count):
        o = halves[(start + i * cell) // 2 : (start + i * cell) // 2 + channels]
        here = slice(at + i * channels, at + (i + 1) * channels)
        if size == 1:
            a = x[here]
            for c in range(channels):
                o[c] = np.int16(np.int32(a[c]) + zero[c])
        else:
            b = x.view(np.int16)[here]
            for c in range(channels):
                o[c] = b[c]


@njit(cache=True, nogil=True)
def gather(x, size, shape, zero, bytewise, cell, rows, columns, buffer, wide):  # type: ignore[no-untyped-def]
    """The part of a picture that a task sees into ``buffer``, rows of ``wide`` cells; zeros around it.

    ``shape``: (height, width, channels), ``rows, columns``: where it starts and ends; ``x`` is one picture.
    """
    height, width, channels = shape
    blank = np.zeros(cell, np.uint8)
    if bytewise:
        for c in range(channels):
            blank[c] = np.uint8(-zero[c])
    line = wide * cell
    left, right = max(columns[0], 0), min(columns[1], width)
    for i in range(rows[1] - rows[0]):
        r, start = rows[0] + i, i * line
        inside = 0 <= r < height and right > left
        first, last = (left - columns[0], right - columns[0]) if inside else (wide, wide)
        for j in range(wide):
            if not first <= j < last:
                for c in range(cell):
                    buffer[start + j * cell + c] = blank[c]
        if inside:
            if cell != (channels if bytewise else 2 * channels):
                for b in range(start + first * cell, start + last * cell):
                    buffer[b] = 0
            at = (r * width + left) * channels
            _fill(x, size, at, last - first, channels, zero, bytewise, cell, buffer, start + first * cell)


# a function for each type: what branches within its loops makes no vectors


@njit(cache=True, nogil=True, error_model="numpy", makes_arrays=False)
def copy(tile, line, count, first, channels, out, at, step):  # type: ignore[no-untyped-def]
    """See `store`; ``out`` of its own type."""
    whole_vectors()
    for p in range(count):
        start, to = p * line + first, at + p * step
        a, o = tile[start : start + channels], out[to : to + channels]
        for c in range(channels):
            o[c] = a[c]


@njit(cache=True, nogil=True, error_model="numpy", makes_arrays=False)
def _copy_bytes(tile, line, count, first, channels, zero, out, at, step):  # type: ignore[no-untyped-def]
    whole_vectors()
    for p in range(count):
        start, to = p * line + first, at + p * step
        a, o = tile[start : start + channels], out[to : to + channels]
        for c in range(channels):
            o[c] = np.uint8(np.int32(a[c]) - zero[c])


@njit(cache=True, nogil=True, makes_arrays=False)
def store(tile, line, count, first, channels, zero, out, size, at, step):  # type: ignore[no-untyped-def]
    """Channels ``first ..`` of a tile's positions to elements ``at``, ``at + step`` ... of ``out``."""
    if first == 0 and channels == line and channels == step and size > 1:  # nothing between positions
        count, line, channels = 1, count * line, count * line
    if size == 1:
        _copy_bytes(tile, line, count, first, channels, zero, out, at, step)
    elif size == 2:
        copy(tile, line, count, first, channels, out.view(np.int16), at, step)
    elif size == 4:
        copy(tile, line, count, first, channels, out.view(np.int32), at, step)
    else:
        copy(tile, line, count, first, channels, out.view(np.int64), at, step)
