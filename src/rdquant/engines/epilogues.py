"""What happens to the accumulators of a few positions while they are in cache.

A tile is ``(SPAN, line)``, flat: positions and their channels, of which ``count`` and ``channels`` are
used. ``acc`` is int32, or float64 where 32 bits do not do (`Epilogue.real`). Arithmetic in float64 is exact:
IEEE operations on integers, or integers times powers of two, of at most 53 bits. Reference: the ``exact`` of
`rdquant.graph.operations`; tested equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..compiled import njit, whole_vectors
from ..graph import kernels
from ..graph.arithmetic import V_LIMIT, Multiplier
from ..graph.kernels import lifted, scaled
from ..graph.operations import Compensate, DivisiveNormalization, Operation, Requantize
from ..threads import share
from .buffers import aligned, room
from .compensation import IN_WORDS, compensate, compensate_wide
from .normalization import MIDDLE, denormalize, normalize, widen, widen_words
from .products import (
    COPIES,
    LANES,
    NONE,
    ONE,
    POSITIONS,
    SPAN,
    STEPS,
    UNSIGNED_TILES,
    WORD_KERNELS,
    WORDS,
    instructions,
    packed_words,
    prepare,
    product,
    release,
)
from .tiles import SHALLOW, depth_of, halved

PLAIN, REQUANTIZE, RECTIFY, COMPENSATE, NORMALIZE, DENORMALIZE = range(6)

#: the only tap of a product of one position
_NOWHERE = np.zeros(1, np.int64)
_V_LIMIT, _LEAST, _MOST = float(V_LIMIT), np.int32(-V_LIMIT), np.int32(V_LIMIT)
#: magnitudes below it: their upper halves times m, and what the lower ones carry, have 32 bits
_MOST_IN_WORDS = 2**31 - 2**17


class Epilogue(NamedTuple):
    """An operation as the tile functions take it."""

    kind: int
    real: bool
    """It takes accumulators in float64; else those of 32 bits."""
    channels: int
    factors: np.ndarray
    """float64 ``(4, C)``: by kind; requantize and rectify: factor, that of negatives; compensate: factor
    twice, low, high; (inverse) gdn: widen, then factor, or m and 2^shift."""
    words: np.ndarray
    """int32 ``(4, C)``: of the first factor m, and what its shift and ``up`` are above 17, then those of
    negatives; of (inverse) gdn the third row is its factor, float32."""
    up: np.int32
    """With ``words`` accumulators are taken times 2^up, whose factors have shifts of 17 or more."""
    ends: np.ndarray
    """float64, lo and hi."""
    matrix: np.ndarray
    """int16, flat: weights of a product of words, by group of outputs; of compensate, up to itself."""
    start: np.ndarray
    """int32: what that product starts with; of compensate, low, then high."""
    feedback: np.ndarray
    """float64 ``(C, C)`` of compensate that has no group, else (0, 0)."""
    group: int
    """Channels that compensate together in 32 bits, or 1: alone, in float64; vectors of gdn's."""
    kernel: int
    """That of products of words."""


def words_kernel() -> int:
    """That of products of words."""
    return WORD_KERNELS[instructions()]


