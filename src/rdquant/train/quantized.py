"""The loss on latents that the file's own quantizer produces.

Levels come from the encoder's real search (`rdquant.latents.parts`), rates from the integer tables that
the coder really uses. What has no derivative gets one so:

- the synthesis sees the true reconstruction, and its gradient goes to y alone (straight through);
- a table's bits are interpolated to the next scale's, which gives them a slope in the scale;
- the slope in y and in its mean is that between two neighbouring levels, around y and a uniform noise:
  without the noise nothing would pull a mean towards the many elements whose level is zero. TCQ takes it from
  the tables of quantizer 0: the levels of quantizer 1 have unequal widths, so that their bits do not follow
  the density.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..codec import Codec
from ..codecs import FloatCodec, build
from ..codecs.base import ste_round
from ..codecs.layers import lower_bound
from ..entropy import scale_table
from ..graph.capture import capture
from ..graph.operations.gain import POSITIONS
from ..latents.coding import LatentCoding, coded_with, encoder_coding
from ..latents.parts import quantized_latent, walk
from ..latents.rates import SymbolRates
from ..priors import Part
from .config import TrainConfig
from .rates import lambda_at, weighted


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


@dataclass(frozen=True)
class _Moving(Codec):
    """A float codec whose networks are modules in training."""

    modules: FloatCodec | None = None

    def run(self, name: str, *inputs: np.ndarray, valid: bool = False) -> np.ndarray:
        assert self.modules is not None
        return self.modules.run_arrays(name, *inputs, valid=valid)


class QuantizedRateDistortion(nn.Module):
    """``x: (B, 3, H, W)`` in [0, 1] -> (loss, bpp, MSE in 8-bit units squared), latents truly quantized.

    Of codecs of many rates, all pictures of a batch have the whole level that is nearest to ``level[0]``.
    Hyperpriors only. ``gains: (M,)``, of `rdquant.latents.gains`; ``start``: the weights that "stored" levels
    are chosen with.
    """

    def __init__(
        self, codec: FloatCodec, config: TrainConfig, gains: np.ndarray, start: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.codec, self.config = codec, config
        self.analysis_moves = config.scope == "all"
        # the search between them is not for torch.compile, and the rest is small
        self._analysis, self._synthesis = (
            torch.compile(part) if config.compile else part for part in (codec.analysis, codec.synthesis)
        )
        captured = capture(codec)
        fields = {f.name: getattr(captured, f.name) for f in dataclasses.fields(captured)}
        self._moving = _Moving(**fields, modules=codec)
        self._captured, self._gains = captured, gains
        self.coding = self._coding(None)
        self._first = None
        if config.levels == "stored":
            first = build(codec.architecture, **codec.options())
            first.load_state_dict(start)
            self._first = capture(first)
        self._rates = SymbolRates.of(self.coding.tables(captured))
        scales = scale_table()
        self._lowest, self._pitch = float(scales[0]), math.log(scales[1] / scales[0])
        self._last = len(scales) - 1
        self._spacing = (self.coding.spacing or captured.quantizer.unit) / captured.quantizer.unit

    def _coding(self, level: int | None) -> LatentCoding:
        """What the encoder would choose levels with."""
        config, gains, lambda_ = self.config, self._gains, self.config.lambda_
        if level is not None:
            own = self._captured.gains["synthesis"][1]
            gains = gains * ((own.at(level * POSITIONS).factors() / own.factors()) ** 2).numpy()
            lambda_ = float(lambda_at(self.codec, torch.tensor(float(level))))
        return encoder_coding(config.quantizer, gains, lambda_, config.quantizer_step, config.coherence)

    def _levels(self, y: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[Part]]:
        """``(levels, y_hat, parts)``; "stored" levels as the first hyper-coder asked for them."""
        stored = None
        if self._first is not None:
            stored = quantized_latent(self._first, np.ascontiguousarray(y), self.coding).levels

        def choose(part: Part, tables: np.ndarray, means: np.ndarray) -> np.ndarray:
            if stored is not None:
                return part.take(stored)
            return self.coding.levels(self._moving, part.take(y), means, tables, part.channels)

        y_hat, levels = np.zeros(y.shape, np.float32), np.zeros(y.shape, np.int32)
        parts = []
        for part, found, _, _ in walk(self._moving, features, y_hat, self.coding, choose):
            part.put(found, levels)
            parts.append(part)
        return levels, y_hat, parts

    @torch.no_grad()
    def _bits(
        self, levels: np.ndarray, position: Tensor, offset: Tensor, parts: list[Part]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bits of ``levels``, and their slopes in ``position`` (of the table) and in ``offset``."""
        low = position.floor().clamp(0, self._last - 1)
        tables = low.to(torch.int32).numpy()
        stated = np.empty(tables.shape, np.int32)  # the quantizer's state considered
        for part in parts:
            own = part.take(levels)
            found = coded_with(self.coding, own, part.take(tables))
            part.put(found.reshape(own.shape), stated)
        flat, indexes, plain = (t.reshape(-1) for t in (levels, stated, tables))
        below = torch.floor(offset + torch.rand_like(offset) - 0.5).to(torch.int32).reshape(-1).numpy()
        here, next_table, left, right = (
            torch.from_numpy(self._rates.of_symbols(k, t)).reshape(levels.shape)
            for k, t in ((flat, indexes), (flat, indexes + 1), (below, plain), (below + 1, plain))
        )
        return here + (position - low) * (next_table - here), next_table - here, right - left

    def forward(self, x: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        codec = self.codec
        if level is not None:
            level = level[:1].round()
            self.coding = self._coding(int(level))
        codec.at(None if level is None else level.expand(len(x)))
        with torch.set_grad_enabled(self.analysis_moves):
            y = self._analysis(x).float()
        with torch.autocast(x.device.type, enabled=False):
            z = codec.hyper_analysis(y)
            centre = codec.entropy_bottleneck.medians().detach()
            z_hat = ste_round(z - centre) + centre
            z_noisy = z + torch.rand_like(z) - 0.5
            features = codec.prior.begin(codec.run, z_hat)
            levels, found, parts = self._levels(*(t.detach().float().cpu().numpy() for t in (y, features)))
            y_hat = y + (torch.from_numpy(found).to(x.device) - y).detach()
            scales, means = codec.prior.all_parameters(codec.run, features, y_hat)
            means = torch.zeros_like(y) if means is None else means
            wanted = lower_bound(scales / self._spacing, self._lowest)
            position = (torch.log(wanted / self._lowest) / self._pitch).clamp(max=self._last)
            offset = (y - means) / self._spacing
            costs = self._bits(levels, position.detach().cpu(), offset.detach().cpu(), parts)
            bits = _WithSlopes.apply(position, offset, *(t.to(x.device) for t in costs))
            z_bits = -torch.log2(codec.entropy_bottleneck.likelihood(z_noisy)).sum()
            bpp = (bits.sum() + z_bits) / (x.shape[0] * x.shape[2] * x.shape[3])
        mse = torch.mean((self._synthesis(y_hat).float() - x) ** 2) * 255**2
        return weighted(codec, self.config, level, bpp, mse), bpp, mse
