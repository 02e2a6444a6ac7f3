"""Trellis-coded quantization: two interleaved quantizers, switched by a state machine.

Quantizer 0 reconstructs even multiples of the step, quantizer 1 odd multiples and zero. The parity of each
level drives the state, the state names the next quantizer, so the encoder can search the path with the
least ``D + lambda * R`` (Viterbi) while the decoder only follows it. State tables: VVC's dependent
quantization (4 states) and that of neural network coding, ISO/IEC 15938-17 (8 states).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..entropy import CdfTables, ParityMachine
from . import kernels
from .rates import SymbolRates

#: bits: sums of costs in float32 are as exact as that
QUIET_MARGIN = 0.01


@dataclass(frozen=True)
class Trellis:
    """``nexts[state][level & 1]`` and ``quantizer[state]``; sequences start in state 0."""

    nexts: tuple[tuple[int, int], ...]
    quantizer: tuple[int, ...]

    def machine(self, tables: int, run: int) -> ParityMachine:
        """What the entropy coder follows. ``tables``: those of quantizer 0, behind which those of quantizer 1
        lie; ``run``: symbols of a sequence.
        """
        shift = tables * np.array(self.quantizer, np.int64)
        return ParityMachine(np.array(self.nexts, np.int64), shift, run)

    def states_of(self, levels: np.ndarray) -> np.ndarray:
        """The state in which each level of one sequence ``(K,)`` is coded."""
        out, state = np.empty(len(levels), np.int32), 0
        for i, level in enumerate(levels):
            out[i] = state
            state = self.nexts[state][int(level) & 1]
        return out

    def reconstruct(self, level: int, state: int) -> int:
        """Multiple of the step that a level stands for."""
        sign = (level > 0) - (level < 0)
        return 2 * level - sign * self.quantizer[state]


TCQ4 = Trellis(((0, 2), (2, 0), (1, 3), (3, 1)), (0, 0, 1, 1))
TCQ8 = Trellis(((0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6)), (0, 1, 0, 1, 0, 1, 0, 1))


@functools.cache
def tcq_tables() -> CdfTables:
    """The tables of TCQ's levels, part of the format: 64 scales for quantizer 0, then those of quantizer 1.

    Integers are levels; scales are those of `rdquant.entropy.scale_table`, in units of two steps. Counted on
    the val split (`benchmarks/tcq_tables.py`) and stored in the package.
    """
    path = Path(__file__).with_name("tcq_tables.npz")
    with np.load(path, allow_pickle=False) as stored:
        tables = CdfTables.from_changes(stored["changes"], stored["starts"], stored["offsets"])
    tables.validate()
    return tables


@functools.lru_cache(maxsize=8)
def quiet_bits(rates: SymbolRates) -> np.ndarray:
    """By table of quantizer 0: a squared error that is worth less than this many bits is best left to zero.
    Any other level of either quantizer takes so many bits more, and quantizer 1 none fewer for its zero.
    Zeros alone stay in state 0, so that a sequence of such errors is all zero. ``(tables / 2,)`` float32.
    """
    t, half = rates.tables, len(rates.tables) // 2
    found = np.empty(half, np.float32)
    for k in range(half):
        zeros, others = [], []
        for i in (k, k + half):
            bits, place = rates.bits[t.starts[i] : t.starts[i + 1] - 1], -int(t.offsets[i])
            zeros.append(bits[place])
            others.append(np.delete(bits, place).min())
        found[k] = min(others) - zeros[0] - QUIET_MARGIN if zeros[0] <= zeros[1] else -1
    return found


def search(
    residual: np.ndarray, indexes: np.ndarray, weight: np.ndarray, rates: SymbolRates, trellis: Trellis
) -> tuple[np.ndarray, float]:
    """The cheapest levels of one sequence, int32 ``(K,)``, and their cost in bits.

    ``residual``: in steps; ``indexes``: the table of quantizer 0, that of quantizer 1 is half the tables
    further on; ``weight``: bits that a squared error of one step is worth.
    """
    count = len(residual)
    t = rates.tables
    out = np.empty(count, np.int32)
    cost = kernels.viterbi(
        np.ascontiguousarray(residual, np.float32), t.check_indexes(indexes),
        np.ascontiguousarray(weight, np.float32), rates.bits, rates.escape, t.starts, t.offsets,
        np.array(trellis.nexts, np.int64), np.array(trellis.quantizer, np.int64), len(t) // 2, out,
        np.empty((count, len(trellis.nexts)), np.uint8), np.zeros((count, 4), np.int32),
    )  # fmt: skip
    return out, float(cost)


def cost_of(
    levels: np.ndarray,
    residual: np.ndarray,
    indexes: np.ndarray,
    weight: np.ndarray,
    rates: SymbolRates,
    trellis: Trellis,
) -> float:
    """``D + R`` in bits of given levels: the definition that `search` minimises."""
    half, total = len(rates.tables) // 2, 0.0
    for k, s, r, t, w in zip(levels, trellis.states_of(levels), residual, indexes, weight, strict=True):
        error = float(r) - trellis.reconstruct(int(k), int(s))
        total += float(w) * error**2 + rates.bits_of(int(k), int(t) + trellis.quantizer[int(s)] * half)
    return total


def candidates(residual: float, quantizer: int) -> list[int]:
    """Levels that are tried: the two around the residual, the next one towards zero, and zero.

    One more than VVC's encoder tries: with rates this skewed, the level towards zero is often the best.
    """
    base = int(np.floor((abs(np.float32(residual)) + quantizer) * np.float32(0.5)))
    side = 1 if residual >= 0 else -1
    return sorted({0, *(side * k for k in (base - 1, base, base + 1) if k >= 0)})


def search_reference(
    residual: np.ndarray, indexes: np.ndarray, weight: np.ndarray, rates: SymbolRates, trellis: Trellis
) -> float:
    """The least cost over all paths, by trying every one: for short sequences."""
    half = len(rates.tables) // 2

    def best(i: int, state: int) -> float:
        if i == len(residual):
            return 0.0
        q, costs = trellis.quantizer[state], []
        for level in candidates(residual[i], q):
            error = float(residual[i]) - trellis.reconstruct(level, state)
            here = float(weight[i]) * error**2 + rates.bits_of(level, int(indexes[i]) + q * half)
            costs.append(here + best(i + 1, trellis.nexts[state][level & 1]))
        return min(costs)

    return best(0, 0)
