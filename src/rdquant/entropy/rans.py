"""rANS64, compiled. Byte format and meaning: `rdquant.entropy.rans_reference`, tested equal."""

from __future__ import annotations

import numpy as np

from ..compiled import njit
from ..errors import Corrupt, Truncated, UsageError
from .machine import ParityMachine
from .rans_reference import ESCAPE_NIBBLES, LOWER
from .tables import _LOOKUP_BITS, BYPASS_BITS, PRECISION, TOTAL, CdfTables, as_int32

_U = np.uint64
_LOWER = _U(LOWER)
_PRECISION = _U(PRECISION)
_MASK = _U((1 << PRECISION) - 1)
_LIMIT_SHIFT = _U(63 - PRECISION)  # x_max = freq << 47
_BYPASS = _U(BYPASS_BITS)
_BYPASS_LIMIT = _U(1 << (63 - BYPASS_BITS))
_NIBBLE = _U(15)
_WORD = _U(32)
_LOW_WORD = _U(0xFFFFFFFF)
_ONE, _TOTAL, _LOOKUP = _U(1), _U(TOTAL), _U(_LOOKUP_BITS)
_TO_LOOKUP = _U(PRECISION - _LOOKUP_BITS)
_OK, _TRUNCATED, _BAD_ESCAPE = range(3)


@njit(cache=True, nogil=True, inline="always")
def _put_nibble(x, value, words, at):  # type: ignore[no-untyped-def]
    if x >= _BYPASS_LIMIT:
        at -= 1
        words[at] = np.uint32(x & _LOW_WORD)
        x >>= _WORD
    return (x << _BYPASS) | value, at


@njit(cache=True, nogil=True)
def _encode(symbols, indexes, cdf, starts, offsets, words):  # type: ignore[no-untyped-def]
    """Fill ``words`` from its end; returns the position of the first word."""
    x = _LOWER
    at = len(words)
    for i in range(len(symbols) - 1, -1, -1):
        t = _U(indexes[i])
        start = np.int64(starts[t])
        escape = np.int64(starts[t + _ONE]) - 2 - start
        value = np.int64(symbols[i]) - np.int64(offsets[t])
        if value < 0 or value >= escape:
            raw = -2 * value - 1 if value < 0 else 2 * (value - escape)
            count = 0
            while (raw >> (BYPASS_BITS * count)) != 0:
                count += 1
            for j in range(count - 1, -1, -1):
                x, at = _put_nibble(x, _U((raw >> (BYPASS_BITS * j)) & 15), words, at)
            x, at = _put_nibble(x, _U(count), words, at)
            value = escape
        low = _U(cdf[_U(start + value)])
        freq = _U(cdf[_U(start + value + 1)]) - low
        if x >= freq << _LIMIT_SHIFT:
            at -= 1
            words[at] = np.uint32(x & _LOW_WORD)
            x >>= _WORD
        q = x // freq
        x = (q << _PRECISION) + (x - q * freq) + low
    words[at - 1] = np.uint32(x >> _WORD)
    words[at - 2] = np.uint32(x & _LOW_WORD)
    return at - 2


@njit(cache=True, nogil=True)
def _decode(  # type: ignore[no-untyped-def]
    words, position, indexes, cdf, starts, offsets, lookup, nexts, shift, run, out
):
    """Fill ``out``; returns a status. Reads nothing outside ``words``.

    ``position: (2,)`` uint64: the coder's state and the next word, taken up and left there. ``nexts`` None:
    no state machine, and compiled without one, which is a third faster.
    """
    # all indexes are unsigned: numba asks of others whether they count from the end
    count, x, at, left = _U(len(words)), position[0], position[1], np.int64(0)
    first = lookup.reshape(-1)
    if nexts is not None:  # by twice the state and the parity: twice the next, and above it what that adds
        after = np.empty(nexts.size, np.uint64)
        for k in range(len(after)):
            n = nexts[k >> 1, k & 1]
            after[k] = (_U(n) << _ONE) | (_U(shift[n]) << _WORD)
        start_state = _U(shift[0]) << _WORD
        state = start_state
    for i in range(len(indexes)):
        t = _U(indexes[i])
        if nexts is not None:
            if left == 0:
                state, left = start_state, np.int64(run)
            left -= 1
            t += state >> _WORD
        start, slot = _U(starts[t]), x & _MASK
        s = start + _U(first[(t << _LOOKUP) + (slot >> _TO_LOOKUP)])
        high = _U(cdf[s + _ONE])
        while high <= slot:
            s += _ONE
            high = _U(cdf[s + _ONE])
        low = _U(cdf[s])
        x = (high - low) * (x >> _PRECISION) + (slot - low)
        if x < _LOWER:
            if at >= count:
                return _TRUNCATED
            x = (x << _WORD) | _U(words[at])
            at += _ONE
        symbol = np.int64(s - start) + np.int64(offsets[t])
        if high == _TOTAL:  # the escape, a table's last interval
            nibbles = np.int64(-1)
            raw = np.int64(0)
            j = np.int64(-1)
            while j < nibbles or j < 0:
                v = np.int64(x & _NIBBLE)
                x >>= _BYPASS
                if x < _LOWER:
                    if at >= count:
                        return _TRUNCATED
                    x = (x << _WORD) | _U(words[at])
                    at += _ONE
                if j < 0:
                    nibbles = v
                    if nibbles > ESCAPE_NIBBLES:
                        return _BAD_ESCAPE
                else:
                    raw |= v << (BYPASS_BITS * j)
                j += 1
            symbol = np.int64(offsets[t]) - ((raw + 1) >> 1) if raw & 1 else symbol + (raw >> 1)
            if symbol < -2147483648 or symbol > 2147483647:
                return _BAD_ESCAPE
        out[i] = symbol
        if nexts is not None:
            state = after[(state & _LOW_WORD) + _U(symbol & 1)]
    position[0], position[1] = x, at
    return _OK


