"""Rounding channel after channel, each error passed on to the channels still to come, a tile at a time.

16 positions at once, a vector for each channel; channels in groups of 16. What the errors of earlier groups
add to a group is summed first, two channels to a word as in `products`; those of its own go on in registers.
Reference: `rdquant.graph.arithmetic.compensate`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiled import njit, whole_vectors
from ..graph.arithmetic import ERROR_BITS, ERROR_LIMIT, FEEDBACK_BITS
from .products import AVX2, LANES, PAIRS, SUMS, VNNI, WORDS, dot, transposed

_ERROR_ONE, _FEEDBACK_ONE = float(2**ERROR_BITS), float(2**FEEDBACK_BITS)
_ERROR_LIMIT = float(ERROR_LIMIT)
#: sums of feedback below it: what errors pass on has 32 bits
IN_WORDS = 2**31 // ERROR_LIMIT
_I64, _LINE = ir.IntType(64), 4 * LANES


def _emit(typingctx, kernel, v, line, errors, earlier, feedback, low, high):  # type: ignore[no-untyped-def]
    """``kernel`` is a literal."""
    kind = kernel.literal_value

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        v, line, errors, earlier, feedback, low, high = args[1:]
        undefined, pick = ir.Constant(SUMS, ir.Undefined), ir.Constant(SUMS, None)

        def at(address, offset, kind):  # type: ignore[no-untyped-def]
            place = builder.add(
                address, offset if isinstance(offset, ir.Value) else ir.Constant(_I64, offset)
            )
            return builder.inttoptr(place, kind.as_pointer())

        def row(i, distance):  # type: ignore[no-untyped-def]
            return builder.mul(distance, ir.Constant(_I64, i))

        def load(address, offset):  # type: ignore[no-untyped-def]
            return builder.load(at(address, offset, SUMS), align=4)

        def every(address, offset):  # type: ignore[no-untyped-def]
            one = builder.load(at(address, offset, SUMS.element), align=4)
            lane = builder.insert_element(undefined, one, ir.Constant(SUMS.element, 0))
            return builder.shuffle_vector(lane, undefined, pick)

        def constant(value):  # type: ignore[no-untyped-def]
            return ir.Constant(SUMS, [value] * LANES)

        def clipped(x, least, most):  # type: ignore[no-untyped-def]
            x = builder.select(builder.icmp_signed(">", x, least), x, least)
            return builder.select(builder.icmp_signed("<", x, most), x, most)

        sums = [cgutils.alloca_once_value(builder, constant(0)) for _ in range(LANES)]
        with cgutils.for_range(builder, earlier, intp=_I64) as pair:
            before, weights = load(errors, row(_LINE, pair.index)), row(_LINE, pair.index)
            for j, s in enumerate(sums):
                weight = every(builder.add(feedback, weights), 4 * j)
                builder.store(dot(builder, kind, builder.load(s), before, weight), s)
        own = row(_LINE, earlier)
        feedback, errors = builder.add(feedback, own), builder.add(errors, own)
        given = [builder.load(s) for s in sums]
        whole = transposed(builder, [load(v, row(i, line)) for i in range(LANES)])
        found, before = [], undefined
        for i in range(LANES):
            near = builder.add(whole[i], builder.ashr(given[i], constant(FEEDBACK_BITS)))
            r = builder.ashr(builder.add(near, constant(1 << ERROR_BITS - 1)), constant(ERROR_BITS))
            r = clipped(r, every(low, 4 * i), every(high, 4 * i))
            up = builder.and_(builder.lshr(given[i], constant(FEEDBACK_BITS - 1)), constant(1))
            error = builder.sub(builder.add(near, up), builder.shl(r, constant(ERROR_BITS)))
            error = clipped(error, constant(-ERROR_LIMIT), constant(ERROR_LIMIT))
            found.append(r)
            if i % 2:
                low_half = builder.and_(before, constant(0xFFFF))
                error = builder.or_(low_half, builder.shl(error, constant(16)))
                builder.store(error, at(errors, i // 2 * _LINE, SUMS), align=4)
            before = error
            # words of feedback are of pairs; the one of a pair to its own second has zero above
            for j in range(i + 1, LANES) if i % 2 else (i + 1,):
                given[j] = dot(builder, kind, given[j], before, every(feedback, i // 2 * _LINE + 4 * j))
        for i, r in enumerate(transposed(builder, found)):
            builder.store(r, at(v, row(i, line), SUMS), align=4)
        return context.get_dummy_value()

    return types.void(kernel, *[types.int64] * 7), codegen


_round: Any = intrinsic(prefer_literal=True)(_emit)


@njit(cache=True, nogil=True, makes_arrays=False)
def _round_group(kernel, v, line, errors, earlier, feedback, low, high):  # type: ignore[no-untyped-def]
    """16 positions of a group: ``v``, ``line`` bytes from position to position, to results in its place.

    ``errors``: words ``(pairs, 16)`` of ``earlier`` pairs of channels, behind which the group's come;
    ``feedback``: words ``(earlier + 8, 16)``, of a pair to each channel; ``low, high``: int32. All are
    addresses. ``v 2^8`` and what errors add may have more than 32 bits; what it is rounded to, in units of
    2^8 and 2^16, has not.
    """
    if kernel == 0:
        _round(0, v, line, errors, earlier, feedback, low, high)
    # constants: what this machine lacks is not compiled
    if AVX2:  # noqa: SIM102
        if kernel == PAIRS:
            _round(3, v, line, errors, earlier, feedback, low, high)
    if VNNI:  # noqa: SIM102
        if kernel == WORDS:
            _round(2, v, line, errors, earlier, feedback, low, high)


@njit(cache=True, nogil=True, makes_arrays=False)
def compensate(line, count, kernel, matrix, start, errors, out):  # type: ignore[no-untyped-def]
    """A tile ``out``, int32, in units of 2^-8 -> activations. ``matrix, start``: of `Epilogue`; ``errors``:
    room for 8 words a channel.
    """
    wide = len(start) // 2  # channels in whole vectors: a line may be longer
    low = np.int64(start.ctypes.data)
    for p in range(0, count, LANES):
        at = np.int64(matrix.ctypes.data)
        for first in range(0, wide, LANES):
            _round_group(
                kernel, np.int64(out.ctypes.data) + 4 * (p * line + first), 4 * line,
                np.int64(errors.ctypes.data), first // 2, at, low + 4 * first, low + 4 * (wide + first),
            )  # fmt: skip
            at += 2 * (first + LANES) * LANES


@njit(cache=True, nogil=True, error_model="numpy")
def compensate_wide(line, count, channels, factors, feedback, out):  # type: ignore[no-untyped-def]
    """The same where what errors pass on can exceed 32 bits: all in float64."""
    whole_vectors()
    u, errors = np.zeros((channels, count)), np.zeros(count)
    for p in range(count):
        for c in range(channels):
            u[c, p] = np.float64(out[p * line + c]) * _FEEDBACK_ONE
    for i in range(channels):
        for p in range(count):
            r = np.floor(u[i, p] * (1 / (_ERROR_ONE * _FEEDBACK_ONE)) + 0.5)
            r = min(max(r, factors[2, i]), factors[3, i])
            error = np.floor(u[i, p] * (1 / _FEEDBACK_ONE) + 0.5) - r * _ERROR_ONE
            errors[p] = min(max(error, -_ERROR_LIMIT), _ERROR_LIMIT)
            out[p * line + i] = np.int32(r)
        for j in range(i + 1, channels):
            for p in range(count):
                u[j, p] += errors[p] * feedback[i, j]