def vectors_for(outputs: int, kernel: int) -> int:
    """How many vectors a kernel best has."""
    blocks = -(-outputs // LANES)
    return min(sorted(POSITIONS[kernel], reverse=True), key=lambda n: -(-blocks // n) * (n + 0.3))


def _in_words(
    bound: int, factor: Multiplier, negative: Multiplier | None = None
) -> tuple[np.ndarray, np.int32] | None:
    """`Epilogue.words` and `Epilogue.up`; None where it takes more than 32 bits. ``bound``: accumulators'."""
    pair = factor, negative or factor
    up = max(0, 17 - min(int(own.shift[own.m > 0].min(initial=17)) for own in pair))
    found = []
    for own in pair:
        shift = kernels.in_words(own.shift + up, own.m, 17)
        if bound << up >= _MOST_IN_WORDS or shift is None:
            return None
        found += [own.m, shift]
    return np.stack(found), np.int32(up)


def prepared(op: Operation | None, channels: int, bound: int = 2**36) -> Epilogue:
    """``op`` None: accumulators stay. ``bound``: of their magnitudes."""
    factors, kernel = np.zeros((4, channels)), words_kernel()
    plain = Epilogue(
        kind=PLAIN, real=False, channels=channels, factors=factors, words=np.zeros((4, channels), np.int32),
        up=np.int32(0), ends=np.zeros(2), matrix=np.zeros(0, np.int16), start=np.zeros(0, np.int32),
        feedback=np.zeros((0, 0)), group=1, kernel=kernel,
    )  # fmt: skip
    if op is None:
        return plain
    assert isinstance(op, (Requantize, Compensate, DivisiveNormalization)) and op.factor is not None
    first, negative = op.factor, None
    if isinstance(op, Requantize):
        negative = op.negative
    elif isinstance(op, DivisiveNormalization):
        assert op.widen is not None
        first = op.widen
    found = None if getattr(op, "absolute", False) else _in_words(bound, first, negative)
    words, up = (plain.words, plain.up) if found is None else found
    e = plain._replace(real=found is None, words=words, up=up, ends=np.array([op.lo, op.hi], np.float64))
    if isinstance(op, Requantize):
        factor = op.factor.as_float()
        factors[:2] = factor, -factor if op.absolute else (op.negative or op.factor).as_float()
        return e._replace(kind=REQUANTIZE if (factors[0] == factors[1]).all() else RECTIFY)
    if isinstance(op, Compensate):
        feedback = op.feedback.astype(np.int64)
        factors[:2] = op.factor.as_float()
        factors[2:] = op.ends()
        if int(np.abs(feedback).sum(0).max()) >= IN_WORDS:
            return e._replace(kind=COMPENSATE, feedback=op.feedback.astype(float))
        beyond = -channels % LANES
        whole = np.pad(feedback, ((0, beyond), (0, beyond)))
        columns = range(0, channels, LANES)
        matrix = aligned(
            np.concatenate([packed_words(whole[: c + LANES, c : c + LANES], 1) for c in columns])
        )
        limits = [np.pad(end.astype(np.int32), (0, beyond)) for end in op.ends()]
        return e._replace(kind=COMPENSATE, matrix=matrix, start=np.concatenate(limits), group=LANES)
    assert op.widen is not None
    factors[0] = op.widen.as_float()
    e.words[2] = op.factor.as_float().astype(np.float32).view(np.int32)
    if op.inverse:
        factors[1] = op.factor.as_float()
    else:
        factors[1] = op.factor.m
        factors[2] = np.ldexp(1.0, op.factor.shift)
    gamma, pairs = op.gamma.astype(np.int64), (channels + 1) // 2
    fits = gamma.min() >= 0 and gamma.max() < 256 and depth_of(pairs) >= SHALLOW
    if fits and instructions() == "amx":
        kernel = UNSIGNED_TILES
    vectors = vectors_for(channels, kernel)
    matrix = packed_words(gamma.T, vectors)
    start = np.zeros(matrix.size // (2 * pairs), np.uint32)
    matrix = aligned(halved(matrix).view(np.int16) if kernel == UNSIGNED_TILES else matrix)
    # squares are taken less `MIDDLE`; norms are below 2^32, so that the rest is cut off
    start[:channels] = (op.beta + MIDDLE * gamma.sum(1)).astype(np.uint32)
    kind = DENORMALIZE if op.inverse else NORMALIZE
    return e._replace(kind=kind, matrix=matrix, start=start.view(np.int32), group=vectors, kernel=kernel)


@njit(cache=True, nogil=True, error_model="numpy", makes_arrays=False)
def _requantize(acc, line, count, channels, factor, lo, hi, out):  # type: ignore[no-untyped-def]
    whole_vectors()
    for p in range(count):
        a, o = acc[p * line : p * line + channels], out[p * line : p * line + channels]
        for c in range(channels):
            v = np.floor(np.float64(a[c]) * factor[c] + 0.5)
            o[c] = np.int32(min(max(v, lo), hi))


@njit(cache=True, nogil=True, error_model="numpy", makes_arrays=False)
def _rectify(acc, line, count, channels, factor, negative, lo, hi, out):  # type: ignore[no-untyped-def]
    whole_vectors()
    for p in range(count):
        a, o = acc[p * line : p * line + channels], out[p * line : p * line + channels]
        for c in range(channels):
            v, above, below = np.float64(a[c]), factor[c], negative[c]  # loaded first: no gather of either
            v = np.floor(v * (above if v >= 0 else below) + 0.5)
            o[c] = np.int32(min(max(v, lo), hi))


@njit(cache=True, nogil=True, error_model="numpy", makes_arrays=False)
def _scale(acc, line, count, channels, words, up, lo, hi):  # type: ignore[no-untyped-def]
    whole_vectors()
    m, shift = words[0], words[1]
    for p in range(count):
        a = acc[p * line : p * line + channels]
        for c in range(channels):
            a[c] = min(max(scaled(lifted(a[c], up), m[c], shift[c]), lo), hi)


@njit(cache=True, nogil=True, error_model="numpy", makes_arrays=False)
def _leak(acc, line, count, channels, words, up, lo, hi):  # type: ignore[no-untyped-def]
    whole_vectors()
    m, shift, negative, negative_shift = words[0], words[1], words[2], words[3]
    for p in range(count):
        a = acc[p * line : p * line + channels]
        for c in range(channels):
            v, above, below, s, t = lifted(a[c], up), m[c], negative[c], shift[c], negative_shift[c]
            a[c] = min(max(scaled(v, above if v >= 0 else below, s if v >= 0 else t), lo), hi)


@njit(cache=True, nogil=True, makes_arrays=False)
def enter(acc, line, count, e, x, squares):  # type: ignore[no-untyped-def]
    """``acc``, a tile of accumulators, int32 -> what `finish` goes on from: in place, or of GDN ``x`` and
    ``squares``, int16, tiles of the same shape.
    """
    lo, hi = np.int32(e.ends[0]), np.int32(e.ends[1])
    if e.kind == REQUANTIZE:
        _scale(acc, line, count, e.channels, e.words, e.up, lo, hi)
    elif e.kind == RECTIFY:
        _leak(acc, line, count, e.channels, e.words, e.up, lo, hi)
    elif e.kind == COMPENSATE:
        _scale(acc, line, count, e.channels, e.words, e.up, _LEAST, _MOST)
    elif e.kind != PLAIN:
        widen_words(acc, line, count, e.channels, e.words, e.up, x, squares)


@njit(cache=True, nogil=True, makes_arrays=False)
def enter_real(acc, line, count, e, x, squares, out):  # type: ignore[no-untyped-def]
    """The same of float64, to ``out``."""
    factor, (lo, hi) = e.factors[0], (e.ends[0], e.ends[1])
    if e.kind == REQUANTIZE:
        _requantize(acc, line, count, e.channels, factor, lo, hi, out)
    elif e.kind == RECTIFY:
        _rectify(acc, line, count, e.channels, factor, e.factors[1], lo, hi, out)
    elif e.kind == COMPENSATE:
        _requantize(acc, line, count, e.channels, factor, -_V_LIMIT, _V_LIMIT, out)
    elif e.kind != PLAIN:
        widen(acc, line, count, e.channels, e.factors, x, squares)


@njit(cache=True, nogil=True, makes_arrays=False)
def as_real(tile, line, count, channels, into):  # type: ignore[no-untyped-def]
    """Accumulators of 32 bits for `enter_real`."""
    whole_vectors()
    for p in range(count):
        a, o = tile[p * line : p * line + channels], into[p * line : p * line + channels]
        for c in range(channels):
            o[c] = np.float64(a[c])


@njit(cache=True, nogil=True, makes_arrays=False)
def finish(line, count, e, x, squares, sums, out):  # type: ignore[no-untyped-def]
    """What `enter` left, of GDN in ``x`` and ``squares``, else in ``out`` -> ``out``, int32 activations."""
    channels, factors, (lo, hi) = e.channels, e.factors, (e.ends[0], e.ends[1])
    if e.kind < COMPENSATE:
        return
    if e.kind == COMPENSATE:
        if e.group > 1:
            compensate(line, count, e.kernel, e.matrix, e.start, sums, out)
        else:
            compensate_wide(line, count, channels, factors, e.feedback, out)
        return
    vectors = e.group
    width, words, step, wide = LANES * vectors, (channels + 1) // 2, STEPS[e.kernel, vectors], len(e.start)
    weights = np.int64(e.matrix.ctypes.data)
    prepare(e.kernel, words)
    for first in range(0, wide, width):
        for p in range(0, count, step):
            product(
                e.kernel, vectors, np.int64(squares.ctypes.data) + 2 * p * line, 2 * line,
                np.int64(_NOWHERE.ctypes.data), ONE, words, weights + 4 * first * words * COPIES[e.kernel],
                np.int64(e.start.ctypes.data) + 4 * first, NONE,
                np.int64(sums.ctypes.data) + 4 * (p * wide + first), 4 * wide,
            )  # fmt: skip
    release(e.kernel)
    single, norms = e.words[2].view(np.float32), sums.view(np.uint32)
    fast = e.kernel == WORDS or e.kernel == UNSIGNED_TILES
    if e.kind == DENORMALIZE:
        denormalize(x, norms, line, wide, count, channels, factors, single, lo, hi, fast, out)
    else:
        normalize(x, norms, line, wide, count, channels, factors, single, lo, hi, fast, out)


@njit(cache=True, nogil=True)
def rooms(positions, line, e):  # type: ignore[no-untyped-def]
    """``x``, ``squares``, ``sums`` and ``out`` of `enter` and `finish`, for so many positions."""
    divides = e.kind == NORMALIZE or e.kind == DENORMALIZE
    size = positions * line
    squares = room(2 * size if divides else 0).view(np.int16)
    squares[:] = 0
    sums = room(4 * positions * max(len(e.start), 1)).view(np.int32)  # or what compensation passes on
    return room(2 * len(squares)).view(np.int16), squares, sums, room(4 * size).view(np.int32)


@njit(cache=True, nogil=True)
def _tiles(acc, line, e, out):  # type: ignore[no-untyped-def]
    tile = np.empty(SPAN * line)
    x, squares, sums, result = rooms(SPAN, line, e)
    for first in range(0, len(acc), SPAN):
        count = min(SPAN, len(acc) - first)
        for p in range(count):
            for c in range(e.channels):
                tile[p * line + c] = acc[first + p, c]
        enter_real(tile, line, count, e, x, squares, result)
        finish(line, count, e, x, squares, sums, result)
        for p in range(count):
            for c in range(e.channels):
                out[first + p, c] = result[p * line + c]


def finish_rows(acc: np.ndarray, e: Epilogue) -> np.ndarray:
    """Accumulators ``(P, C)``, integers of any type, -> int32 ``(P, C)``."""
    out = np.empty(acc.shape, np.int32)
    line = -(-e.channels // LANES) * LANES
    share(len(acc), lambda a, b: _tiles(acc[a:b], line, e, out[a:b]))
    return out
