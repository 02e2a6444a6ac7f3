"""RDOQ: each level by its own ``D + lambda * R``, with the rates of the coder's integer tables.

Candidates are the nearest level, two steps towards zero, and zero (as in HEVC's reference encoder). The
decoder is that of uniform scalar quantization. ``D`` is the error of the picture, not of the latent: a
squared error of one in channel c is worth ``gains[c]`` (`rdquant.latents.gains`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..entropy import CdfTables
from ..errors import UsageError
from . import kernels
from .rates import SymbolRates

#: RDOQ's errors all point towards zero, so they add up where the synthesis overlaps, and a gain measured with
#: independent errors undervalues them. Chosen on the val split (J of the zoo's W8A8 codec at lambda 0.0130:
#: +6.9 % with 1, +2.1 % with 2, +0.3 % with 4, -0.13 % with 8, -0.17 % with 16)
COHERENCE = 12.0


def rdoq(residual: np.ndarray, indexes: np.ndarray, weight: np.ndarray, rates: SymbolRates) -> np.ndarray:
    """Levels, int32 ``(K,)``.

    ``residual: (K,)`` float32, ``(y - means) / step``; ``indexes: (K,)`` tables; ``weight: (K,)``: bits
    that a squared error of one step is worth.
    """
    out = np.empty(len(residual), np.int32)
    t = rates.tables
    kernels.rdoq(
        np.ascontiguousarray(residual, np.float32), t.check_indexes(indexes),
        np.ascontiguousarray(weight, np.float32), rates.bits, rates.escape, t.starts, t.offsets, out,
    )  # fmt: skip
    return out


def rdoq_reference(
    residual: np.ndarray, indexes: np.ndarray, weight: np.ndarray, rates: SymbolRates
) -> np.ndarray:
    """The same, plainly."""
    out = []
    for r, t, w in zip(residual, indexes, weight, strict=True):
        nearest = int(np.floor(np.float32(r) + np.float32(0.5)))
        toward = [nearest - int(np.sign(nearest)) * i for i in range(min(abs(nearest), 2) + 1)]
        costs = {k: float(w) * (float(r) - k) ** 2 + rates.bits_of(k, int(t)) for k in [*toward, 0]}
        out.append(min(costs, key=lambda k: costs[k]))
    return np.array(out, np.int32)


@dataclass(frozen=True, eq=False)
class Rdoq:
    """RDOQ of a codec's latent: an encoder's choice, the decoder does not know of it.

    ``gains: (M,)`` by `rdquant.latents.gains`; ``lambda_``: of J, CompressAI's convention.
    """

    gains: np.ndarray
    lambda_: float
    coherence: float = COHERENCE

    def __post_init__(self) -> None:
        if not (np.isfinite(self.gains).all() and (self.gains >= 0).all()):
            raise UsageError("gains must be finite and not negative")
        if not self.lambda_ > 0:
            raise UsageError(f"lambda must be positive, got {self.lambda_}")

    def levels(
        self,
        y: np.ndarray,
        means: np.ndarray,
        indexes: np.ndarray,
        tables: CdfTables,
        step: float,
        channels: slice,
    ) -> np.ndarray:
        """int32 symbols, shaped as ``y: (B, C, h, w)`` of ``channels``. ``step``: of a symbol, in y's units.

        J counts ``lambda * 255^2 * MSE`` a pixel; a picture's MSE is over three samples a pixel.
        """
        weight = np.repeat(self.coherence * self.lambda_ / 3 * self.gains[channels], y.shape[2] * y.shape[3])
        weight = np.tile(weight, y.shape[0])
        residual = (y.astype(np.float32) - means.astype(np.float32)).reshape(-1) / np.float32(step)
        return rdoq(residual, indexes.reshape(-1), weight, SymbolRates.of(tables)).reshape(y.shape)
