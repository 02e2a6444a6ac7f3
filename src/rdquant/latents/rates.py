"""What a symbol costs: bits of every interval of the integer tables that the coder really uses."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ..entropy import CdfTables
from ..entropy.tables import BYPASS_BITS, TOTAL
from . import kernels


@dataclass(frozen=True, eq=False)
class SymbolRates:
    """``bits``: float32, of each interval, flat as ``tables.cdf`` (an interval's first entry);
    ``escape``: bits of an escape's nibbles by the bit length of the escaped number, ``(34,)``.
    """

    bits: np.ndarray
    escape: np.ndarray
    tables: CdfTables

    @classmethod
    @functools.lru_cache(maxsize=8)
    def of(cls, tables: CdfTables) -> SymbolRates:
        frequency = np.diff(tables.cdf.astype(np.float64), append=TOTAL)
        inner = np.ones(len(frequency), bool)
        inner[tables.starts[1:] - 1] = False  # the last entry of a table starts no interval
        bits = np.zeros(len(frequency), np.float32)
        bits[inner] = -np.log2(frequency[inner] / TOTAL)
        lengths = np.arange(34)
        escape = (BYPASS_BITS * (1 + -(-lengths // BYPASS_BITS))).astype(np.float32)
        return cls(bits, escape, tables)

    def of_symbols(self, symbols: np.ndarray, indexes: np.ndarray) -> np.ndarray:
        """Bits of each of ``symbols: (K,)`` by the tables ``indexes: (K,)``, float32."""
        out = np.empty(len(symbols), np.float32)
        t = self.tables
        kernels.symbol_bits(
            np.ascontiguousarray(symbols, np.int32), t.check_indexes(indexes), self.bits, self.escape,
            t.starts, t.offsets, out,
        )  # fmt: skip
        return out

    def bits_of(self, symbol: int, table: int) -> float:
        """Bits of one symbol: the slow, obvious form of the kernels' lookup."""
        start, end = int(self.tables.starts[table]), int(self.tables.starts[table + 1])
        escape = end - 2 - start
        value = symbol - int(self.tables.offsets[table])
        if 0 <= value < escape:
            return float(self.bits[start + value])
        raw = -2 * value - 1 if value < 0 else 2 * (value - escape)
        return float(self.bits[start + escape]) + float(self.escape[raw.bit_length()])
