"""Exact convolutions of small integers, tile by tile with what follows them.

A task takes some rows and columns of the output. It copies what they depend on into a padded buffer of
bytes or 16-bit integers, where every tap of every output is at a fixed distance, multiplies (`products`)
into a tile of accumulators, and finishes that (`epilogues`). A transposed convolution is one convolution
for each phase of its outputs; with few outputs, one of all phases at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..compiled import njit
from ..graph.operations import Convolution
from .buffers import HIGH, LOW, WHOLE, gather, store
from .epilogues import PLAIN, enter, finish, rooms
from .products import BYTES, LANES, SPAN, STEPS, product

#: kernels take a divisor of so many positions
TOGETHER = math.lcm(*STEPS[STEPS > 0].tolist())


class Packed(NamedTuple):
    """A convolution as tasks take it."""

    stride: int
    up: int
    merged: bool
    """One phase gives all ``up^2`` outputs of a base position, row by row, column by column."""
    taps: np.ndarray
    """``(T, 2)`` int64, rows and columns from the base position, phase after phase; of a run, the first."""
    phases: np.ndarray
    """Where each phase's taps start, and end."""
    least: int
    most: int
    """Of all taps."""
    kernel: int
    vectors: int
    words: int
    """Of a position."""
    run: int
    """Taps next to each other in a row that a product takes as one, of so many times the words."""
    weights: np.ndarray
    """Bytes; by phase ``(blocks, T, words, 16 vectors)`` words."""
    at: np.ndarray
    """Where each phase's weights start."""
    start: np.ndarray
    """int32 ``(phases, line)``: what accumulators start with; a line is that of a tile."""
    bias: np.ndarray
    """float64, added to ``256 high + low`` if ``split``."""
    split: bool
    chunk: int
    """Runs whose weights stay in cache while a tile goes through."""


