"""The loss on latents that the file's own quantizer produces.

Levels come from the encoder's real search (`rdquant.latents.coding`), rates from the integer tables that
the coder really uses. What has no derivative gets one so:

- the synthesis sees the true reconstruction, and its gradient goes to y alone (straight through);
- a table's bits are interpolated to the next scale's, which gives them a slope in the scale;
- the slope in y and in its mean is that between two neighbouring levels, around y and a uniform noise:
  without the noise nothing would pull a mean towards the many elements whose level is zero. TCQ takes it from
  the tables of quantizer 0: the levels of quantizer 1 have unequal widths, so that their bits do not follow
  the density.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..codecs import FloatCodec, build
from ..codecs.base import ste_round
from ..codecs.layers import lower_bound
from ..entropy import scale_table
from ..floatcodec import CodingFloatCodec
from ..latents.coding import coded_with, encoder_coding
from ..latents.rates import SymbolRates
from .config import TrainConfig


class _WithSlopes(torch.autograd.Function):
    """``value``, with given slopes in ``position`` and ``offset``. All of one shape."""

    @staticmethod
    def forward(ctx: Any, position: Tensor, offset: Tensor, value: Tensor, *slopes: Tensor) -> Tensor:
        ctx.save_for_backward(*slopes)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        by_position, by_offset = ctx.saved_tensors
        return grad * by_position, grad * by_offset, None, None, None


class QuantizedRateDistortion(nn.Module):
    """``x: (B, 3, H, W)`` in [0, 1] -> (loss, bpp, MSE in 8-bit units squared), latents truly quantized.

    Hyperpriors only. ``gains: (M,)``, of `rdquant.latents.gains`; ``start``: the weights that "stored" levels
    are chosen with.
    """

    def __init__(
        self, codec: FloatCodec, config: TrainConfig, gains: np.ndarray, start: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.codec, self.lambda_ = codec, config.lambda_
        self.analysis_moves = config.scope == "all"
        # the search between them is not for torch.compile, and the hyper-coder is small
        self._g_a, self._g_s = (
            torch.compile(part) if config.compile else part for part in (codec.g_a, codec.g_s)
        )
        self._view = CodingFloatCodec(codec)  # searches and tables are on the CPU
        self.coding = encoder_coding(
            config.quantizer, gains, config.lambda_, config.quantizer_step, config.coherence
        )
        self._first = None
        if config.levels == "stored":
            first = build(codec.architecture, codec.N, codec.M)
            first.load_state_dict(start)
            self._first = CodingFloatCodec(first)
        self._rates = SymbolRates.of(self.coding.tables(self._view))
        scales = scale_table()
        self._lowest, self._pitch = float(scales[0]), math.log(scales[1] / scales[0])
        self._last = len(scales) - 1
        self._spacing = (self.coding.spacing or self._view.quantizer.unit) / self._view.quantizer.unit

    @torch.no_grad()
    def _levels(self, y: Tensor, scales: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """``(levels, y_hat)``; "stored" levels as the first hyper-coder asked for them."""
        if self._first is None:
            indexes, aim = self._view.table_indexes(scales, self.coding.spacing), means
        else:
            indexes, aim = self._first.entropy_parameters(self._first.hyper_analysis(y), self.coding.spacing)
        levels = self.coding.levels(self._view, y.contiguous(), aim.contiguous(), indexes)
        return levels, self.coding.dequantize(self._view, levels, means)

    @torch.no_grad()
    def _bits(self, levels: Tensor, position: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bits of ``levels``, and their slopes in ``position`` (of the table) and in ``offset``."""
        low = position.floor().clamp(0, self._last - 1)
        tables = low.to(torch.int32)
        flat, plain = levels.reshape(-1).numpy(), tables.reshape(-1).numpy()
        indexes = coded_with(self.coding, levels, tables)
        below = torch.floor(offset + torch.rand_like(offset) - 0.5).to(torch.int32).reshape(-1).numpy()
        here, next_table, left, right = (
            torch.from_numpy(self._rates.of_symbols(k, t)).reshape(levels.shape)
            for k, t in ((flat, indexes), (flat, indexes + 1), (below, plain), (below + 1, plain))
        )
        return here + (position - low) * (next_table - here), next_table - here, right - left

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codec = self.codec
        with torch.set_grad_enabled(self.analysis_moves):
            y = self._g_a(x).float()
        with torch.autocast(x.device.type, enabled=False):
            z = codec.h_a(codec.hyper_input(y))
            centre = codec.entropy_bottleneck.medians().detach()
            z_hat = ste_round(z - centre) + centre
            z_noisy = z + torch.rand_like(z) - 0.5
            scales, means = codec.gaussian_parameters(z_hat)
            means = torch.zeros_like(y) if means is None else means
            levels, found = self._levels(*(t.detach().cpu() for t in (y, scales, means)))
            wanted = lower_bound(scales / self._spacing, self._lowest)
            position = (torch.log(wanted / self._lowest) / self._pitch).clamp(max=self._last)
            offset = (y - means) / self._spacing
            costs = self._bits(levels, position.detach().cpu(), offset.detach().cpu())
            bits = _WithSlopes.apply(position, offset, *(t.to(x.device) for t in costs))
            z_bits = -torch.log2(codec.entropy_bottleneck.likelihood(z_noisy)).sum()
            bpp = (bits.sum() + z_bits) / (x.shape[0] * x.shape[2] * x.shape[3])
        y_hat = y + (found.to(x.device) - y).detach()
        mse = torch.mean((self._g_s(y_hat).float() - x) ** 2) * 255**2
        return self.lambda_ * mse + bpp, bpp, mse
