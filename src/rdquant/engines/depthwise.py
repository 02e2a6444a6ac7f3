"""Convolutions with one kernel for each channel, sums of 32 bits.

Channels go in vectors of 16. Two taps of a channel make a word, as in `products`: one instruction multiplies
and adds both, where the machine has one. Taps outside the picture are at an address where zeros are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiled import njit
from ..graph.operations import Convolution
from .buffers import store
from .epilogues import as_real, enter, enter_real
from .products import AVX2, LANES, NONE, PAIRS, SPAN, SUMS, VNNI, WORDS, dot


class Packed(NamedTuple):
    """A convolution as tasks take it. ``line``: channels up to a multiple of 16."""

    side: int
    words: np.ndarray
    """int16 ``(pairs of taps, line, 2)``, flat; of an odd number of taps the last is of zeros."""
    bias: np.ndarray
    """int32 ``(line,)``."""
    blank: np.ndarray
    """int16 zeros ``(line,)``: what taps outside the picture see. An argument, which lives on: numba frees
    what a kernel makes after its last use, of which that of an address is none."""


def packed(conv: Convolution) -> Packed:
    side, channels = conv.kernel_size, conv.out_channels
    room = np.zeros(((side**2 + 1) // 2, 2, -(-channels // LANES) * LANES), np.int16)
    room.reshape(-1, room.shape[2])[: side**2, :channels] = conv.weight.reshape(channels, -1).T
    bias = np.zeros(room.shape[2], np.int32)
    bias[:channels] = conv.bias
    words, blank = room.transpose(0, 2, 1).reshape(-1).copy(), np.zeros(room.shape[2], np.int16)
    return Packed(side, words, bias, blank)


def _emit(typingctx, kernel, taps, pairs, words, bias, blocks, out):  # type: ignore[no-untyped-def]
    """``kernel`` is a literal."""
    kind = kernel.literal_value

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        taps, pairs, words, bias, blocks, out = args[1:]
        i64, halves = ir.IntType(64), ir.VectorType(ir.IntType(16), LANES)

        def at(address, distance, kind):  # type: ignore[no-untyped-def]
            return builder.inttoptr(builder.add(address, distance), kind.as_pointer())

        def times(value, k):  # type: ignore[no-untyped-def]
            return builder.mul(value, ir.Constant(i64, k))

        acc = cgutils.alloca_once(builder, SUMS)
        with cgutils.for_range(builder, blocks, intp=i64) as block:
            here = times(block.index, 4 * LANES)
            builder.store(builder.load(at(bias, here, SUMS), align=4), acc)
            with cgutils.for_range(builder, pairs, intp=i64) as pair:
                both = []
                for i in range(2):
                    place = builder.add(times(pair.index, 16), ir.Constant(i64, 8 * i))
                    tap = builder.load(at(taps, place, i64))
                    value = builder.load(at(tap, times(block.index, 2 * LANES), halves), align=2)
                    both.append(builder.zext(value, SUMS))
                word = builder.or_(both[0], builder.shl(both[1], ir.Constant(SUMS, [16] * LANES)))
                row = builder.add(times(builder.mul(pair.index, blocks), 4 * LANES), here)
                weights = builder.load(at(words, row, SUMS), align=4)
                builder.store(dot(builder, kind, builder.load(acc), word, weights), acc)
            builder.store(builder.load(acc), at(out, here, SUMS), align=4)
        return context.get_dummy_value()

    return types.void(kernel, *[types.int64] * 6), codegen


_sums: Any = intrinsic(prefer_literal=True)(_emit)


@njit(cache=True, nogil=True)
def _position(kernel, taps, pairs, words, bias, blocks, out):  # type: ignore[no-untyped-def]
    """Sums of one position, int32, to ``out``. All are addresses; ``taps``: int64, where each tap's channels
    are.
    """
    if kernel == 0:
        _sums(0, taps, pairs, words, bias, blocks, out)
    # constants: what this machine lacks is not compiled
    if AVX2:  # noqa: SIM102
        if kernel == PAIRS:
            _sums(3, taps, pairs, words, bias, blocks, out)
    if VNNI:  # noqa: SIM102
        if kernel == WORDS:
            _sums(2, taps, pairs, words, bias, blocks, out)


@njit(cache=True, nogil=True)
def convolve(start, stop, x, shift, stride, k, e, out, size, zero, width):  # type: ignore[no-untyped-def]
    """Rows ``start .. stop - 1`` of all pictures'.

    ``x: (B, H, W, line)`` int16; ``shift``: of the first tap; ``k``: `Packed`; ``e``: `Epilogue`, of no other
    kind than requantization. ``out: (B, rows, bytes)``, ``width`` positions a row, stored as `Form` says.
    """
    _, height, across, line = x.shape
    side, channels, rows = k.side, e.channels, out.shape[1]
    pairs = (side * side + 1) // 2
    blank, cell = np.int64(k.blank.ctypes.data), 2 * line
    taps, along = np.full(2 * pairs, blank), np.zeros(2 * pairs, np.int64)
    tile, real = np.empty(SPAN * line, np.int32), np.empty(SPAN * line if e.real else 0)
    none = np.empty(0, np.int16)
    for i in range(start, stop):
        b, y = i // rows, i % rows
        top = y * stride + shift
        picture = np.int64(x.ctypes.data) + b * height * across * cell
        for ky in range(side):
            inside = 0 <= top + ky < height
            along[ky * side : (ky + 1) * side] = stride * cell if inside else 0
        for first in range(0, width, SPAN):
            count = min(SPAN, width - first)
            for p in range(count):
                left = (first + p) * stride + shift
                if p > 0 and left >= stride and left + side <= across:  # the one before was inside as well
                    for t in range(len(taps)):
                        taps[t] += along[t]
                else:
                    for t in range(side * side):
                        r, c = top + t // side, left + t % side
                        inside = 0 <= r < height and 0 <= c < across
                        taps[t] = picture + (r * across + c) * cell if inside else blank
                _position(
                    e.kernel, np.int64(taps.ctypes.data), pairs, np.int64(k.words.ctypes.data),
                    np.int64(k.bias.ctypes.data), line // LANES, np.int64(tile.ctypes.data) + 4 * p * line,
                )  # fmt: skip
            if e.real:
                as_real(tile, line, count, channels, real)
                enter_real(real, line, count, e, none, none, tile)
            else:
                enter(tile, line, count, e, none, none)
            store(tile, line, count, NONE, channels, zero, out[b, y], size, first * channels, channels)
