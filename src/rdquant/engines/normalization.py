"""GDN and its inverse on tiles: squares of 16 bits, of which a product makes norms, and the division by their
roots. Reference: `rdquant.graph.operations.gdn`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiled import njit, whole_vectors
from ..graph.arithmetic import GDN_BITS, ROOT_SHIFT, SQUARE_SHIFT, X_HI, X_LO
from ..graph.kernels import lifted, scaled, shifted
from .products import LANES, SUMS, VNNI

#: squares are taken less it, to fit signed words
MIDDLE = 1 << GDN_BITS - 1
_TWICE_ROOT, _ROOT_ONE = np.int32(2 * ROOT_SHIFT), np.float32(2**ROOT_SHIFT)
_X_LO, _X_HI = float(X_LO), float(X_HI)
_SQUARE_SHIFT, _HALF_SQUARE = np.int32(SQUARE_SHIFT), np.int32(1 << SQUARE_SHIFT - 1)
_MIDDLE_SQUARE, _MOST_SQUARE = np.int32(MIDDLE), np.int32(2 * MIDDLE - 1)
#: of what is rounded in float32: how near to a whole number its exact value may be on the other side
_MARGIN = np.float32(2**-21)
_REALS, _HALVES = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), ir.IntType(16)))


@njit(cache=True, nogil=True, inline="always")
def _squared(v):  # type: ignore[no-untyped-def]
    """Of 16 bits, less the middle of what it can be."""
    square = shifted(np.int32(np.int32(v * v) + _HALF_SQUARE), _SQUARE_SHIFT)
    return np.int16(min(square, _MOST_SQUARE) - _MIDDLE_SQUARE)


@njit(cache=True, nogil=True, error_model="numpy", makes_arrays=False)
def widen(acc, line, count, channels, factors, x, squares):  # type: ignore[no-untyped-def]
    whole_vectors()
    wide = factors[0]
    for p in range(count):
        a, o = acc[p * line : p * line + channels], x[p * line : p * line + channels]
        s = squares[p * line : p * line + channels]
        for c in range(channels):
            v = np.int32(min(max(np.floor(np.float64(a[c]) * wide[c] + 0.5), _X_LO), _X_HI))
            o[c], s[c] = np.int16(v), _squared(v)


@njit(cache=True, nogil=True, error_model="numpy", makes_arrays=False)
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


def _emit(typingctx, divides, x, norms, factor, lo, hi, out):  # type: ignore[no-untyped-def]
    """``divides`` is a literal; addresses of 16 channels, and limits, float32 -> lanes that are `_doubtful`.

    Where others take long for roots and quotients there is a first guess of 14 bits, and a step of Newton's:
    both are off by less than 2^-23.3 of themselves, so that a root, below 2^21, is off by 0.4 at most, and a
    quotient by less than three roundings may.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        x, norms, factor, lo, hi, out = args[1:]

        def at(address, kind):  # type: ignore[no-untyped-def]
            return builder.inttoptr(address, kind.as_pointer())

        def real(value):  # type: ignore[no-untyped-def]
            return ir.Constant(_REALS, [float(value)] * LANES)

        def whole(value):  # type: ignore[no-untyped-def]
            return ir.Constant(SUMS, [int(value)] * LANES)

        def every(value):  # type: ignore[no-untyped-def]
            undefined = ir.Constant(_REALS, ir.Undefined)
            lane = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(lane, undefined, ir.Constant(SUMS, None))

        def call(name, *values):  # type: ignore[no-untyped-def]
            kind = ir.FunctionType(_REALS, [value.type for value in values])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)

        def guess(name, value):  # type: ignore[no-untyped-def]
            every_lane = ir.Constant(ir.IntType(16), -1)
            return call(f"llvm.x86.avx512.{name}14.ps.512", value, real(0), every_lane)

        def fused(a, b, c):  # type: ignore[no-untyped-def]
            return call("llvm.fma.v16f32", a, b, c)

        def minus(value):  # type: ignore[no-untyped-def]
            return builder.fsub(real(-0.0), value)

        v = builder.sitofp(builder.load(at(x, _HALVES), align=2), _REALS)
        norm = builder.load(at(norms, SUMS), align=4)
        single = builder.uitofp(norm, _REALS)
        inverse = guess("rsqrt", single)
        root = builder.fmul(single, inverse)
        root = fused(fused(minus(root), root, single), builder.fmul(inverse, real(0.5)), root)
        near = builder.fptosi(fused(root, real(_ROOT_ONE), real(0.5)), SUMS)
        beyond = builder.sub(builder.mul(near, near), builder.shl(norm, whole(_TWICE_ROOT)))
        near = builder.add(near, builder.sext(builder.icmp_signed(">", beyond, whole(0)), SUMS))
        root, scale = builder.sitofp(near, _REALS), builder.load(at(factor, _REALS), align=4)
        if divides.literal_value:
            inverse = guess("rcp", root)
            root = fused(fused(minus(root), inverse, real(1)), inverse, inverse)
            y = builder.fadd(builder.fmul(builder.fmul(v, scale), root), real(0.5))
        else:
            y = builder.fadd(builder.fmul(builder.fmul(v, root), scale), real(0.5))
        floor = call("llvm.floor.v16f32", y)
        part, size = builder.fsub(y, floor), call("llvm.fabs.v16f32", y)
        margin = fused(size, real(_MARGIN), real(_MARGIN))
        below = builder.fcmp_ordered("<", part, margin)
        above = builder.fcmp_ordered(">", part, builder.fsub(real(1), margin))
        lo, hi = every(lo), every(hi)
        floor = builder.select(builder.fcmp_ordered(">", floor, lo), floor, lo)
        floor = builder.select(builder.fcmp_ordered("<", floor, hi), floor, hi)
        builder.store(builder.fptosi(floor, SUMS), at(out, SUMS), align=4)
        doubts = builder.bitcast(builder.or_(below, above), ir.IntType(16))
        return builder.zext(doubts, ir.IntType(32))

    kinds = types.int64, types.int64, types.int64, types.float32, types.float32, types.int64
    return types.int32(divides, *kinds), codegen


