"""How latents become symbols and come back: what `rdquant.coder` asks, in both directions.

`ScalarCoding` is uniform scalar quantization (RDOQ is only its encoder's choice); `TrellisCoding` is TCQ. For
TCQ a channel is a sequence: the encoder searches channels in parallel, and starting again in state 0 for each
costs a few symbols of some hundred or thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ..entropy import CdfTables, ParityMachine
from ..errors import UsageError
from ..files.container import MOST_STEP, Quantizer
from ..threads import PARALLEL, share
from . import kernels
from .rates import SymbolRates
from .rdoq import COHERENCE, Rdoq
from .trellis import TCQ4, TCQ8, Trellis, quiet_bits, tcq_tables

#: how an encoder may choose levels
QUANTIZERS = ("uniform", "rdoq", "tcq4", "tcq8")
TRELLISES = {Quantizer.TCQ4: TCQ4, Quantizer.TCQ8: TCQ8}
#: step of TCQ in steps of plain rounding, and how far its errors count more than the synthesis gain says (see
#: `rdquant.latents.rdoq.COHERENCE`); chosen on the val split, for codecs that were trained for plain rounding
TCQ_STEP, TCQ_COHERENCE = 0.7, 4.0
_LARGEST = 2**16
_ALL = slice(None)


class LatentSearch(Protocol):
    """An encoder's better choice of symbols; see `rdquant.latents.rdoq.Rdoq`."""

    def levels(
        self,
        y: np.ndarray,
        means: np.ndarray,
        indexes: np.ndarray,
        tables: CdfTables,
        step: float,
        channels: slice,
    ) -> np.ndarray: ...


