"""A float codec with coding tables: the anchor that quantized codecs are measured against.

It writes real files, but only for the machine that wrote them: table indexes come from float scales,
which differ in the last bit between machines, thread counts and libraries. Its files say so
(profile "float"); integer codecs have no such limit.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .codecs import FloatCodec
from .entropy import CdfTables, gaussian_tables, pmf_tables, scale_boundaries, scale_table
from .latents import UniformScalar


class CodingFloatCodec:
    """The float counterpart of `rdquant.integer.IntegerCodec`, with the same methods.

    Latents are float32; factorized latents are coded around their channel's median.
    """

    def __init__(self, codec: FloatCodec) -> None:
        self.codec = codec.eval()
        self.quantizer = UniformScalar()
        self.has_hyperprior, self.downsampling = codec.has_hyperprior, codec.downsampling
        self.N, self.M = codec.N, codec.M

    @cached_property
    def _factorized(self) -> CdfTables:
        return pmf_tables(*self.codec.entropy_bottleneck.pmfs())

    @cached_property
    def _boundaries(self) -> Tensor:
        return torch.from_numpy(scale_boundaries(scale_table()))

    @cached_property
    def y_tables(self) -> CdfTables:
        return gaussian_tables(scale_table()) if self.has_hyperprior else self._factorized

    @property
    def z_tables(self) -> CdfTables | None:
        return self._factorized if self.has_hyperprior else None

    @torch.no_grad()
    def analysis(self, pixels: Tensor) -> Tensor:
        return self.codec.g_a(pixels.float() / 255)

    @torch.no_grad()
    def hyper_analysis(self, y: Tensor) -> Tensor:
        z = self.codec.h_a(self.codec.hyper_input(y))
        return torch.round(z - self.codec.entropy_bottleneck.medians()).to(torch.int32)

    @torch.no_grad()
    def entropy_parameters(self, z_symbols: Tensor, spacing: int | None = None) -> tuple[Tensor, Tensor]:
        z_hat = z_symbols.float() + self.codec.entropy_bottleneck.medians()
        scales, means = self.codec.gaussian_parameters(z_hat)
        return self.table_indexes(scales, spacing), torch.zeros_like(scales) if means is None else means

    def table_indexes(self, scales: Tensor, spacing: int | None = None) -> Tensor:
        """The table of each of ``scales``, int32. ``spacing``: see `rdquant.latents.coding.LatentCoding`."""
        boundaries = self._boundaries * ((spacing or self.quantizer.unit) / self.quantizer.unit)
        return torch.searchsorted(boundaries, scales.double().contiguous(), out_int32=True)

    @torch.no_grad()
    def factorized_means(self, shape: torch.Size) -> Tensor:
        return self.codec.entropy_bottleneck.medians().expand(shape)

    def relaxed_synthesis(self, y_hat: Tensor) -> Tensor:
        """y_hat -> pixels in 0..255, float32, differentiable: nothing rounded."""
        found: Tensor = self.codec.g_s(y_hat).clamp(0, 1) * 255
        return found

    @torch.no_grad()
    def synthesis(self, y_hat: Tensor, exact: bool = True) -> Tensor:
        return torch.floor(self.codec.g_s(y_hat).clamp_(0, 1) * 255 + 0.5).to(torch.uint8)