_vector: Any = intrinsic(prefer_literal=True)(_emit)


@njit(cache=True, nogil=True, inline="always")
def _of(values, vector):  # type: ignore[no-untyped-def]
    """The address of 16 of them."""
    return np.int64(values.ctypes.data) + vector * LANES * values.itemsize


@njit(cache=True, nogil=True, error_model="numpy", makes_arrays=False)
def denormalize(x, norms, line, wide, count, channels, factors, single, lo, hi, fast, out):  # type: ignore[no-untyped-def]
    """In float32; positions where that may not do, in float64. ``fast``: whole vectors by AVX-512."""
    whole_vectors()
    factor, least, most = factors[1], np.float32(lo), np.float32(hi)
    for p in range(count):
        a, o = x[p * line : p * line + channels], out[p * line : p * line + channels]
        n, doubts, vectors = norms[p * wide : p * wide + channels], np.int32(0), 0
        if VNNI:  # a constant: what this machine lacks is not compiled
            vectors = channels // LANES if fast else 0
            for i in range(vectors):
                doubts |= _vector(0, _of(a, i), _of(n, i), _of(single, i), least, most, _of(o, i))
        for c in range(vectors * LANES, channels):
            y = np.float32(a[c]) * np.float32(root(n[c])) * single[c] + np.float32(0.5)
            whole = np.floor(y)
            doubts = np.int32(doubts | _doubtful(y, whole))
            o[c] = np.int32(min(max(whole, least), most))
        if doubts:
            for c in range(channels):
                v = np.floor(np.float64(a[c]) * np.float64(root(n[c])) * factor[c] + 0.5)
                o[c] = np.int32(min(max(v, lo), hi))


@njit(cache=True, nogil=True, error_model="numpy", makes_arrays=False)
def normalize(x, norms, line, wide, count, channels, factors, single, lo, hi, fast, out):  # type: ignore[no-untyped-def]
    """In float32; positions where that may not do, in float64."""
    whole_vectors()
    m, power, least, most = factors[1], factors[2], np.float32(lo), np.float32(hi)
    for p in range(count):
        a, o = x[p * line : p * line + channels], out[p * line : p * line + channels]
        n, doubts, vectors = norms[p * wide : p * wide + channels], np.int32(0), 0
        if VNNI:
            vectors = channels // LANES if fast else 0
            for i in range(vectors):
                doubts |= _vector(1, _of(a, i), _of(n, i), _of(single, i), least, most, _of(o, i))
        for c in range(vectors * LANES, channels):
            y = np.float32(a[c]) * single[c] / np.float32(root(n[c])) + np.float32(0.5)
            whole = np.floor(y)
            doubts = np.int32(doubts | _doubtful(y, whole))
            o[c] = np.int32(min(max(whole, least), most))
        if doubts:
            for c in range(channels):
                d = np.float64(root(n[c])) * power[c]
                v = np.floor((2.0 * np.float64(a[c]) * m[c] + d) / (2.0 * d))
                o[c] = np.int32(min(max(v, lo), hi))
