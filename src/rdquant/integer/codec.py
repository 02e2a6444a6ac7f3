"""An integer codec: four networks, two sets of tables, and nothing that is not an integer.

Number formats, from pixels to pixels:

=============  =========================================================================
pixels         unsigned 8 bits; the first analysis layer takes them as they are
activations    integers in [lo, hi], scale known only to whoever built the codec
y, means       16-bit fixed point with ``fraction_bits`` (8 unless the latent needs more range)
y symbols      ``(y - means + half) >> fraction_bits``
y_hat          ``(symbol << fraction_bits) + means``, clipped to 16 bits
g_s's input    ``y_hat << latent_shift[channel]``, clipped to 16 bits
z, medians     like y and means, with ``Z_FRACTION_BITS`` = 8; z_hat is the input of h_s
scales         16-bit fixed point like means, compared with integer thresholds -> table index
=============  =========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..entropy import CdfTables
from ..errors import BadModel
from ..latents import FIXED_HI, FIXED_LO, FixedPointScalar
from .arithmetic import requantize
from .network import Engine, IntegerNetwork, default_engine
from .stages import Requantize
from .unrounded import UnroundedNetwork

Z_FRACTION_BITS = 8
#: bits by which a latent channel may be scaled up before g_s
LATENT_SHIFT_LIMIT = 7


@dataclass(frozen=True)
class IntegerCodec:
    """A quantized codec. Pictures are ``(B, 3, H, W)`` uint8 with sides multiples of `downsampling`."""

    architecture: str
    N: int
    M: int
    networks: dict[str, IntegerNetwork]
    y_tables: CdfTables
    z_tables: CdfTables | None
    thresholds: Tensor | None
    """int32 ``(levels - 1,)``: a scale above threshold k uses table k + 1 or later."""
    hyper_input: Requantize | None
    """y to the activations that h_a takes (of |y| for a scale hyperprior)."""
    medians: Tensor
    """int32, of the factorized latent (z, or y without a hyperprior): what its symbols count from."""
    fraction_bits: int
    has_means: bool
    latent_shift: Tensor
    """int32 ``(M,)``, 0..7: left shift of each channel of y_hat before g_s."""
    description: dict[str, Any] = field(default_factory=dict, compare=False)
    """How it was made; shown by `inspect`, not part of the fingerprint."""

    @property
    def has_hyperprior(self) -> bool:
        return "h_s" in self.networks

    @property
    def downsampling(self) -> int:
        return 64 if self.has_hyperprior else 16

    @cached_property
    def quantizer(self) -> FixedPointScalar:
        return FixedPointScalar(self.fraction_bits)

    @cached_property
    def _z_quantizer(self) -> FixedPointScalar:
        return FixedPointScalar(Z_FRACTION_BITS)

    @cached_property
    def engine(self) -> Engine:
        return default_engine()

    def check(self) -> None:
        """Raise `BadModel` unless every bound of the integer contract holds."""
        expected = {"g_a", "g_s", "h_a", "h_s"} if self.z_tables is not None else {"g_a", "g_s"}
        if set(self.networks) != expected:
            raise BadModel(f"networks must be {sorted(expected)}, got {sorted(self.networks)}")
        for network in self.networks.values():
            network.check()
        self.y_tables.validate()
        if not 0 <= self.fraction_bits <= 12:
            raise BadModel(f"fraction_bits must be 0..12, got {self.fraction_bits}")
        g_a, g_s = self.networks["g_a"].stages, self.networks["g_s"].stages
        shape = (g_a[0].conv.in_channels, g_a[-1].conv.out_channels)
        back = (g_s[-1].conv.out_channels, g_s[0].conv.in_channels)
        if shape != (3, self.M) or back != (3, self.M):
            raise BadModel(f"g_a and g_s must join 3 and {self.M} channels, got {shape} and {back}")
        if (g_s[0].conv.lo, g_s[0].conv.hi) != (FIXED_LO, FIXED_HI):
            raise BadModel("g_s must take 16-bit latents")
        shift = self.latent_shift
        if shift.dtype != torch.int32 or shift.shape != (self.M,):
            raise BadModel(f"latent_shift must be int32 ({self.M},), got {shift.dtype} {tuple(shift.shape)}")
        if int(shift.min()) < 0 or int(shift.max()) > LATENT_SHIFT_LIMIT:
            raise BadModel(
                f"latent_shift must be in 0..{LATENT_SHIFT_LIMIT}, got {int(shift.min())}..{int(shift.max())}"
            )
        factorized = self.M if self.z_tables is None else len(self.z_tables)
        if self.medians.dtype != torch.int32 or self.medians.shape != (factorized,):
            raise BadModel(f"medians must be int32 ({factorized},), got {tuple(self.medians.shape)}")
        if int(self.medians.min()) < FIXED_LO or int(self.medians.max()) > FIXED_HI:
            raise BadModel("medians must fit 16 bits")
        if self.z_tables is None:
            if len(self.y_tables) != self.M:
                raise BadModel(f"expected {self.M} tables for y, got {len(self.y_tables)}")
            return
        self.z_tables.validate()
        h_a, h_s = self.networks["h_a"].stages, self.networks["h_s"].stages
        latent, n_out = h_s[0].conv.in_channels, self.M * (2 if self.has_means else 1)
        if h_a[0].conv.in_channels != self.M or h_a[-1].conv.out_channels != latent:
            raise BadModel(f"h_a must join {self.M} and {latent} channels")
        if h_s[-1].conv.out_channels != n_out or len(self.z_tables) != latent:
            raise BadModel(f"h_s must give {n_out} channels and z have {latent} tables")
        for stage in h_s:
            largest = int(stage.conv.weight.to(torch.int32).abs().max())
            # int8 engines multiply in pairs: wider weights than 7 bits could saturate theirs
            if largest > 63 and stage.conv.bits <= 8 and stage.conv.levels is None:
                raise BadModel(f"{stage.name}.weight holds {largest}; the entropy path allows +-63")
        if (h_s[0].conv.lo, h_s[0].conv.hi) != (FIXED_LO, FIXED_HI):
            raise BadModel("h_s must take 16-bit latents")
        t = self.thresholds
        if t is None or t.dtype != torch.int32 or t.shape != (len(self.y_tables) - 1,):
            raise BadModel("thresholds must be int32, one fewer than the tables of y")
        if t.numel() > 1 and bool((t[1:] <= t[:-1]).any()):
            raise BadModel("thresholds must rise strictly")
        if self.hyper_input is None:
            raise BadModel("hyper_input is missing")
        self.hyper_input.check("hyper_input", self.M)

    # image -> symbols

    def analysis(self, pixels: Tensor) -> Tensor:
        """uint8 pixels -> y, 16-bit fixed point, ``(B, M, H/16, W/16)``."""
        return self.networks["g_a"].run(pixels, self.engine)

    def hyper_analysis(self, y: Tensor) -> Tensor:
        """y -> z symbols, int32 ``(B, N, H/64, W/64)``."""
        assert self.hyper_input is not None
        e = self.hyper_input
        v = y.double() if self.has_means else y.double().abs()
        a = requantize(v, e.factor, e.lo, e.hi)
        z = self.networks["h_a"].run(a, self.engine)
        return self._z_quantizer.quantize(z, self.medians.reshape(1, -1, 1, 1))

    # symbols -> image

    def entropy_parameters(self, z_symbols: Tensor, spacing: int | None = None) -> tuple[Tensor, Tensor]:
        """z symbols -> ``(table indexes, means)`` of y, int32 ``(B, M, H/16, W/16)``.

        ``spacing``: of a table's integers in units of y, for symbols that are not ``2^fraction_bits`` apart.
        """
        assert self.thresholds is not None
        z_hat = self._z_quantizer.dequantize(z_symbols, self.medians.reshape(1, -1, 1, 1))
        out = self.networks["h_s"].run(z_hat, self.engine).to(torch.int32)
        scales, means = (
            (out[:, : self.M], out[:, self.M :]) if self.has_means else (out, torch.zeros_like(out))
        )
        thresholds = self.thresholds.to(out.device)
        if spacing is not None:
            thresholds = ((thresholds.to(torch.int64) * spacing) >> self.fraction_bits).clamp(max=FIXED_HI)
            thresholds = thresholds.to(torch.int32)
        indexes = torch.searchsorted(thresholds, scales.contiguous(), out_int32=True)
        return indexes, means

    def factorized_means(self, shape: torch.Size) -> Tensor:
        """Means of a factorized latent: its channels' medians. int32, ``shape``."""
        return self.medians.reshape(1, -1, 1, 1).expand(shape)

    @cached_property
    def _unrounded(self) -> UnroundedNetwork:
        return UnroundedNetwork(self.networks["g_s"])

    def synthesis(self, y_hat: Tensor, exact: bool = True) -> Tensor:
        """y_hat, 16-bit fixed point -> uint8 pixels.

        ``exact``: the same pixels everywhere; otherwise faster, see `rdquant.integer.unrounded`.
        """
        shifted = (y_hat * self._shift(y_hat)).clamp_(FIXED_LO, FIXED_HI)  # exact: below 2^23
        if not exact:
            return self._unrounded.run(shifted).to(torch.uint8)
        return self.networks["g_s"].run(shifted, self.engine).to(torch.uint8)

    def relaxed_synthesis(self, y_hat: Tensor) -> Tensor:
        """y_hat, float32 -> pixels in 0..255, float32, differentiable: nothing rounded."""
        shifted = (y_hat * self._shift(y_hat).float()).clamp(FIXED_LO, FIXED_HI)
        return self._unrounded.relaxed(shifted.contiguous(memory_format=torch.channels_last))

    def _shift(self, y_hat: Tensor) -> Tensor:
        """What the latent is multiplied by on its way into the synthesis."""
        return torch.exp2(self.latent_shift.double()).reshape(1, -1, 1, 1).to(y_hat.device)


def scale_thresholds(boundaries: np.ndarray, fraction_bits: int) -> Tensor:
    """Integer form of `rdquant.entropy.scale_boundaries`: int32 ``(levels - 1,)``, strictly rising.

    ``scale > boundary`` and ``scale > floor(boundary * 2^f) / 2^f`` agree on multiples of ``2^-f``.
    """
    return torch.from_numpy(np.floor(boundaries * 2.0**fraction_bits).astype(np.int32))
