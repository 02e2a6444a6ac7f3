"""Exact convolutions of small integers, tile by tile with what follows them.

A task takes some rows and columns of the output. It copies what they depend on into a padded buffer of
bytes or 16-bit integers, where every tap of every output is at a fixed distance, multiplies (`products`)
into a tile of accumulators, and finishes that (`epilogues`); a product of each position alone that follows
takes the tile as it is. A transposed convolution is one convolution for each phase of its outputs; with few
outputs, one of all phases at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..compiled import borrowed, njit, whole_vectors
from ..graph.operations import Convolution
from .buffers import copy, gather, room, store
from .epilogues import NORMALIZE, as_real, enter, enter_real, finish, rooms
from .products import (
    BYTE_TILES,
    BYTES,
    COPIES,
    LANES,
    NONE,
    ONE,
    SPAN,
    STEPS,
    TOGETHER,
    prepare,
    product,
    release,
)

TWO = np.int64(2)


class Packed(NamedTuple):
    """A convolution as tasks take it."""

    stride: int
    up: int
    merged: bool
    """One phase gives all ``up^2`` outputs of a base position, row by row, column by column."""
    taps: np.ndarray
    """``(T, 3)`` int64, rows and columns from the base position, and bytes from there, phase after phase; of
    a run, the first."""
    phases: np.ndarray
    """Where each phase's taps start, and end."""
    least: int
    most: int
    """Of all taps."""
    kernel: int
    vectors: int
    words: int
    """Of a tap."""
    cell: int
    """Bytes of a position."""
    run: int
    """Taps next to each other in a row that a product takes as one, of so many times the words."""
    weights: np.ndarray
    """Bytes; by phase ``(blocks, T, words, 16 vectors)`` words."""
    at: np.ndarray
    """Where each phase's weights start."""
    start: np.ndarray
    """int32 ``(phases, line)``: what accumulators start with; a line is that of a tile."""
    pieces: np.ndarray
    """``(phases, P + 1)`` int64: which of its taps the sums of 32 bits are of; if several, they start with
    zeros and are joined in float64."""
    bias: np.ndarray
    """float64, added to joined sums."""
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


# inlined: numba compiles what a function calls once more for each that calls it


