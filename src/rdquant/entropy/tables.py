"""Integer CDF tables: what the entropy coder codes with, built once and stored in the model file.

A table for n symbols has n + 2 entries rising strictly from 0 to 2^16: n symbol intervals and, last,
the escape interval, which stands for every integer outside the table (CompressAI's convention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import BadModel, UsageError

PRECISION = 16
TOTAL = 1 << PRECISION
#: escaped values are written in nibbles, preceded by a nibble that counts them
BYPASS_BITS = 4
#: entries that all tables together may have
SIZE_LIMIT = 1 << 24
#: tables; each takes 512 bytes of `CdfTables.lookup`
TABLE_LIMIT = 1 << 16
_LOOKUP_BITS = 8


def as_int32(values: np.ndarray, name: str) -> np.ndarray:
    """``values`` as contiguous int32 ``(K,)``, never wrapped or rounded: `UsageError` instead."""
    a = np.asarray(values)
    if a.dtype != np.int32 and a.size:
        if a.dtype.kind not in "iu":
            raise UsageError(f"{name} must be integers, got {a.dtype}")
        if int(a.min()) < -(2**31) or int(a.max()) >= 2**31:
            raise UsageError(f"{name} {int(a.min())}..{int(a.max())} do not fit 32 bits")
    return np.ascontiguousarray(a, np.int32).reshape(-1)


@dataclass(frozen=True, eq=False)
class CdfTables:
    """Ragged CDFs in one flat array.

    ``cdf``: int32 ``(total,)``; table t is ``cdf[starts[t]:starts[t + 1]]``.
    ``starts``: int32 ``(T + 1,)``. ``offsets``: int32 ``(T,)``, the integer that a table's first
    interval stands for. Call `validate` on tables that come from a file.
    """

    cdf: np.ndarray
    starts: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)

    def validate(self) -> None:
        """Raise `BadModel` unless the arrays are what the class docstring says."""
        for name in ("cdf", "starts", "offsets"):
            a = getattr(self, name)
            if not isinstance(a, np.ndarray) or a.dtype != np.int32 or a.ndim != 1:
                raise BadModel(f"{name} of CDF tables must be a flat int32 array")
        tables = len(self.offsets)
        if tables > TABLE_LIMIT:
            raise BadModel(f"{tables} CDF tables, at most {TABLE_LIMIT} are allowed")
        if tables == 0 or len(self.starts) != tables + 1 or len(self.cdf) > SIZE_LIMIT:
            raise BadModel(
                f"{tables} CDF tables need {tables + 1} starts and at most {SIZE_LIMIT} entries, "
                f"got {len(self.starts)} and {len(self.cdf)}"
            )
        lengths = np.diff(self.starts.astype(np.int64))
        if self.starts[0] != 0 or self.starts[-1] != len(self.cdf) or lengths.min() < 3:
            raise BadModel("starts of CDF tables must rise from 0 to the end by at least 3")
        first, last = self.cdf[self.starts[:-1]], self.cdf[self.starts[1:] - 1]
        if (first != 0).any() or (last != TOTAL).any():
            bad = int(np.flatnonzero((first != 0) | (last != TOTAL))[0])
            raise BadModel(f"CDF table {bad} runs from {first[bad]} to {last[bad]}, must be 0 to {TOTAL}")
        rising = np.diff(self.cdf.astype(np.int64)) > 0
        rising[self.starts[1:-1] - 1] = True  # from one table to the next
        if not rising.all():
            at = int(np.flatnonzero(~rising)[0])
            table = int(np.searchsorted(self.starts, at, side="right")) - 1
            raise BadModel(
                f"CDF table {table} does not rise strictly at entry {at - int(self.starts[table])}"
            )
        if np.abs(self.offsets.astype(np.int64)).max() > SIZE_LIMIT:
            raise BadModel(f"offsets of CDF tables must be within +-{SIZE_LIMIT}")

    @cached_property
    def lookup(self) -> np.ndarray:
        """uint16 ``(T, 256)``: the interval that holds the first slot of each 256th of a table."""
        slots = np.arange(1 << _LOOKUP_BITS, dtype=np.int64) << (PRECISION - _LOOKUP_BITS)
        rows = [
            np.searchsorted(self.cdf[a + 1 : b], slots, side="right")
            for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)
        ]
        return np.ascontiguousarray(np.stack(rows).astype(np.uint16))

    @cached_property
    def least_bits(self) -> float:
        """Fewest bits that any symbol can take: of the likeliest symbol of the most certain table."""
        widest = int(np.diff(self.cdf.astype(np.int64)).max())
        return float(-np.log2(widest / TOTAL))

    def changes(self) -> np.ndarray:
        """The tables' frequencies as files hold them: the first, then each less the one before it, modulo
        2^16. uint16, all tables in a row.
        """
        inner = np.ones(len(self.cdf), bool)
        inner[self.starts[:-1]] = False
        frequencies = np.diff(self.cdf, prepend=0)[inner]
        return (np.diff(frequencies, prepend=0) % TOTAL).astype(np.uint16)

    @classmethod
    def from_changes(cls, changes: np.ndarray, starts: np.ndarray, offsets: np.ndarray) -> CdfTables:
        """The inverse. Raises `BadModel` for arrays that do not fit each other; `validate` what comes out."""
        frequencies = np.cumsum(changes.astype(np.int64)) % TOTAL
        lengths = np.diff(starts.astype(np.int64)) - 1
        if len(starts) < 2 or lengths.min() < 2 or int(lengths.sum()) != len(frequencies):
            raise BadModel(f"starts of CDF tables do not fit {len(frequencies)} frequencies")
        sums = np.concatenate([[0], np.cumsum(frequencies)])
        ends = np.cumsum(lengths)
        rows = [sums[a : b + 1] - sums[a] for a, b in zip(ends - lengths, ends, strict=True)]
        cdf = np.concatenate(rows)
        if int(cdf.max()) >= 2**31:
            raise BadModel("frequencies of CDF tables are too large")
        return cls(cdf.astype(np.int32), starts.astype(np.int32), offsets.astype(np.int32))

    def check_indexes(self, indexes: np.ndarray) -> np.ndarray:
        """``indexes`` as contiguous int32. Raises `UsageError` for one outside the tables or no integer."""
        out = as_int32(indexes, "table indexes")
        if out.size and not (int(out.min()) >= 0 and int(out.max()) < len(self)):
            raise UsageError(f"table index {int(out.min())}..{int(out.max())} outside 0..{len(self) - 1}")
        return out

    def bits(self, symbols: np.ndarray, indexes: np.ndarray) -> float:
        """Ideal code length of ``symbols`` (int ``(K,)``) under tables ``indexes``, escapes included.

        Raises `UsageError` as `rdquant.entropy.encode` does.
        """
        values = as_int32(symbols, "symbols").astype(np.int64)
        index = self.check_indexes(indexes).astype(np.int64)
        if len(values) != len(index):
            raise UsageError(f"{len(values)} symbols with {len(index)} table indexes")
        start = self.starts[index].astype(np.int64)
        escape = self.starts[index + 1] - 2 - start
        value = values - self.offsets[index]
        raw = np.where(value < 0, -2 * value - 1, 2 * (value - escape))
        outside = (value < 0) | (value >= escape)
        value = np.where(outside, escape, value)
        frequency = self.cdf[start + value + 1] - self.cdf[start + value]
        bits = float(-np.log2(frequency / TOTAL).sum())
        for r in raw[outside]:
            bits += BYPASS_BITS * (1 + -(-int(r).bit_length() // BYPASS_BITS))
        return bits

    def to_dense(self) -> tuple[list[list[int]], list[int], list[int]]:
        """``(cdfs padded with zeros, lengths, offsets)`` as nested lists: CompressAI's form."""
        lengths = np.diff(self.starts).tolist()
        longest = max(lengths)
        rows = [self.cdf[a:b].tolist() for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]
        return [row + [0] * (longest - len(row)) for row in rows], lengths, self.offsets.tolist()


