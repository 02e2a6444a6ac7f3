"""Products of small integers: ``(positions, K) x (K, outputs)`` into int32, vector code made with llvmlite.

A **word** is 4 bytes: 4 unsigned 8-bit activations or 2 signed 16-bit ones. A kernel takes a few positions
(`POSITIONS`) and one to four vectors of 16 outputs, broadcasts word after word of each position, and adds
its dot products with the words of the weights, modulo 2^32: exact wherever the sum itself fits.

Byte kernels need AVX512-VNNI (``vpdpbusd``), or AMX beside it (`engines.tiles`). Word kernels have three
forms: AVX512-VNNI (``vpdpwssd``), AVX2 (``vpmaddwd``), and plain vector code that LLVM compiles for any
machine. ``RDQUANT_ISA`` (``portable``, ``avx2``, ``avx512vnni`` or ``amx``) limits the choice.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiled import njit
from ..errors import UsageError
from . import tiles
from .tiles import AMX, LANES

llvmlite.binding.initialize_native_asmparser()
#: arguments of kernels that are no Python integers, for which numba compiles them anew
NONE, ONE = np.int64(0), np.int64(1)
SPAN = 48  #: positions of a tile: a multiple of what any kernel takes
#: the kernels; `PAIRS`: words by AVX2; tiles: AMX, words by weights of 8 bits, `UNSIGNED_TILES` by 0..255
PORTABLE, BYTES, WORDS, PAIRS, BYTE_TILES, WORD_TILES, UNSIGNED_TILES = range(7)
#: positions that a kernel takes, by its vectors: what fits 32 registers, or the 16 of AVX2
POSITIONS = {
    PORTABLE: {1: 8}, BYTES: {1: 8, 2: 8, 3: 8, 4: 6}, WORDS: {1: 8, 2: 8, 3: 8, 4: 6}, PAIRS: {1: 6},
    BYTE_TILES: tiles.POSITIONS, WORD_TILES: tiles.OF_WORDS, UNSIGNED_TILES: tiles.OF_WORDS,
}  # fmt: skip
#: the same as an array
STEPS = np.array([[POSITIONS[kernel].get(n, 0) for n in range(5)] for kernel in sorted(POSITIONS)])
#: positions that kernels take a divisor of, the same
TOGETHER = np.array([math.lcm(*row[row > 0].tolist()) for row in STEPS])
_VNNI = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")
#: needed by each set of instructions, the best first
_FEATURES = {"amx": (*_VNNI, *tiles.FEATURES), "avx512vnni": _VNNI, "avx2": ("avx2",), "portable": ()}
#: multiplies words
WORD_KERNELS = {"amx": WORDS, "avx512vnni": WORDS, "avx2": PAIRS, "portable": PORTABLE}
#: vectors of weights that kernels read for each of outputs
COPIES = np.array([1, 1, 1, 1, 1, 2, 2])
#: those that multiply bytes
BYTEWISE = ("amx", "avx512vnni")


@functools.cache
def available() -> tuple[str, ...]:
    """Sets of instructions that this machine has, the best first."""
    features = llvmlite.binding.get_host_cpu_features()
    found = [name for name, needed in _FEATURES.items() if all(features.get(f, False) for f in needed)]
    return tuple(name for name in found if name != "amx" or tiles.permitted())


def instructions() -> str:
    """The best there is, or ``RDQUANT_ISA``. Raises `UsageError` for one that is not there."""
    chosen = os.environ.get("RDQUANT_ISA", available()[0])
    if chosen not in available():
        raise UsageError(f"RDQUANT_ISA must be one of {', '.join(available())} here, got {chosen!r}")
    return chosen


VNNI, AVX2 = ("avx512vnni" in available()), ("avx2" in available())


_I16, _I32, _I64 = (ir.IntType(n) for n in (16, 32, 64))
SUMS = ir.VectorType(_I32, LANES)


def dot(builder: Any, kernel: int, acc: Any, word: Any, weights: Any) -> Any:
    """``acc + sum of word * weights`` in each lane, all of them vectors of 16 i32."""
    if kernel in (BYTES, WORDS):
        # as text: LLVM would take vpdpwssd apart again, for a latency that is hidden here
        name = "vpdpbusd" if kernel == BYTES else "vpdpwssd"
        code = ir.InlineAsm(ir.FunctionType(SUMS, (SUMS,) * 3), f"{name} $3, $2, $0", "=v,0,v,v")
        return builder.call(code, (acc, word, weights))
    if kernel == PAIRS:
        half, pairs = ir.VectorType(_I32, 8), ir.VectorType(_I16, 16)
        kind = ir.FunctionType(half, (pairs, pairs))
        multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
        sums = []
        for first in (0, 8):
            pick = ir.Constant(ir.VectorType(_I32, 8), list(range(first, first + 8)))
            parts = (
                builder.shuffle_vector(v, ir.Constant(SUMS, ir.Undefined), pick) for v in (word, weights)
            )
            sums.append(builder.call(multiply, [builder.bitcast(v, pairs) for v in parts]))
        pick = ir.Constant(SUMS, list(range(LANES)))
        return builder.add(acc, builder.shuffle_vector(*sums, pick))
    halves = ir.VectorType(_I16, 2 * LANES)
    wide = ir.VectorType(_I32, 2 * LANES)
    a, b = (builder.sext(builder.bitcast(v, halves), wide) for v in (word, weights))
    terms = builder.mul(a, b)
    pick = [ir.Constant(ir.VectorType(_I32, LANES), list(range(i, 2 * LANES, 2))) for i in (0, 1)]
    even, odd = (builder.shuffle_vector(terms, ir.Constant(wide, ir.Undefined), p) for p in pick)
    return builder.add(acc, builder.add(even, odd))


def _emit(typingctx, kernel, vectors, a, stride, taps, count, words, w, start, line, c, ldc):  # type: ignore[no-untyped-def]
    """``kernel`` and ``vectors`` are literals."""
    kind, n = kernel.literal_value, vectors.literal_value
    m = POSITIONS[kind][n]
    signature = types.void(kernel, vectors, *[types.int64] * 10)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        a, stride, taps, count, words, w, start, line, c, ldc = args[2:]

        def at(address, kind):  # type: ignore[no-untyped-def]
            return builder.inttoptr(address, kind.as_pointer())

        def times(value, k):  # type: ignore[no-untyped-def]
            return builder.mul(value, ir.Constant(_I64, k))

        sums = [[cgutils.alloca_once(builder, SUMS) for _ in range(n)] for _ in range(m)]
        place = cgutils.alloca_once_value(builder, w)
        for i in range(m):
            for j in range(n):
                address = builder.add(builder.add(start, times(line, i)), ir.Constant(_I64, 64 * j))
                builder.store(builder.load(at(address, SUMS), align=4), sums[i][j])
        with cgutils.for_range(builder, count, intp=_I64) as tap:
            offset = builder.load(builder.gep(at(taps, _I64), [tap.index]))
            rows = [builder.add(builder.add(a, offset), times(stride, i)) for i in range(m)]
            with cgutils.for_range(builder, words, intp=_I64) as k:
                here = builder.load(place)
                step = times(k.index, 4)
                weights = [
                    builder.load(at(builder.add(here, ir.Constant(_I64, 64 * j)), SUMS), align=4)
                    for j in range(n)
                ]
                for i in range(m):
                    one = builder.load(at(builder.add(rows[i], step), _I32), align=1)
                    lane = builder.insert_element(ir.Constant(SUMS, ir.Undefined), one, ir.Constant(_I32, 0))
                    word = builder.shuffle_vector(
                        lane, ir.Constant(SUMS, ir.Undefined), ir.Constant(SUMS, None)
                    )
                    for j in range(n):
                        builder.store(
                            dot(builder, kind, builder.load(sums[i][j]), word, weights[j]), sums[i][j]
                        )
                builder.store(builder.add(here, ir.Constant(_I64, 64 * n)), place)
        for i in range(m):
            for j in range(n):
                address = builder.add(builder.add(c, times(ldc, i)), ir.Constant(_I64, 64 * j))
                builder.store(builder.load(sums[i][j]), at(address, SUMS), align=4)
        return context.get_dummy_value()

    return signature, codegen


#: the loops of one kernel, see `product`
_product: Any = intrinsic(prefer_literal=True)(_emit)


@njit(cache=True, nogil=True)
def product(kernel, vectors, a, stride, taps, count, words, w, start, line, c, ldc):  # type: ignore[no-untyped-def]
    """``c[i] = start[i] + sum over taps and words of a[i + tap] w``, i in 0..`POSITIONS` - 1, int32.

    Addresses and distances in bytes: positions of ``a`` are ``stride`` apart; ``taps``: the address of int64
    offsets, ``count`` of them; of each tap ``words`` words in a row; ``w``: (count, words, 16 ``vectors``)
    words; ``start`` and ``c``: rows of 16 ``vectors`` int32, ``line`` and ``ldc`` apart.
    """
    if kernel == 0:
        _product(0, 1, a, stride, taps, count, words, w, start, line, c, ldc)
    # constants: what this machine lacks is not compiled
    if AVX2:  # noqa: SIM102
        if kernel == 3:
            _product(3, 1, a, stride, taps, count, words, w, start, line, c, ldc)
    if VNNI:
        if kernel == 1:
            if vectors == 1:
                _product(1, 1, a, stride, taps, count, words, w, start, line, c, ldc)
            elif vectors == 2:
                _product(1, 2, a, stride, taps, count, words, w, start, line, c, ldc)
            elif vectors == 3:
                _product(1, 3, a, stride, taps, count, words, w, start, line, c, ldc)
            else:
                _product(1, 4, a, stride, taps, count, words, w, start, line, c, ldc)
        elif kernel == 2:
            if vectors == 1:
                _product(2, 1, a, stride, taps, count, words, w, start, line, c, ldc)
            elif vectors == 2:
                _product(2, 2, a, stride, taps, count, words, w, start, line, c, ldc)
            elif vectors == 3:
                _product(2, 3, a, stride, taps, count, words, w, start, line, c, ldc)
            else:
                _product(2, 4, a, stride, taps, count, words, w, start, line, c, ldc)
    if AMX:
        if kernel == 4:
            tiles.product(vectors, a, stride, taps, count, words, w, start, line, c, ldc)
        elif kernel == 5 or kernel == 6:
            tiles.of_words(kernel == 5, a, stride, taps, count, words, w, start, line, c, ldc)


@njit(cache=True, nogil=True, inline="always")
def prepare(kernel, words):  # type: ignore[no-untyped-def]
    """Before products of so many words a tap."""
    if AMX:  # noqa: SIM102
        if kernel >= 4:
            tiles.configure(words)


@njit(cache=True, nogil=True, inline="always")
def release(kernel):  # type: ignore[no-untyped-def]
    """After them."""
    if AMX:  # noqa: SIM102
        if kernel >= 4:
            tiles.release()


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """16 vectors of 16 lanes, row ``i`` lane ``j`` to row ``j`` lane ``i``."""
    rows = list(rows)
    for d in (8, 4, 2, 1):  # exchanges this bit of row and lane
        for i in (i for i in range(LANES) if not i & d):
            x, y = rows[i], rows[i + d]
            picks = [
                [lane if not lane & d else LANES + lane - d for lane in range(LANES)],
                [lane + d if not lane & d else LANES + lane for lane in range(LANES)],
            ]
            rows[i], rows[i + d] = (builder.shuffle_vector(x, y, ir.Constant(SUMS, pick)) for pick in picks)
    return rows


def packed_words(weights: np.ndarray, vectors: int) -> np.ndarray:
    """``(K, O)`` -> ``(blocks, K / 2, 16 vectors, 2)`` int16 flat, zeros beyond."""
    k, o = weights.shape
    width = LANES * vectors
    room = np.zeros((k + k % 2, -(-o // width) * width), np.int16)
    room[:k, :o] = weights
    return room.reshape(len(room) // 2, 2, -1, width).transpose(2, 0, 3, 1).reshape(-1).copy()