def encode(symbols: np.ndarray, indexes: np.ndarray, tables: CdfTables) -> bytes:
    """Code ``symbols`` (int32 ``(K,)``), each with table ``indexes[k]`` (integers ``(K,)``).

    Any 32-bit symbol can be coded. Raises `UsageError` for an index outside the tables, for values
    that are not 32-bit integers, and when the two lengths differ.
    """
    values = as_int32(symbols, "symbols")
    index = tables.check_indexes(indexes)
    if len(values) != len(index):
        raise UsageError(f"{len(values)} symbols with {len(index)} table indexes")
    words = np.empty(2 * len(values) + 2, np.uint32)  # an escape takes at most 16 + 40 bits
    at = _encode(values, index, tables.cdf, tables.starts, tables.offsets, words)
    return words[at:].astype("<u4", copy=False).tobytes()


def decode(
    data: bytes, indexes: np.ndarray, tables: CdfTables, machine: ParityMachine | None = None
) -> np.ndarray:
    """The int32 ``(K,)`` symbols that `encode` was given, for the same ``indexes`` and ``tables``.

    With a ``machine``, `encode` was given `ParityMachine.indexes` of what is ``indexes`` here.

    A total function: any ``data`` gives K symbols or raises `Truncated` or `Corrupt`. Data damaged in
    the middle are found by the coder's end state with high probability, not with certainty: checksums
    are the container's duty. Raises `UsageError` for an index outside the tables.
    """
    _checked(indexes, tables, machine)  # whatever the data are
    decoder = Decoder(data, tables)
    out = decoder.next(indexes, machine)
    decoder.finish()
    return out


def _checked(indexes: np.ndarray, tables: CdfTables, machine: ParityMachine | None) -> np.ndarray:
    index = tables.check_indexes(indexes)
    if machine is not None:
        tables.check_indexes(index + machine.shift.max())
    return index


class Decoder:
    """`decode` in several goes: for symbols whose tables depend on the symbols before them.

    The stream is that of one `encode` of all symbols. What is raised, `decode` says; after an error, and
    after `finish`, it is of no more use.
    """

    def __init__(self, data: bytes, tables: CdfTables) -> None:
        if len(data) < 8:
            raise Truncated(f"an entropy-coded stream has at least 8 bytes, this one {len(data)}")
        if len(data) % 4:
            raise Corrupt(f"an entropy-coded stream is made of 4-byte words, this one has {len(data)} bytes")
        self._words = np.frombuffer(data, "<u4").astype(np.uint32, copy=False)
        self._tables = tables
        state = int(self._words[0]) | int(self._words[1]) << 32
        if not LOWER <= state < 1 << 63:
            raise Corrupt("the entropy coder's first state is impossible")
        self._position = np.array([state, 2], np.uint64)

    def next(self, indexes: np.ndarray, machine: ParityMachine | None = None) -> np.ndarray:
        """The next int32 ``(K,)`` symbols, by the tables ``indexes: (K,)``. A ``machine`` starts anew."""
        t = self._tables
        index = _checked(indexes, t, machine)
        out = np.empty(len(index), np.int32)
        status = _decode(
            self._words, self._position, index, t.cdf, t.starts, t.offsets, t.lookup,
            machine and machine.nexts, machine and machine.shift, machine.run if machine else 0, out,
        )  # fmt: skip
        if status == _TRUNCATED:
            raise Truncated("the entropy-coded stream ends too early")
        if status == _BAD_ESCAPE:
            raise Corrupt("an escaped symbol is outside 32 bits")
        return out

    def finish(self) -> None:
        """Raise `Corrupt` unless all symbols are decoded, and nothing is left."""
        if int(self._position[0]) != LOWER or int(self._position[1]) != len(self._words):
            raise Corrupt("the entropy coder did not end in its initial state: wrong data, tables or indexes")
