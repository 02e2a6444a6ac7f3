"""rANS64 in plain Python integers: slow, obvious, and the specification of `rdquant.entropy.rans`.

The state x starts at L = 2^31 and stays in [L, 2^63). Coding an interval [start, start + freq) of
2^16 slots maps ``x -> (x // freq) * 2^16 + x % freq + start``, after its low 32 bits went to the
output if the result would not fit. Symbols are coded last to first, so that they decode first to
last. The stream is the final state (low word, high word), then the output words last to first; all
words are 32 bits, little endian. Byte format: CompressAI's (ryg's rans64).
"""

from __future__ import annotations

import struct

from ..errors import Corrupt, Truncated
from .machine import ParityMachine
from .tables import BYPASS_BITS, PRECISION, CdfTables

LOWER = 1 << 31
MASK = (1 << PRECISION) - 1
#: nibbles that the largest escape can take: 33 bits (a 32-bit symbol less an offset), zigzag
ESCAPE_NIBBLES = 9
_BYPASS_FREQ = 1 << (PRECISION - BYPASS_BITS)


def _intervals(symbol: int, table: int, tables: CdfTables) -> list[tuple[int, int]]:
    """The ``(start, freq)`` steps that code one symbol; escapes take several."""
    cdf = tables.cdf[tables.starts[table] : tables.starts[table + 1]].tolist()
    escape = len(cdf) - 2
    value = symbol - int(tables.offsets[table])
    if 0 <= value < escape:
        return [(cdf[value], cdf[value + 1] - cdf[value])]
    raw = -2 * value - 1 if value < 0 else 2 * (value - escape)
    count = -(-raw.bit_length() // BYPASS_BITS)
    nibbles = [count] + [(raw >> (BYPASS_BITS * i)) & 15 for i in range(count)]
    return [(cdf[escape], cdf[escape + 1] - cdf[escape])] + [(n, 0) for n in nibbles]


def encode(symbols: list[int], indexes: list[int], tables: CdfTables) -> bytes:
    """See `rdquant.entropy.rans.encode`."""
    x, words = LOWER, []
    steps = [s for v, t in zip(symbols, indexes, strict=True) for s in _intervals(v, t, tables)]
    for start, freq in reversed(steps):
        if x >= ((LOWER >> PRECISION) << 32) * (freq or _BYPASS_FREQ):
            words.append(x & 0xFFFFFFFF)
            x >>= 32
        x = (x << BYPASS_BITS) | start if freq == 0 else ((x // freq) << PRECISION) + x % freq + start
    words += [x >> 32, x & 0xFFFFFFFF]
    return struct.pack(f"<{len(words)}I", *reversed(words))


def decode(
    data: bytes, indexes: list[int], tables: CdfTables, machine: ParityMachine | None = None
) -> list[int]:
    """See `rdquant.entropy.rans.decode`."""
    if len(data) < 8:
        raise Truncated(f"an entropy-coded stream has at least 8 bytes, this one {len(data)}")
    if len(data) % 4:
        raise Corrupt(f"an entropy-coded stream is made of 4-byte words, this one has {len(data)} bytes")
    words = list(struct.unpack(f"<{len(data) // 4}I", data))
    x = words[0] | words[1] << 32
    if x < LOWER or x >> 63:
        raise Corrupt("the entropy coder's first state is impossible")
    at = 2

    def renormalise() -> None:
        nonlocal x, at
        if x < LOWER:
            if at == len(words):
                raise Truncated("the entropy-coded stream ends too early")
            x = x << 32 | words[at]
            at += 1

    def nibble() -> int:
        nonlocal x
        value = x & 15
        x >>= BYPASS_BITS
        renormalise()
        return value

    out: list[int] = []
    state = 0
    for i, index in enumerate(indexes):
        table = index
        if machine is not None:
            state = 0 if i % machine.run == 0 else int(machine.nexts[state, out[-1] & 1])
            table += int(machine.shift[state])
        cdf = tables.cdf[tables.starts[table] : tables.starts[table + 1]].tolist()
        slot, escape = x & MASK, len(cdf) - 2
        value = max(i for i in range(len(cdf) - 1) if cdf[i] <= slot)
        x = (cdf[value + 1] - cdf[value]) * (x >> PRECISION) + slot - cdf[value]
        renormalise()
        if value == escape:
            count = nibble()
            if count > ESCAPE_NIBBLES:
                raise Corrupt(f"an escape of {count} nibbles")
            raw = sum(nibble() << (BYPASS_BITS * i) for i in range(count))
            value = -((raw + 1) >> 1) if raw & 1 else escape + (raw >> 1)
        symbol = value + int(tables.offsets[table])
        if not -(2**31) <= symbol < 2**31:
            raise Corrupt(f"an escaped symbol of {symbol}")
        out.append(symbol)
    if x != LOWER or at != len(words):
        raise Corrupt("the entropy coder did not end in its initial state: wrong data, tables or indexes")
    return out