@njit(cache=True, nogil=True, inline="always")
def _multiply(buffer, at, stride, taps, piece, k, phase, tile, count):  # type: ignore[no-untyped-def]
    """Sums over a piece of positions ``stride`` bytes apart, the first at ``at``, into ``tile``."""
    width, step, line = LANES * k.vectors, STEPS[k.kernel, k.vectors], k.start.shape[1]
    weights, start = k.weights.ctypes.data + k.at[phase], k.start.ctypes.data + 4 * phase * line
    words = k.words * k.run
    begin, end = k.pieces[phase, piece], k.pieces[phase, piece + 1]
    prepare(k.kernel, words)
    for block in range(line // width):
        for first in range(begin, max(end, begin + 1), k.chunk):
            n = min(k.chunk, end - first)
            w = weights + (block * len(taps) + first) * words * width * 4 * COPIES[k.kernel]
            for p in range(0, count, step):
                c = tile.ctypes.data + 4 * (p * line + block * width)
                before, along = (start + 4 * block * width, 0) if first == begin else (c, 4 * line)
                product(
                    k.kernel, k.vectors, buffer.ctypes.data + at + p * stride, stride,
                    taps.ctypes.data + 8 * first, n, words, w, before, along, c, 4 * line,
                )  # fmt: skip
    release(k.kernel)


@njit(cache=True, nogil=True, makes_arrays=False)
def _join(tile, first, line, count, channels, bias, into):  # type: ignore[no-untyped-def]
    """Adds the sums of a piece."""
    whole_vectors()
    for p in range(count):
        a, o = tile[p * line : p * line + channels], into[p * line : p * line + channels]
        for c in range(channels):
            o[c] = np.float64(a[c]) + (bias[c] if first else o[c])


@njit(cache=True, nogil=True, inline="always")
def rooms_of(k, e, positions):  # type: ignore[no-untyped-def]
    """``tile, real`` and `rooms` of `finished`, for so many positions."""
    size = positions * k.start.shape[1]
    real = np.empty(size if k.pieces.shape[1] > 2 or e.real else 0)
    return room(4 * size).view(np.int32), real, rooms(positions, k.start.shape[1], e)


@njit(cache=True, nogil=True, inline="always")
def finished(buffer, at, stride, taps, k, phase, e, scratch, count):  # type: ignore[no-untyped-def]
    """Accumulators of ``count`` positions, ``stride`` bytes apart, the first at ``at``, and what follows.
    Where that is, `stored` knows.
    """
    tile, real, (normed, squares, sums, result) = scratch
    line, pieces = k.start.shape[1], k.pieces.shape[1] - 1
    for piece in range(pieces):
        _multiply(buffer, at, stride, taps, piece, k, phase, tile, count)
        if pieces > 1:
            _join(tile, piece == 0, line, count, e.channels, k.bias, real)
    if e.real:
        if pieces == 1:
            as_real(tile, line, count, e.channels, real)
        enter_real(real, line, count, e, normed, squares, result)
    else:
        enter(tile, line, count, e, normed, squares)
    finish(line, count, e, normed, squares, sums, result if e.real or e.kind >= NORMALIZE else tile)


@njit(cache=True, nogil=True, inline="always")
def stored(k, e, scratch, count, first, channels, zero, out, size, to, step):  # type: ignore[no-untyped-def]
    """`store` of what `finished` left. Sums beyond 32 bits are stored in 64."""
    tile, real, (_, _, _, result) = scratch
    line = k.start.shape[1]
    if e.real or e.kind >= NORMALIZE:
        store(result, line, count, first, channels, zero, out, size, to, step)
    elif k.pieces.shape[1] > 2:
        copy(real, line, count, first, channels, out.view(np.int64), to, step)
    else:
        store(tile, line, count, first, channels, zero, out, size, to, step)


@njit(cache=True, nogil=True, inline="always")
def _extent(box, k):  # type: ignore[no-untyped-def]
    """Rows and columns of a buffer for a box of base positions."""
    (top, bottom), (left, right) = box
    across = -(-(right - left) // TOGETHER[k.kernel]) * TOGETHER[k.kernel]
    reach = k.most - k.least + 1
    return (bottom - top - 1) * k.stride + reach, (across - 1) * k.stride + reach


@njit(cache=True, nogil=True, inline="always")
def _task(x, size, shape, zero, origin, box, first, then, out, out_size, out_zero, width, rooms):  # type: ignore[no-untyped-def]
    (k, e), (joined, n, f, between) = first, then
    buffer, scratch, middle, more, at_once = rooms
    (top, bottom), (left, right) = box
    cell, stride = k.cell, k.stride
    tall, wide = _extent(box, k)
    first_row, first_column = top * stride + origin + k.least, left * stride + origin + k.least
    rows, columns = (first_row, first_row + tall), (first_column, first_column + wide)
    gather(
        x, size, shape, zero, k.kernel == BYTES or k.kernel == BYTE_TILES, cell, rows, columns, buffer, wide
    )
    distances = ((k.taps[:, 0] - k.least) * wide + k.taps[:, 1] - k.least) * cell + k.taps[:, 2]
    parts = k.up if k.merged else 1  # rows of outputs, each of them in one piece
    each = e.channels // parts
    channels = f.channels if joined else each // parts
    bytewise = n.kernel == BYTES or n.kernel == BYTE_TILES
    middle_size = ONE if bytewise else TWO
    for phase in range(len(k.phases) - 1):
        taps = distances[k.phases[phase] : k.phases[phase + 1]]
        for y in range(top, bottom):
            for across in range(left, right, SPAN):
                count = min(SPAN, right - across)
                at = ((y - top) * wide + across - left) * stride * cell
                finished(buffer, at, stride * cell, taps, k, phase, e, scratch, count)
                if joined:
                    step = n.cell // middle_size
                    stored(k, e, scratch, count, NONE, each, between, middle, middle_size, NONE, step)
                    finished(middle, NONE, n.cell, at_once, n, NONE, f, more, count)
                for part in range(parts):
                    row, column = (part, 0) if k.merged else (phase // k.up, phase % k.up)
                    to = ((y * k.up + row) * width + across * k.up + column) * channels
                    step = k.up * channels
                    if joined:
                        stored(n, f, more, count, NONE, channels, out_zero, out, out_size, to, step)
                    else:
                        stored(k, e, scratch, count, part * each, each, out_zero, out, out_size, to, step)


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
    start, stop, sides, rows, columns, x, size, shape, zero, origin, first, then, out, out_size, out_zero,
    width,
):  # fmt: skip
    """Tasks ``start .. stop - 1``, of ``rows`` by ``columns`` base positions, ``sides`` of them in a picture.
    ``x``: bytes of each picture of ``shape`` (H, W, C); ``origin``: where the first base position is;
    ``first``: `Packed` and `Epilogue`; ``then``: whether a product of each position follows, its own, and the
    zero of what it takes; ``out``: bytes of each picture, ``width`` positions a row. Sizes, zeros: `Form`.
    """
    x, zero, first, then, out, out_zero = borrowed((x, zero, first, then, out, out_zero))
    (k, e), (joined, n, f, _) = first, then
    tall, wide = _extent(((NONE, rows), (NONE, columns)), k)
    after = SPAN if joined else NONE
    kept = (
        room(tall * wide * k.cell), rooms_of(k, e, SPAN), room(after * n.cell), rooms_of(n, f, after),
        n.taps[:, 2].copy(),
    )  # fmt: skip
    rooms = borrowed(kept)
    rooms[2][:] = 0
    for i in range(start, stop):
        b, box = _nth(i, sides, rows, columns)
        _task(x[b], size, shape, zero, origin, box, first, then, out[b], out_size, out_zero, width, rooms)
    kept[0][:1] = 0  # numba frees what it sees no more use of