class LatentCoding(Protocol):
    """Arrays are ``(B, C, h, w)``, of ``channels`` of y; ``codec`` is a `rdquant.codec.Codec`."""

    @property
    def quantizer(self) -> Quantizer: ...
    @property
    def step(self) -> int | None:
        """Of the container's header."""

    @property
    def spacing(self) -> int | None:
        """Of a table's integers, in units of y; None for the codec's own."""

    def tables(self, codec: Any) -> CdfTables: ...
    def machine(self, run: int) -> ParityMachine | None: ...
    def levels(
        self, codec: Any, y: np.ndarray, means: np.ndarray, indexes: np.ndarray, channels: slice = _ALL
    ) -> np.ndarray: ...
    def dequantize(self, codec: Any, symbols: np.ndarray, means: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class ScalarCoding:
    """``search``: how levels are chosen; by default each is the nearest."""

    search: LatentSearch | None = None
    quantizer = Quantizer.UNIFORM
    step = None
    spacing = None

    def tables(self, codec: Any) -> CdfTables:
        found: CdfTables = codec.y_tables
        return found

    def machine(self, run: int) -> None:
        return None

    def levels(
        self, codec: Any, y: np.ndarray, means: np.ndarray, indexes: np.ndarray, channels: slice = _ALL
    ) -> np.ndarray:
        if self.search is None:
            found: np.ndarray = codec.quantizer.quantize(y, means)
            return found
        return self.search.levels(y, means, indexes, codec.y_tables, codec.quantizer.step, channels)

    def dequantize(self, codec: Any, symbols: np.ndarray, means: np.ndarray) -> np.ndarray:
        found: np.ndarray = codec.quantizer.dequantize(symbols, means)
        return found


@dataclass(frozen=True, eq=False)
class TrellisCoding:
    """``step``: of the union of both quantizers, in units of y. To encode, ``gains: (M,)`` of
    `rdquant.latents.gains` and ``lambda_`` are needed.
    """

    quantizer: Quantizer
    step: int
    gains: np.ndarray | None = None
    lambda_: float | None = None
    coherence: float = TCQ_COHERENCE

    @property
    def trellis(self) -> Trellis:
        return TRELLISES[self.quantizer]

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Its ``nexts`` and ``quantizer``, int64."""
        return np.array(self.trellis.nexts, np.int64), np.array(self.trellis.quantizer, np.int64)

    @property
    def spacing(self) -> int:
        return 2 * self.step

    def tables(self, codec: Any) -> CdfTables:
        return tcq_tables()

    def machine(self, run: int) -> ParityMachine:
        return self.trellis.machine(len(tcq_tables()) // 2, run)

    def levels(
        self, codec: Any, y: np.ndarray, means: np.ndarray, indexes: np.ndarray, channels: slice = _ALL
    ) -> np.ndarray:
        """The cheapest levels by Viterbi's search, int32."""
        if self.gains is None or self.lambda_ is None:
            raise UsageError("encoding with TCQ needs latent gains and lambda")
        rows = y.shape[0] * y.shape[1]
        size = self.step / codec.quantizer.unit  # in steps of plain rounding
        weight = self.coherence * self.lambda_ / 3 * self.gains[channels] * size**2
        residual = (y.astype(np.float64) - means) / (size * codec.quantizer.step)
        residual = np.ascontiguousarray(residual.astype(np.float32).reshape(rows, -1))
        t, rates = tcq_tables(), SymbolRates.of(tcq_tables())
        out = np.empty(residual.shape, np.int32)
        given = np.ascontiguousarray(indexes.reshape(rows, -1))
        weights = np.tile(weight.astype(np.float32), y.shape[0])
        nexts, quantizer = self._arrays
        with PARALLEL:
            share(
                rows,
                lambda a, b: kernels.viterbi_channels(
                    residual[a:b], given[a:b], weights[a:b], rates.bits, rates.escape, t.starts, t.offsets,
                    nexts, quantizer, len(t) // 2, quiet_bits(rates), out[a:b],
                ),
            )  # fmt: skip
        return out.reshape(y.shape)

    def dequantize(self, codec: Any, symbols: np.ndarray, means: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(symbols, np.int32).reshape(-1, _run(symbols))
        around = np.ascontiguousarray(means).reshape(rows.shape)
        found = np.empty_like(around)
        (nexts, quantizer), (lo, hi) = self._arrays, codec.quantizer.ends
        step = self.step * codec.quantizer.value_of_unit
        with PARALLEL:
            share(
                len(rows),
                lambda a, b: kernels.reconstruct(
                    rows[a:b], _LARGEST, nexts, quantizer, step, around[a:b], lo, hi, found[a:b]
                ),
            )
        return found.reshape(symbols.shape)


def _run(levels: np.ndarray) -> int:
    """Symbols of a channel, a sequence of its own."""
    return max(1, levels.shape[2] * levels.shape[3])


def encoder_coding(
    quantizer: str,
    gains: np.ndarray | None,
    lambda_: float | None,
    step: float | None = None,
    coherence: float | None = None,
    unit: int = 256,
) -> LatentCoding:
    """An encoder's, by the name of its quantizer: one of `QUANTIZERS`.

    ``gains: (M,)`` of `rdquant.latents.gains` and ``lambda_`` are needed by all but "uniform". ``step``: of
    TCQ, in steps of plain rounding, of which each is ``unit``. Raises `UsageError`.
    """
    if quantizer not in QUANTIZERS:
        raise UsageError(f"quantizer must be one of {', '.join(QUANTIZERS)}, got {quantizer!r}")
    if step is not None and not quantizer.startswith("tcq"):
        raise UsageError(f"only TCQ has a step, got {step} with {quantizer}")
    if coherence is not None and not coherence > 0:
        raise UsageError(f"coherence must be positive, got {coherence}")
    if quantizer == "uniform":
        return ScalarCoding()
    if gains is None or lambda_ is None:
        raise UsageError(f"encoding with {quantizer} needs latent gains and lambda")
    if quantizer == "rdoq":
        return ScalarCoding(Rdoq(gains, lambda_, COHERENCE if coherence is None else coherence))
    units = round((TCQ_STEP if step is None else step) * unit)
    if not 1 <= units <= MOST_STEP:
        raise UsageError(f"step must be in {1 / unit}..{MOST_STEP / unit}, got {step}")
    kind = Quantizer[quantizer.upper()]
    return TrellisCoding(kind, units, gains, lambda_, TCQ_COHERENCE if coherence is None else coherence)


def coded_with(coding: LatentCoding, levels: np.ndarray, indexes: np.ndarray) -> np.ndarray:
    """The table of each of ``levels``, flat int32, the quantizer's state considered."""
    flat, tables = levels.reshape(-1), indexes.reshape(-1)
    machine = coding.machine(_run(levels))
    return tables if machine is None else machine.indexes(flat, tables)


def coding_of(quantizer: Quantizer, step: int | None) -> LatentCoding:
    """A decoder's, from what the header says."""
    return ScalarCoding() if step is None else TrellisCoding(quantizer, step)
