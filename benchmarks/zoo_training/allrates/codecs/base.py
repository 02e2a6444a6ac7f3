"""What all candidates share: gains around the latent, the hyperprior, and the forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rdquant.codecs.base import ste_round
from rdquant.codecs.bottleneck import EntropyBottleneck, gaussian_likelihood

from .gain import GainUnit
from .prior import FourPartPrior, OnePassPrior


@dataclass(frozen=True)
class Coded:
    """One pass: ``x_hat: (B, 3, H, W)`` (not clamped) and estimated bits of y and z, each ``(B,)``."""

    x_hat: Tensor
    y_bits: Tensor
    z_bits: Tensor


def _bits(likelihood: Tensor) -> Tensor:
    return -torch.log2(likelihood).sum((1, 2, 3))


class AllRatesCodec(nn.Module):
    """A float codec for every rate. ``x: (B, 3, H, W)`` in [0, 1], sides multiples of 64; ``q: (B,)``.

    ``g_a`` and ``g_s`` know nothing of q: y is multiplied by a gain before it is coded, and what was decoded
    by an inverse gain, learned apart from the first, before the synthesis.
    """

    architecture: str
    downsampling = 64
    g_a: nn.Module
    g_s: nn.Module
    h_a: nn.Module
    h_s: nn.Module
    prior: FourPartPrior | OnePassPrior

    def __init__(self, N: int, M: int) -> None:
        super().__init__()
        self.N, self.M = N, M
        self.gain, self.inverse_gain = GainUnit(M), GainUnit(M, inverse=True)
        self.entropy_bottleneck = EntropyBottleneck(N)
        self.entropy_bottleneck.quantiles.requires_grad_(False)

    def forward(self, x: Tensor, q: Tensor, training: bool = True) -> Coded:
        """``training``: rates of noisy latents, synthesis and contexts of rounded ones (gradients pass
        straight through). Otherwise everything truly rounded, scales those of the integer tables.
        """
        y = self.g_a(x).float() * self.gain(q)
        z = self.h_a(y).float()
        medians = self.entropy_bottleneck.medians().detach()
        z_hat = ste_round(z - medians) + medians
        latent = self.prior(y, self.h_s(z_hat), tables=not training)
        x_hat = self.g_s(latent.y_hat * self.inverse_gain(q)).float()
        if training:
            y_rate, z_rate = y + torch.rand_like(y) - 0.5, z + torch.rand_like(z) - 0.5
        else:
            y_rate, z_rate = latent.y_hat, z_hat
        with torch.autocast(x.device.type, enabled=False):
            y_bits = _bits(gaussian_likelihood(y_rate, latent.scales, latent.means))
            z_bits = _bits(self.entropy_bottleneck.likelihood(z_rate))
        return Coded(x_hat, y_bits, z_bits)


def initialise(codec: AllRatesCodec) -> None:
    """Kernels that keep variance, shortcuts' branches small, pictures centred on mid-grey at both ends."""
    for module in codec.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            taps: float = module.kernel_size[0] * module.kernel_size[1]
            if isinstance(module, nn.ConvTranspose2d):
                taps /= module.stride[0] * module.stride[1]
            nn.init.normal_(module.weight, std=(module.in_channels / module.groups * taps) ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in codec.named_parameters():
        if name.endswith(("project.weight", "mix_out.weight")):
            parameter.data.mul_(0.3)
        if name.startswith(("prior.first.", "prior.heads.")) and parameter.ndim == 4:
            parameter.data.mul_(0.1)
    analysis = next(m for m in codec.g_a.modules() if isinstance(m, nn.Conv2d))
    synthesis = [m for m in codec.g_s.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)][-1]
    if analysis.bias is not None and synthesis.bias is not None:
        analysis.bias.data.copy_(-0.5 * analysis.weight.sum((1, 2, 3)))
        synthesis.bias.data.fill_(0.5)
