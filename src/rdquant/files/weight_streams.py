"""Entropy-coded weights: rANS with one table for each spread of weights, common to a whole model.

How far the weights of a kernel spread differs by its rows, columns and taps, up to a hundredfold. A weight's
class is ``rows[o] + columns[i] + taps[t]``, the logarithm (base 2) of its variance and `LOWEST` above it; all
weights of a model that fall in one class share a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .. import entropy
from ..entropy import CdfTables, pmf_tables
from ..errors import BadModel, DecodeError

#: of variances, from 2^-5: weights of 8 bits reach 2^14
CLASSES, LOWEST = 20, 5
#: weights that a model may have coded: what a loader is willing to allocate
WEIGHT_LIMIT = 2**26
_LEAST_VARIANCE = 0.05
_ROUNDS = 6


@dataclass(frozen=True, eq=False)
class CodedWeights:
    """``stream`` of ``(O, I, T)`` integers; ``spreads``: int8 ``(O,)``, ``(I,)`` and ``(T,)``."""

    stream: bytes
    spreads: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def size(self) -> int:
        return len(self.stream) + sum(len(s) for s in self.spreads)


def fit_spreads(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and tap terms of the log variance of integers ``(O, I, T)``, int8 each.

    Taps are fitted and rounded first, then columns, then rows, which take what the others leave.
    """
    e = np.square(weights, dtype=np.float64) + _LEAST_VARIANCE
    factors = [np.ones(n) for n in e.shape]
    terms: list[np.ndarray] = [np.zeros(0, np.int8)] * 3
    for fixed in (2, 1, 0):
        for _ in range(_ROUNDS):
            for axis in range(fixed + 1):
                left = e
                for other in range(3):
                    if other != axis:
                        left = left / np.expand_dims(factors[other], tuple({0, 1, 2} - {other}))
                factors[axis] = left.mean(tuple({0, 1, 2} - {axis}))
        terms[fixed] = np.rint(np.log2(factors[fixed])).astype(np.int8)
        factors[fixed] = np.exp2(terms[fixed].astype(np.float64))
    return terms[0], terms[1], terms[2]


def classes(spreads: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """The table of each weight, int32 ``(O, I, T)``."""
    rows, columns, taps = (s.astype(np.int32) for s in spreads)
    total = rows[:, None, None] + columns[None, :, None] + (taps + LOWEST)
    return np.clip(total, 0, CLASSES - 1)


def encode_weights(layers: Mapping[str, np.ndarray]) -> tuple[CdfTables, dict[str, CodedWeights]]:
    """Integers ``(O, I, T)`` by layer -> the tables of the model, and a stream for each layer."""
    spreads = {name: fit_spreads(w) for name, w in layers.items()}
    indexes = {name: classes(s).reshape(-1) for name, s in spreads.items()}
    values = np.concatenate([w.reshape(-1) for w in layers.values()]).astype(np.int32)
    index = np.concatenate(list(indexes.values()))
    pmfs, offsets = [], []
    for c in range(CLASSES):
        own = values[index == c]
        low = int(own.min()) if own.size else 0
        pmfs.append(np.bincount(own - low) / len(own) if own.size else np.ones(1))
        offsets.append(low)
    tables = pmf_tables(pmfs, offsets, [0.0] * CLASSES)
    return tables, {
        name: CodedWeights(entropy.encode(w.reshape(-1), indexes[name], tables), spreads[name])
        for name, w in layers.items()
    }


def decode_weights(coded: CodedWeights, tables: CdfTables) -> np.ndarray:
    """The integers ``(O, I, T)``, int32. Raises `BadModel` for a stream that is none."""
    if len(tables) != CLASSES:
        raise BadModel(f"weights are coded with {CLASSES} tables, got {len(tables)}")
    index = classes(coded.spreads)
    try:
        return entropy.decode(coded.stream, index.reshape(-1), tables).reshape(index.shape)
    except DecodeError as error:
        raise BadModel(f"coded weights: {error}") from None
