"""The loss on latents that the file's own quantizer produces.

Levels come from the encoder's real search (`rdquant.latents.parts`), rates from the integer tables that
the coder really uses (`rdquant.latents.learning`). The synthesis sees the true reconstruction, whose gradient
goes to y alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..codecs import FloatCodec, build
from ..codecs.base import ste_round
from ..graph.capture import capture
from ..graph.operations.gain import POSITIONS
from ..latents.coding import LatentCoding, encoder_coding
from ..latents.learning import InTraining, LevelBits, true_levels
from ..latents.parts import quantized_latent
from ..priors import Part
from .config import TrainConfig
from .rates import lambda_at, weighted


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
        self._moving = InTraining.of(captured, codec.run_arrays)
        self._captured, self._gains = captured, gains
        self.coding = self._coding(None)
        self._first = None
        if config.levels == "stored":
            first = build(codec.architecture, **codec.options())
            first.load_state_dict(start)
            self._first = capture(first)
        self._bits = LevelBits(self.coding, captured)

    def _coding(self, level: int | None) -> LatentCoding:
        """What the encoder would choose levels with."""
        config, gains, lambda_ = self.config, self._gains, self.config.lambda_
        if level is not None:
            own = self._captured.gains["synthesis"][1]
            gains = gains * ((own.at(level * POSITIONS).factors() / own.factors()) ** 2).numpy()
            lambda_ = float(lambda_at(self.codec, torch.tensor(float(level))))
        return encoder_coding(config.quantizer, gains, lambda_, config.quantizer_step, config.coherence)

    def _levels(self, y: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[Part]]:
        """`true_levels`; "stored" ones are as the first hyper-coder asked for them."""
        stored = None
        if self._first is not None:
            stored = quantized_latent(self._first, np.ascontiguousarray(y), self.coding).levels
        return true_levels(self._moving, features, y, self.coding, stored)

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
            bits = self._bits(self.coding, levels, parts, y, scales, means)
            z_bits = -torch.log2(codec.entropy_bottleneck.likelihood(z_noisy)).sum()
            bpp = (bits.sum() + z_bits) / (x.shape[0] * x.shape[2] * x.shape[3])
        mse = torch.mean((self._synthesis(y_hat).float() - x) ** 2) * 255**2
        return weighted(codec, self.config, level, bpp, mse), bpp, mse