def quantize_pmf(pmf: np.ndarray) -> np.ndarray:
    """Probabilities ``(n + 1,)``, the escape's last -> int32 CDF ``(n + 2,)`` with no empty interval.

    Rounds to 16 bits, rescales to the exact total, then widens each empty interval by one at the cost
    of the narrowest interval that has more than one; the same integers as CompressAI's
    ``pmf_to_quantized_cdf`` for the same float32 input. That function rounds its input to float32 and
    this one does not, so a float64 probability next to a rounding tie may come out one apart; files
    coded with tables that are rebuilt at load depend on it. Raises `BadModel` for anything that is not
    a probability vector (its sum may differ from 1).
    """
    p = np.asarray(pmf, np.float64)
    if p.ndim != 1 or not 2 <= len(p) < TOTAL or not (p >= 0).all() or not 0 < p.sum() <= TOTAL:
        raise BadModel(f"not a probability vector of 2..{TOTAL - 1} entries (shape {p.shape})")
    counts = np.floor(p * TOTAL + 0.5).astype(np.int64)
    if counts.sum() == 0:
        raise BadModel("probabilities are all zero at 16 bits")
    cdf = np.concatenate([[0], np.cumsum(counts * TOTAL // counts.sum())])
    cdf[-1] = TOTAL
    for i in range(len(p)):
        if cdf[i] != cdf[i + 1]:
            continue
        widths = np.diff(cdf)
        donor = int(np.argmin(np.where(widths > 1, widths, TOTAL + 1)))
        if donor < i:
            cdf[donor + 1 : i + 1] -= 1
        else:
            cdf[i + 1 : donor + 1] += 1
    return cdf.astype(np.int32)


def pmf_tables(pmfs: Sequence[np.ndarray], offsets: Sequence[int], tail_masses: Sequence[float]) -> CdfTables:
    """Tables from probabilities on consecutive integers, the first integer, and the mass outside."""
    cdfs = [quantize_pmf(np.append(p, t)) for p, t in zip(pmfs, tail_masses, strict=True)]
    starts = np.concatenate([[0], np.cumsum([len(c) for c in cdfs])]).astype(np.int32)
    return CdfTables(np.concatenate(cdfs), starts, np.asarray(offsets, np.int32))


def scale_table(levels: int = 64, lowest: float = 0.11, highest: float = 256.0) -> np.ndarray:
    """Log-spaced scales, float64 ``(levels,)``: the Gaussians that tables exist for (CompressAI's)."""
    return np.exp(np.linspace(np.log(lowest), np.log(highest), levels))


def scale_boundaries(scales: np.ndarray) -> np.ndarray:
    """Where one scale's table gives way to the next: geometric means, ``(levels - 1,)``.

    CompressAI takes the next larger scale instead, which costs some rate.
    """
    return np.sqrt(scales[1:] * scales[:-1])


def scale_thresholds(boundaries: np.ndarray, fraction_bits: int) -> np.ndarray:
    """Integer form of `scale_boundaries`: int32 ``(levels - 1,)``, strictly rising.

    ``scale > boundary`` and ``scale > floor(boundary * 2^f) / 2^f`` agree on multiples of ``2^-f``. Where
    those are too coarse for the smallest scales, thresholds follow each other.
    """
    order = np.arange(len(boundaries))
    found = np.floor(boundaries * 2.0**fraction_bits).astype(np.int32) - order
    return (np.maximum.accumulate(found) + order).astype(np.int32)


def gaussian_tables(scales: np.ndarray, tail_mass: float = 1e-9) -> CdfTables:
    """One table per scale: N(0, scale) integrated over unit intervals, as far as ``tail_mass`` asks."""
    from scipy.special import ndtr, ndtri  # files hold tables: what reads them does without scipy

    pmfs, offsets, tails = [], [], []
    for scale in np.asarray(scales, np.float64):
        reach = int(np.ceil(-ndtri(tail_mass / 2) * scale))
        distance = np.abs(np.arange(-reach, reach + 1))
        pmfs.append(ndtr((0.5 - distance) / scale) - ndtr((-0.5 - distance) / scale))
        offsets.append(-reach)
        tails.append(2 * float(ndtr((-0.5 - reach) / scale)))
    return pmf_tables(pmfs, offsets, tails)
