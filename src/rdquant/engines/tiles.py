"""Products of bytes by AMX: of 16 positions by up to 64 bytes, and these by 16 outputs, at a time.

A tile register holds up to 16 rows of up to 64 bytes, at any distance in memory: words of positions as they
lie there, words of weights as `products` packs them, or sums. Thus ``tdpbusd`` takes the very arrays that
``vpdpbusd`` does, and gives the same sums modulo 2^32.

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
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiled import njit

LANES = 16  #: int32 outputs of a vector
FEATURES = ("amx-tile", "amx-int8")
#: positions that a kernel takes, by its vectors: sums of three or six registers hide each other's latency
POSITIONS = {1: 48, 2: 48}
#: words of a product; and so few that others are faster
DEEPEST, SHALLOW = 16, 4

_found: dict[str, bool] = dict(llvmlite.binding.get_host_cpu_features())
#: whether this machine has the instructions
AMX = all(_found.get(name, False) for name in FEATURES)
#: arch_prctl of x86-64, its request for a part of the processor's state, and which that is
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18

_I8, _I16, _I64 = (ir.IntType(n) for n in (8, 16, 64))
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


def _emit(typingctx, vectors, a, stride, taps, count, words, depth, w, start, line, c, ldc):  # type: ignore[no-untyped-def]
    """``vectors`` is a literal."""
    n = vectors.literal_value
    sums = [(i, j) for i in range(POSITIONS[n] // 16) for j in range(n)]

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        a, stride, taps, count, words, depth, w, start, line, c, ldc = args[1:]
        across = ir.Constant(_I64, 64 * n)

        def at(first: Any, distance: Any, i: int, j: int) -> Any:
            return _past(builder, builder.add(first, _times(builder, distance, 16 * i)), 64 * j)

        for i, j in sums:
            _load(builder, i * n + j, at(start, line, i, j), line)
        place = cgutils.alloca_once_value(builder, w)
        with cgutils.for_range(builder, count, intp=_I64) as tap:
            offset = builder.load(builder.gep(builder.inttoptr(taps, _I64.as_pointer()), [tap.index]))
            with cgutils.for_range(builder, builder.udiv(words, depth), intp=_I64) as step:
                here, within = builder.load(place), builder.mul(_times(builder, step.index, 4), depth)
                seen = builder.add(builder.add(a, offset), within)
                for j in range(n):
                    _load(builder, _WEIGHTS, _past(builder, here, 64 * j), across)
                    for i in range(POSITIONS[n] // 16):
                        _load(builder, _SEEN, at(seen, stride, i, 0), stride)
                        _assembly(builder, f"tdpbusd %tmm{_WEIGHTS}, %tmm{_SEEN}, %tmm{i * n + j}")
                builder.store(builder.add(here, builder.mul(depth, across)), place)
        for i, j in sums:
            _assembly(builder, f"tilestored %tmm{i * n + j}, ($0,$1,1)", at(c, ldc, i, j), ldc)
        return context.get_dummy_value()

    return types.void(vectors, *[types.int64] * 11), codegen


_configure: Any = intrinsic(_emit_configure)
_release: Any = intrinsic(_emit_release)
_product: Any = intrinsic(prefer_literal=True)(_emit)


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
