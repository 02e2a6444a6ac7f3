"""Steps of a plan that each position goes through by itself, compiled as one: a few dozen positions go
through all of them, while they are in cache, before the next; and threads meet once, not after each step.

A chain is a **program**: a row of integers for each step, and what these point into. Of a convolution
(a product with one matrix) it is what `layer` prepared; other steps are kernels of `rdquant.graph.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from ..compiled import borrowed, njit, whole_vectors
from ..errors import BadModel
from ..graph import kernels
from ..graph.operations import (
    Concatenate,
    Gain,
    Operation,
    Pointwise,
    Product,
    Requantize,
    Slice,
    Sum,
)
from ..threads import share
from .buffers import LINE, Form, aligned, empty, gather
from .dense import Packed, finished, rooms_of, stored
from .epilogues import Epilogue
from .layer import Layer
from .products import BYTE_TILES, BYTES, NONE, ONE, SPAN, TOGETHER

Step = Callable[..., np.ndarray]
#: positions that go together; and so few that a thread is quicker with them
_BLOCK, _FEW = 2 * SPAN, 256
#: more of them than a kernel may take beyond those that count
_BEYOND = int(TOGETHER.max())
CONVOLVE, RESCALE, ADD, MULTIPLY, LOOK_UP, MOVE = range(6)


#: a row: edges by number, and where something starts in the arrays of `Program`
_COMMON = "kind a b out channels first to reals values count low"
_CONVOLUTION = "kernel vectors words cell taps pieces line chunk weights octets start bias"
_AFTER = "after real factors scales up ends matrix halves begin begins feedback side group word_kernel"
_ROW = np.dtype([(name, np.int64) for name in f"{_COMMON} {_CONVOLUTION} {_AFTER}".split()])


class Program(NamedTuple):
    """What `_run` takes."""

    steps: np.ndarray
    """Rows."""
    edges: np.ndarray
    """int64 ``(edges, 4)``: bytes of an integer, channels, where in ``words`` its zero is, and where in the
    scratch of a thread it is; -1: it is an array."""
    longs: np.ndarray
    reals: np.ndarray
    words: np.ndarray
    halves: np.ndarray
    octets: np.ndarray


class _Pools:
    """Arrays in a row, by type."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {k: [] for k in ("i8", "f8", "i4", "i2", "u1")}
        self._sizes = dict.fromkeys(self._parts, 0)

    def add(self, kind: str, *values: Any) -> int:
        """Where they start: at the beginning of a line of the cache."""
        beyond = np.zeros(-self._sizes[kind] % (LINE // np.dtype(kind).itemsize), kind)
        self._parts[kind].append(beyond)
        self._sizes[kind] += len(beyond)
        start = self._sizes[kind]
        for value in values:
            part = np.asarray(value, kind).reshape(-1)
            self._parts[kind].append(part)
            self._sizes[kind] += len(part)
        return start

    def all(self) -> list[np.ndarray]:
        return [aligned(np.concatenate([np.zeros(0, kind), *parts])) for kind, parts in self._parts.items()]


def can_join(op: Operation, layer: Layer | None, given: list[Form], out: Form) -> bool:
    """Whether a step can be one of a program."""
    if layer is not None:
        return layer.conv.is_matrix and not layer.direct and layer.then is None
    if isinstance(op, Gain):
        op = _plain(op)
    joined = (
        isinstance(op, (Product, Pointwise, Concatenate, Slice))
        or (isinstance(op, Requantize) and _rescaling(op) is not None)
        or (isinstance(op, Sum) and len(op.signs) == 2 and _adding(op) is not None)
    )
    return joined and all(form.size == 2 for form in given) and out.size <= 2


@dataclass(frozen=True)
class Prepared:
    """A step: ``run(*inputs)`` makes ``name``."""

    name: str
    run: Step
    inputs: tuple[str, ...]
    done: tuple[str, ...]
    """What nothing needs any more afterwards."""
    pads: bool
    """It takes ``valid`` of `rdquant.engines.run`."""
    op: Operation
    layer: Layer | None
    at: object
    """Of steps that `can_join`: equal where positions are the same; else None."""

    def __call__(self, values: dict[str, np.ndarray], valid: bool = False) -> None:
        inputs = [values[edge] for edge in self.inputs]
        values[self.name] = self.run(*inputs, valid=valid) if self.pads else self.run(*inputs)
        for edge in self.done:
            del values[edge]


class Chain:
    """Steps at the same positions. ``forms``: of each edge, and its channels."""

    def __init__(self, steps: list[Prepared], forms: Mapping[str, tuple[int, Form]]) -> None:
        self.steps = steps
        made = {step.name for step in steps}
        done = [edge for step in steps for edge in step.done]
        self._given = sorted({edge for step in steps for edge in step.inputs} - made)
        self._kept = {e: (forms[e][0], forms[e][1].dtype) for e in sorted(made - set(done))}
        self._done = [edge for edge in done if edge not in made]
        self._outer = [*self._given, *self._kept]
        edges = [*self._outer, *sorted(made - set(self._kept))]
        self._number = {edge: i for i, edge in enumerate(edges)}
        pools, table, self._room = _Pools(), [], 0
        for edge in edges:
            channels, form = forms[edge]
            place = -1 if edge in self._outer else self._room
            if place >= 0:
                self._room += -(-(_BLOCK + _BEYOND) * channels * form.size // 64) * 64
            table.append([form.size, channels, pools.add("i4", form.zero), place])
        rows = [row for step in steps for row in self._rows(step, forms, pools)]
        program = np.array(rows, _ROW)
        self._wide = int(program["cell"].max()) * (_BLOCK + _BEYOND)
        self._program = Program(program, np.array(table, np.int64), *pools.all())

    def _rows(
        self, step: Prepared, forms: Mapping[str, tuple[int, Form]], pools: _Pools
    ) -> list[tuple[int, ...]]:
        def row(kind: int, **columns: int) -> tuple[int, ...]:
            common = {"kind": kind, "out": self._number[step.name], "channels": forms[step.name][0]}
            return tuple((common | columns).get(name, 0) for name in _ROW.names or ())

        op, given = step.op, [self._number[edge] for edge in step.inputs]
        if isinstance(op, Concatenate):
            sizes = [forms[edge][0] for edge in step.inputs]
            starts = np.cumsum([0, *sizes]).tolist()
            return [
                row(MOVE, a=edge, channels=size, to=start)
                for edge, size, start in zip(given, sizes, starts, strict=False)
            ]
        if isinstance(op, Slice):
            return [row(MOVE, a=given[0], first=op.start)]
        if isinstance(op, Pointwise):
            values = pools.add("i4", op.values)
            return [row(LOOK_UP, a=given[0], values=values, count=len(op.values), low=op.lo)]  # type: ignore[arg-type]
        if isinstance(op, Gain):
            op = _plain(op)
        if isinstance(op, Requantize):
            words = _rescaling(op)
            assert words is not None  # `can_join` asked
            return [row(RESCALE, a=given[0], values=pools.add("i4", *words, op.lo, op.hi))]
        if isinstance(op, Sum):
            words = _adding(op)
            assert words is not None  # `can_join` asked
            return [row(ADD, a=given[0], b=given[1], values=pools.add("i4", *words, op.lo, op.hi))]
        if isinstance(op, Product):
            assert op.factor is not None
            reals = pools.add("f8", op.factor.as_float(), op.lo, op.hi)
            return [row(MULTIPLY, a=given[0], b=given[1], reals=reals)]
        assert step.layer is not None
        k, e = step.layer.packed, step.layer.epilogue
        return [
            row(
                CONVOLVE, a=given[0], kernel=k.kernel, vectors=k.vectors, words=k.words, cell=k.cell,
                count=len(k.taps), taps=pools.add("i8", k.taps), low=k.pieces.shape[1],
                pieces=pools.add("i8", k.pieces), line=k.start.shape[1], chunk=k.chunk,
                weights=pools.add("u1", k.weights), octets=len(k.weights), start=pools.add("i4", k.start),
                bias=pools.add("f8", k.bias), after=e.kind, real=int(e.real),
                factors=pools.add("f8", e.factors), scales=pools.add("i4", e.words), up=int(e.up),
                ends=pools.add("f8", e.ends), matrix=pools.add("i2", e.matrix), halves=len(e.matrix),
                begin=pools.add("i4", e.start), begins=len(e.start), feedback=pools.add("f8", e.feedback),
                side=len(e.feedback), group=e.group, word_kernel=e.kernel,
            )
        ]  # fmt: skip

    def __call__(self, values: dict[str, np.ndarray], valid: bool = False) -> None:
        shape = values[self._given[0]].shape[:3]
        if any(values[edge].shape[:3] != shape for edge in self._given):
            raise BadModel(f"{', '.join(self._given)} have different sizes")
        count = shape[0] * shape[1] * shape[2]
        given = [np.ascontiguousarray(values[edge]) for edge in self._given]
        kept = {edge: empty((*shape, c), kind) for edge, (c, kind) in self._kept.items()}
        arrays = [*given, *kept.values()]
        addresses = np.array([t.ctypes.data for t in arrays], np.int64)

        def run(start: int, stop: int) -> None:
            scratch, wide = empty((self._room,), np.uint8), empty((self._wide,), np.uint8)
            _run(start, stop, count, self._program, addresses, scratch, wide)

        share(count, run, _FEW)
        for edge in self._done:
            del values[edge]
        values |= kept


def _plain(op: Gain) -> Requantize:
    return Requantize(op.factor(), None, op.lo, op.hi)


def _rescaling(op: Requantize) -> tuple[np.ndarray, ...] | None:
    """Of `kernels.rescale_words`; None where it cannot do it."""
    shift = kernels.in_words(op.factor.shift, op.factor.m, 1)
    return None if shift is None or op.absolute or op.negative is not None else (op.factor.m, shift)


def _adding(op: Sum) -> tuple[np.ndarray, ...] | None:
    """Of `kernels.add_words`."""
    assert op.m is not None and op.shift is not None
    shift = kernels.in_words(op.shift, np.abs(op.m).max(0), 2)
    return None if shift is None else (*op.m, shift)


def chained(steps: list[Prepared], forms: Mapping[str, tuple[int, Form]]) -> list[Prepared | Chain]:
    """Steps with those in a row that have the same positions as one."""
    runs: list[list[Prepared]] = []
    for step in steps:
        if runs and step.at is not None and runs[-1][-1].at == step.at:
            runs[-1].append(step)
        else:
            runs.append([step])
    return [run[0] if len(run) == 1 else Chain(run, forms) for run in runs]


def _emit(typingctx, address):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.uint8)(types.int64), codegen


_pointer: Any = intrinsic(_emit)


@njit(cache=True, nogil=True, inline="always")
def _octets(address, count):  # type: ignore[no-untyped-def]
    return carray(_pointer(address), (count,), np.uint8)


@njit(cache=True, nogil=True, error_model="numpy")
def _move(a, first, channels, zero, out, to):  # type: ignore[no-untyped-def]
    """``channels`` from ``first`` on of rows to those of others from ``to`` on."""
    whole_vectors()
    for p in range(len(a)):
        x, o, z = a[p, first : first + channels], out[p, to : to + channels], zero[to : to + channels]
        for c in range(channels):
            o[c] = np.int16(x[c]) - np.int16(z[c])


@njit(cache=True, nogil=True)
def _pointwise(row, p, a, b, zero, out):  # type: ignore[no-untyped-def]
    """A step that is no convolution: ``a, b`` int16, ``out`` of any type, all ``(count, channels)``."""
    kind, channels, reals = row.kind, row.channels, p.reals[row.reals :]
    if kind == MOVE:
        _move(a, row.first, channels, zero, out, row.to)
    elif kind == LOOK_UP:
        kernels.look_up(a, p.words[row.values : row.values + row.count], row.low, zero, out)
    elif kind == RESCALE:
        words = p.words[row.values :]
        m, shift, ends = words[:channels], words[channels : 2 * channels], words[2 * channels :]
        kernels.rescale_words(a, m, shift, ends[0], ends[1], zero, out)
    elif kind == ADD:
        words = p.words[row.values :]
        m, n, shift = words[:channels], words[channels : 2 * channels], words[2 * channels : 3 * channels]
        lo, hi = words[3 * channels], words[3 * channels + 1]
        kernels.add_words(a, b, m, n, shift, lo, hi, zero, out)
    else:
        kernels.multiply(a, b, reals[:channels], reals[channels], reals[channels + 1], zero, out)


@njit(cache=True, nogil=True, inline="always")
def _convolution(row, p):  # type: ignore[no-untyped-def]
    """`Packed` and `Epilogue` of a row."""
    n, line, at = row.count, row.line, row.channels
    taps = p.longs[row.taps : row.taps + 3 * n].reshape(n, 3)
    pieces = p.longs[row.pieces : row.pieces + row.low].reshape(1, row.low)
    weights, start = p.octets[row.weights : row.weights + row.octets], p.words[row.start : row.start + line]
    bias, phases = p.reals[row.bias : row.bias + at], np.array([0, n])
    k = Packed(
        1, 1, False, taps, phases, 0, 0, row.kernel, row.vectors, row.words, row.cell, 1, weights,
        np.zeros(1, np.int64), start.reshape(1, line), pieces, bias, row.chunk,
    )  # fmt: skip
    side = row.side
    e = Epilogue(
        row.after, row.real != 0, at, p.reals[row.factors : row.factors + 4 * at].reshape(4, at),
        p.words[row.scales : row.scales + 4 * at].reshape(4, at), np.int32(row.up),
        p.reals[row.ends : row.ends + 2], p.halves[row.matrix : row.matrix + row.halves],
        p.words[row.begin : row.begin + row.begins],
        p.reals[row.feedback : row.feedback + side * side].reshape(side, side), row.group, row.word_kernel,
    )  # fmt: skip
    return k, e


@njit(cache=True, nogil=True, inline="always")
def _convolve(row, p, x, ready, count, size, channels, zero, out, out_size, out_zero, wide):  # type: ignore[no-untyped-def]
    """``x, out``: bytes of ``count`` positions; ``ready``: behind those of ``x`` there are as many as kernels
    take together; else they are put in ``wide``.
    """
    k, e = _convolution(row, p)
    bytewise = k.kernel == BYTES or k.kernel == BYTE_TILES
    kept = rooms_of(k, e, SPAN)
    room = borrowed(kept)
    taps, given = k.taps[:, 2].copy(), x
    if not ready or k.cell != channels * size:
        across, given = count + _BEYOND, wide
        shape, rows, columns = (ONE, count, channels), (NONE, ONE), (NONE, across)
        gather(x, size, shape, zero, bytewise, k.cell, rows, columns, wide, across)
    for first in range(0, count, SPAN):
        n, to = min(SPAN, count - first), first * e.channels
        finished(given, first * k.cell, k.cell, taps, k, NONE, e, room, n)
        stored(k, e, room, n, NONE, e.channels, out_zero, out, out_size, to, e.channels)
    kept[0][:1] = 0  # numba frees what it sees no more use of


@njit(cache=True, nogil=True)
def _run(start, stop, total, p, addresses, scratch, wide):  # type: ignore[no-untyped-def]
    """Positions ``start .. stop - 1`` of ``total``. ``addresses``: of arrays, which edges number first."""
    p, addresses, scratch, wide = borrowed((p, addresses, scratch, wide))
    for first in range(start, stop, _BLOCK):
        count = min(_BLOCK, stop - first)
        for s in range(len(p.steps)):
            row = p.steps[s]
            size, channels, zero_at, place = p.edges[row.a]
            zero = p.words[zero_at : zero_at + channels]
            a = scratch.ctypes.data + place if place >= 0 else addresses[row.a] + first * channels * size
            out_size, outs, zero_at, to = p.edges[row.out]
            out_zero = p.words[zero_at : zero_at + outs]
            o = scratch.ctypes.data + to if to >= 0 else addresses[row.out] + first * outs * out_size
            out = _octets(np.int64(o), count * outs * out_size)
            if row.kind == CONVOLVE:
                ready = place >= 0 or first + count + _BEYOND <= total
                x = _octets(np.int64(a), count * channels * size)
                _convolve(row, p, x, ready, count, size, channels, zero, out, out_size, out_zero, wide)
                continue
            b = a
            if row.kind == ADD or row.kind == MULTIPLY:
                own = p.edges[row.b, 3]
                b = scratch.ctypes.data + own if own >= 0 else addresses[row.b] + first * channels * size
            x = _octets(np.int64(a), count * channels * size).view(np.int16).reshape(count, channels)
            y = _octets(np.int64(b), count * channels * size).view(np.int16).reshape(count, channels)
            if out_size == 1:
                _pointwise(row, p, x, y, out_zero, out.reshape(count, outs))
            else:
                _pointwise(row, p, x, y, out_zero, out.view(np.int16).reshape(count, outs))
