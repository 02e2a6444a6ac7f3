"""Products by AMX: of 16 positions by up to 64 bytes, and these by 16 outputs, at a time.

A tile register holds up to 16 rows of up to 64 bytes, at any distance in memory: words of positions as they
lie there, words of weights as `products` packs them, or sums. Thus ``tdpbusd`` takes the very arrays that
``vpdpbusd`` does, and gives the same sums modulo 2^32.

Words of two 16-bit activations go byte by byte, by weights of 8 bits: lower bytes by words of a weight and a
zero, twice, and upper ones by words of a zero and a weight, sums that count 256 times (`halved`).

Linux lets a process use the registers once it has asked for them. They are to be released after use, or
every change of threads stores them.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiled import njit

LANES = 16  #: int32 outputs of a vector
FEATURES = ("amx-tile", "amx-int8")
#: positions that a kernel takes, by its vectors: sums of three or six registers hide each other's latency
POSITIONS, OF_WORDS = {1: 48, 2: 48}, {1: 48}
#: words of a product; and so few that others are faster
DEEPEST, SHALLOW = 16, 4

_found: dict[str, bool] = dict(llvmlite.binding.get_host_cpu_features())
#: whether this machine has the instructions
AMX = all(_found.get(name, False) for name in FEATURES)
#: arch_prctl of x86-64, its request for a part of the processor's state, and which that is
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18

_I8, _I16, _I64 = (ir.IntType(n) for n in (8, 16, 64))
_SUMS = ir.VectorType(ir.IntType(32), LANES)
#: registers: sums are in those before
_SEEN, _WEIGHTS = 6, 7


@functools.cache
def permitted() -> bool:
    """Whether this process may use the registers: it asks."""
    if not AMX or sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0)


def _assembly(builder: Any, code: str, *operands: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    constraints = ",".join(["r"] * len(operands) + ["~{memory}"])
    builder.call(ir.InlineAsm(kind, code, constraints, side_effect=True), operands)


def _load(builder: Any, register: int, address: Any, distance: Any) -> None:
    _assembly(builder, f"tileloadd ($0,$1,1), %tmm{register}", address, distance)


def _store(builder: Any, register: int, address: Any, distance: Any) -> None:
    _assembly(builder, f"tilestored %tmm{register}, ($0,$1,1)", address, distance)


def _past(builder: Any, address: Any, distance: int) -> Any:
    return builder.add(address, ir.Constant(_I64, distance))


def _times(builder: Any, value: Any, k: int) -> Any:
    return builder.mul(value, ir.Constant(_I64, k))


def _emit_configure(typingctx, depth):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        (depth,) = args
        room = cgutils.alloca_once(builder, ir.ArrayType(_I8, 64))
        builder.store(ir.Constant(ir.ArrayType(_I8, 64), None), room)
        first, full = builder.ptrtoint(room, _I64), ir.Constant(_I64, 16)

        def put(at: int, value: Any, kind: Any) -> None:
            place = builder.inttoptr(_past(builder, first, at), kind.as_pointer())
            builder.store(builder.trunc(value, kind), place)

        put(0, ir.Constant(_I64, 1), _I8)  # the palette
        for register in range(8):
            put(
                16 + 2 * register, _times(builder, depth if register == _SEEN else full, 4), _I16
            )  # bytes of a row
            put(48 + register, depth if register == _WEIGHTS else full, _I8)  # rows
        _assembly(builder, "ldtilecfg ($0)", first)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _emit_release(typingctx):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        _assembly(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


def _at(builder: Any, first: Any, distance: Any, i: int, j: int = 0) -> Any:
    """The address of 16 rows and 16 columns."""
    return _past(builder, builder.add(first, _times(builder, distance, 16 * i)), 64 * j)


def _multiply(builder: Any, codes: list[str], rows: int, *factors: Any) -> None:
    """Adds products to sums. ``codes``: an instruction for each vector of weights, whose sums are in ``rows``
    registers.
    """
    a, stride, taps, count, words, depth, w = factors
    place, across = cgutils.alloca_once_value(builder, w), ir.Constant(_I64, 64 * len(codes))
    with cgutils.for_range(builder, count, intp=_I64) as tap:
        offset = builder.load(builder.gep(builder.inttoptr(taps, _I64.as_pointer()), [tap.index]))
        with cgutils.for_range(builder, builder.udiv(words, depth), intp=_I64) as step:
            here, within = builder.load(place), builder.mul(_times(builder, step.index, 4), depth)
            seen = builder.add(builder.add(a, offset), within)
            for j, code in enumerate(codes):
                _load(builder, _WEIGHTS, _past(builder, here, 64 * j), across)
                for i in range(rows):
                    _load(builder, _SEEN, _at(builder, seen, stride, i), stride)
                    _assembly(builder, f"{code} %tmm{_WEIGHTS}, %tmm{_SEEN}, %tmm{rows * j + i}")
            builder.store(builder.add(here, builder.mul(depth, across)), place)


def _emit(typingctx, vectors, a, stride, taps, count, words, depth, w, start, line, c, ldc):  # type: ignore[no-untyped-def]
    """``vectors`` is a literal."""
    n = vectors.literal_value
    rows = POSITIONS[n] // 16

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        *factors, start, line, c, ldc = args[1:]
        for k in range(rows * n):
            _load(builder, k, _at(builder, start, line, k % rows, k // rows), line)
        _multiply(builder, ["tdpbusd"] * n, rows, *factors)
        for k in range(rows * n):
            _store(builder, k, _at(builder, c, ldc, k % rows, k // rows), ldc)
        return context.get_dummy_value()

    return types.void(vectors, *[types.int64] * 11), codegen


def _emit_words(typingctx, signed, a, stride, taps, count, words, depth, w, start, line, c, ldc):  # type: ignore[no-untyped-def]
    """``signed``, whether weights are, is a literal."""
    kind = "s" if signed.literal_value else "u"
    rows = OF_WORDS[1] // 16

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        *factors, start, line, c, ldc = args[1:]
        room = cgutils.alloca_once(builder, ir.ArrayType(_SUMS, 16 * rows))
        upper, across = builder.ptrtoint(room, _I64), ir.Constant(_I64, 64)
        for i in range(rows):
            _load(builder, i, _at(builder, start, line, i), line)
            _assembly(builder, f"tilezero %tmm{rows + i}")
        _multiply(builder, [f"tdpbu{kind}d", f"tdpbs{kind}d"], rows, *factors)
        for i in range(rows):
            _store(builder, i, _at(builder, c, ldc, i), ldc)
            _store(builder, rows + i, _at(builder, upper, across, i), across)
        with cgutils.for_range(builder, ir.Constant(_I64, 16 * rows), intp=_I64) as row:
            places = (
                builder.inttoptr(builder.add(first, builder.mul(row.index, distance)), _SUMS.as_pointer())
                for first, distance in ((c, ldc), (upper, across))
            )
            lower, more = places
            times = builder.shl(builder.load(more, align=4), ir.Constant(_SUMS, [8] * LANES))
            builder.store(builder.add(builder.load(lower, align=4), times), lower, align=4)
        return context.get_dummy_value()

    return types.void(signed, *[types.int64] * 11), codegen


def halved(words: np.ndarray) -> np.ndarray:
    """Words of two weights of 8 bits, int16 ``(..., 2)``, 16 of them in a row -> flat bytes of each row for
    lower bytes, then of it for upper ones.
    """
    rows = words.reshape(-1, LANES, 2)
    found = np.zeros((len(rows), 2, LANES, 2, 2), np.uint8)
    for byte in range(2):
        found[:, byte, :, :, byte] = rows & 255
    return found.reshape(-1)


_configure: Any = intrinsic(_emit_configure)
_release: Any = intrinsic(_emit_release)
_product: Any = intrinsic(prefer_literal=True)(_emit)
_of_words: Any = intrinsic(prefer_literal=True)(_emit_words)


@njit(cache=True, nogil=True)
def depth_of(words):  # type: ignore[no-untyped-def]
    """The most words that a product takes at a time of so many."""
    depth = min(words, DEEPEST)
    while words % depth != 0:
        depth -= 1
    return depth


@njit(cache=True, nogil=True)
def configure(words):  # type: ignore[no-untyped-def]
    """Before products of so many words a tap."""
    _configure(depth_of(words))


@njit(cache=True, nogil=True)
def release():  # type: ignore[no-untyped-def]
    """After them."""
    _release()


@njit(cache=True, nogil=True)
def product(vectors, a, stride, taps, count, words, w, start, line, c, ldc):  # type: ignore[no-untyped-def]
    """`rdquant.engines.products.product` of bytes, between `configure` and `release`."""
    depth = depth_of(words)
    if vectors == 1:
        _product(1, a, stride, taps, count, words, depth, w, start, line, c, ldc)
    else:
        _product(2, a, stride, taps, count, words, depth, w, start, line, c, ldc)


@njit(cache=True, nogil=True)
def of_words(signed, a, stride, taps, count, words, w, start, line, c, ldc):  # type: ignore[no-untyped-def]
    """The same of words, by weights as `halved` gives them."""
    depth = depth_of(words)
    if signed:
        _of_words(1, a, stride, taps, count, words, depth, w, start, line, c, ldc)
    else:
        _of_words(0, a, stride, taps, count, words, depth, w, start, line, c, ldc)