def phases_of(conv: Convolution, merged: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each phase: taps ``(T, 2)``, rows and columns from the base position, weights ``(T, I, O)``.

    ``merged``: one phase, outputs ``(row, column, o)`` of it in a row.
    """
    k, s = conv.kernel_size, conv.stride
    weight = conv.by_output().astype(np.int64).transpose(2, 3, 1, 0)
    if not conv.transposed:
        taps = np.array([(i, j) for i in range(k) for j in range(k)]) - conv.padding
        return [(taps, weight.reshape(k * k, *weight.shape[2:]))]
    found = []
    for phase in range(s * s):
        first = [(side + conv.padding) % s for side in divmod(phase, s)]
        at = [(i, j) for i in range(first[0], k, s) for j in range(first[1], k, s)]
        near = [
            [(side + conv.padding - t) // s for side, t in zip(divmod(phase, s), tap, strict=True)]
            for tap in at
        ]
        kernel = np.stack([weight[i, j] for i, j in at]) if at else np.zeros((0, *weight.shape[2:]), np.int64)
        found.append((np.array(near, np.int64).reshape(-1, 2), kernel))
    if not merged:
        return found
    union = sorted({tuple(tap) for taps, _ in found for tap in taps.tolist()})
    whole = np.zeros((len(union), weight.shape[2], s * s, weight.shape[3]), np.int64)
    for phase, (taps, kernel) in enumerate(found):
        for tap, matrix in zip(taps.tolist(), kernel, strict=True):
            whole[union.index(tuple(tap)), :, phase] = matrix
    return [(np.array(union), whole.reshape(len(union), weight.shape[2], -1))]


@njit(cache=True, nogil=True)
def _multiply(buffer, at, stride, taps, k, phase, tile, count):  # type: ignore[no-untyped-def]
    """Accumulators of ``count`` positions, ``stride`` bytes apart, the first at ``at``, into ``tile``."""
    width, step, line = LANES * k.vectors, STEPS[k.kernel, k.vectors], k.start.shape[1]
    weights, start = k.weights.ctypes.data + k.at[phase], k.start.ctypes.data + 4 * phase * line
    words = k.words * k.run
    for block in range(line // width):
        for first in range(0, max(len(taps), 1), k.chunk):
            n = min(k.chunk, len(taps) - first)
            w = weights + (block * len(taps) + first) * words * width * 4
            for p in range(0, count, step):
                c = tile.ctypes.data + 4 * (p * line + block * width)
                begin, along = (start + 4 * block * width, 0) if first == 0 else (c, 4 * line)
                product(
                    k.kernel, k.vectors, buffer.ctypes.data + at + p * stride, stride,
                    taps.ctypes.data + 8 * first, n, words, w, begin, along, c, 4 * line,
                )  # fmt: skip


@njit(cache=True, nogil=True)
def _join(tile, high, line, count, channels, bias, into):  # type: ignore[no-untyped-def]
    for p in range(count):
        for c in range(channels):
            i = p * line + c
            into[i] = 256.0 * np.float64(high[i]) + np.float64(tile[i]) + bias[c]


@njit(cache=True, nogil=True, inline="always")
def _task(x, size, shape, zero, origin, box, k, e, out, out_size, out_zero, width):  # type: ignore[no-untyped-def]
    (top, bottom), (left, right) = box
    cell, line, stride = 4 * k.words, k.start.shape[1], k.stride
    across = (right - left + TOGETHER - 1) // TOGETHER * TOGETHER
    reach = k.most - k.least + 1
    wide, tall = (across - 1) * stride + reach, (bottom - top - 1) * stride + reach
    first_row, first_column = top * stride + origin + k.least, left * stride + origin + k.least
    rows, columns = (first_row, first_row + tall), (first_column, first_column + wide)
    buffer = np.empty(tall * wide * cell, np.uint8)
    upper = np.empty(len(buffer) if k.split else 0, np.uint8)
    bytewise = k.kernel == BYTES
    gather(x, size, shape, zero, LOW if k.split else WHOLE, bytewise, cell, rows, columns, buffer, wide)
    if k.split:
        gather(x, size, shape, zero, HIGH, bytewise, cell, rows, columns, upper, wide)
    distances = ((k.taps[:, 0] - k.least) * wide + k.taps[:, 1] - k.least) * cell
    tile = np.empty(SPAN * line, np.int32)
    normed, squares, result = rooms(line, e)
    high, real = np.empty(len(tile) if k.split else 0, np.int32), np.empty(len(tile) if k.split else 0)
    parts = k.up if k.merged else 1  # rows of outputs, each of them in one piece
    each = e.channels // parts
    channels = each // parts
    for phase in range(len(k.phases) - 1):
        taps = distances[k.phases[phase] : k.phases[phase + 1]]
        for y in range(top, bottom):
            for first in range(left, right, SPAN):
                count = min(SPAN, right - first)
                at = ((y - top) * wide + first - left) * stride * cell
                _multiply(buffer, at, stride * cell, taps, k, phase, tile, count)
                if k.split:
                    _multiply(upper, at, stride * cell, taps, k, phase, high, count)
                    _join(tile, high, line, count, e.channels, k.bias, real)
                    if e.kind != PLAIN:
                        enter(real, line, count, e, normed, squares, result)
                elif e.kind != PLAIN:
                    enter(tile, line, count, e, normed, squares, result)
                if e.kind != PLAIN:
                    finish(line, count, e, normed, squares, result)
                for part in range(parts):
                    row, column = (part, 0) if k.merged else (phase // k.up, phase % k.up)
                    to = ((y * k.up + row) * width + first * k.up + column) * channels
                    step = k.up * channels
                    if e.kind == PLAIN and k.split:
                        store(real, line, count, part * each, each, out_zero, out, out_size, to, step)
                    else:
                        done = tile if e.kind == PLAIN else result
                        store(done, line, count, part * each, each, out_zero, out, out_size, to, step)


@njit(cache=True, nogil=True, inline="always")
def _nth(i, sides, rows, columns):  # type: ignore[no-untyped-def]
    """Picture and box of a task: ``sides``: of what there is, ``rows, columns``: of a task."""
    along = -(-sides[1] // columns)
    of_picture = -(-sides[0] // rows) * along
    rest = i % of_picture
    top, left = rest // along * rows, rest % along * columns
    box = ((top, min(top + rows, sides[0])), (left, min(left + columns, sides[1])))
    return i // of_picture, box


@njit(cache=True, nogil=True)
def convolve(  # type: ignore[no-untyped-def]
    start, stop, sides, rows, columns, x, size, shape, zero, origin, k, e, out, out_size, out_zero, width
):  # fmt: skip
    """Tasks ``start .. stop - 1``, of ``rows`` by ``columns`` base positions, ``sides`` of them in a picture.
    ``x``: bytes of each picture of ``shape`` (H, W, C); ``origin``: where the first base position is; ``k``:
    `Packed`; ``e``: `Epilogue`; ``out``: bytes of each picture, ``width`` positions a row. Sizes, zeros:
    `Form`.
    """
    for i in range(start, stop):
        b, box = _nth(i, sides, rows, columns)
        _task(x[b], size, shape, zero, origin, box, k, e, out[b], out_size, out_zero, width)
