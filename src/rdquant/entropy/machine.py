"""Tables that follow the symbols: a state machine driven by their parities.

Trellis-coded quantization codes each level with the tables of one of two quantizers, and which one depends on
the parities of the levels before it. The coder follows with one addition and one look-up for each symbol.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compiled import njit
from ..errors import UsageError


@dataclass(frozen=True, eq=False)
class ParityMachine:
    """``nexts: (S, 2)``: the state after a symbol, by state and parity; ``shift: (S,)``: what a state adds to
    a symbol's table index; ``run``: symbols after which it starts again in state 0. All int64.
    """

    nexts: np.ndarray
    shift: np.ndarray
    run: int

    def __post_init__(self) -> None:
        states = len(self.shift)
        if self.nexts.shape != (states, 2) or not 0 <= self.nexts.min() <= self.nexts.max() < states:
            raise UsageError(f"nexts must be ({states}, 2) states of 0..{states - 1}")
        if self.run < 1 or int(self.shift.min()) < 0:
            raise UsageError(f"run must be positive and shifts not negative, got {self.run}")

    def indexes(self, symbols: np.ndarray, indexes: np.ndarray) -> np.ndarray:
        """The tables that symbols are coded with, int32 ``(K,)``: ``indexes`` and what the states add.

        Raises `UsageError` unless there are as many of either.
        """
        given, tables = (np.ascontiguousarray(t, np.int32) for t in (symbols, indexes))
        if given.shape != tables.shape:
            raise UsageError(f"{given.shape} symbols with {tables.shape} table indexes")
        out = np.empty(len(given), np.int32)
        _follow(given, tables, self.nexts, self.shift, self.run, out)
        return out


@njit(cache=True, nogil=True)
def _follow(symbols, indexes, nexts, shift, run, out):  # type: ignore[no-untyped-def]
    after = nexts.reshape(-1).astype(np.uint64)  # unsigned: see `rdquant.entropy.rans`
    state, left = np.uint64(0), np.int64(0)
    for i in range(len(symbols)):
        if left == 0:
            state, left = np.uint64(0), np.int64(run)
        left -= 1
        out[i] = indexes[i] + shift[state]
        state = after[np.uint64(2) * state + np.uint64(symbols[i] & 1)]
