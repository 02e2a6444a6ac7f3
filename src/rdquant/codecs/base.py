"""What the three architectures share: the contract of a float codec and its forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .bottleneck import EntropyBottleneck, gaussian_likelihood

#: How latents are treated in `FloatCodec.forward`: additive noise (training), noise for the rate and
#: straight-through rounding for the synthesis (Minnen & Singh 2020), the same with the two quantizers of a
#: trellis switched at random (`switched`), or the true rounding of a file.
LatentMode = Literal["noise", "mixed", "switching", "round"]


@dataclass(frozen=True)
class Forward:
    """What one pass through a codec gives."""

    x_hat: Tensor  #: (B, 3, H, W), nominally in [0, 1], not clamped
    likelihoods: dict[str, Tensor]  #: per latent ("y", "z"), probabilities of the coded symbols

    def bits(self) -> Tensor:
        """Estimated bits of the whole batch, float32 scalar."""
        return sum((-torch.log2(p).sum() for p in self.likelihoods.values()), torch.zeros(()))


@dataclass(frozen=True)
class Rounded:
    """What a codec computes of pictures, latents truly rounded. z and scales: hyperpriors only."""

    y: Tensor  #: (B, M, H/16, W/16), before rounding
    z: Tensor | None  #: (B, N, H/64, W/64), before rounding
    z_hat: Tensor | None
    scales: Tensor | None
    means: Tensor  #: of y; zeros or medians where the architecture has none
    y_hat: Tensor
    x_hat: Tensor  #: (B, 3, H, W), nominally in [0, 1], not clamped


def ste_round(x: Tensor) -> Tensor:
    """Rounding whose gradient is one."""
    return x + (torch.round(x) - x).detach()


def quantize_latent(v: Tensor, means: Tensor | float, mode: LatentMode) -> tuple[Tensor, Tensor]:
    """``(value for the rate, value for the next network)``; both shaped as ``v``."""
    if mode == "noise":
        noisy = v + torch.empty_like(v).uniform_(-0.5, 0.5)
        return noisy, noisy
    rounded = ste_round(v - means) + means
    if mode == "mixed":
        return v + torch.empty_like(v).uniform_(-0.5, 0.5), rounded
    return rounded, rounded


def switched(v: Tensor) -> Tensor:
    """``v`` in steps -> the nearest that one of TCQ's two quantizers can be, drawn for each element anew:
    an even multiple, or an odd one or zero. Gradients pass straight through.
    """
    odd = torch.randint(0, 2, v.shape, device=v.device).to(v.dtype)
    size = v.abs()
    k = torch.floor((size + odd) / 2 + 0.5) * (size >= 0.5)
    return v + (torch.sign(v) * (2 * k - odd * (k > 0)) - v).detach()


class FloatCodec(nn.Module):
    """A float learned codec: analysis ``g_a``, synthesis ``g_s``, and for hyperpriors ``h_a``, ``h_s``.

    Input pictures are ``(B, 3, H, W)`` in [0, 1] with H and W multiples of `downsampling`.
    """

    architecture: str
    #: picture pixels per element of the smallest latent, per side
    downsampling: int
    has_hyperprior = True
    has_means = False

    g_a: nn.Sequential
    g_s: nn.Sequential
    h_a: nn.Sequential  #: hyperpriors only, as h_s
    h_s: nn.Sequential
    entropy_bottleneck: EntropyBottleneck

    def __init__(self, N: int, M: int) -> None:
        super().__init__()
        self.N, self.M = N, M

    def widths(self) -> dict[str, int]:
        """The constructor's arguments, as files store them."""
        return {"N": self.N, "M": self.M}

    def hyper_input(self, y: Tensor) -> Tensor:
        """What ``h_a`` sees of ``y``."""
        return y

    def gaussian_parameters(self, z_hat: Tensor) -> tuple[Tensor, Tensor | None]:
        """``z_hat: (B, N, H/64, W/64)`` -> ``(scales, means)``, each ``(B, M, H/16, W/16)``."""
        raise NotImplementedError

    def rounded(self, x: Tensor) -> Rounded:
        """Everything between ``x: (B, 3, H, W)`` in [0, 1] and its reconstruction, latents truly rounded."""
        y, centre = self.g_a(x), self.entropy_bottleneck.medians()
        z = z_hat = scales = means = None
        if self.has_hyperprior:
            z = self.h_a(self.hyper_input(y))
            z_hat = torch.round(z - centre) + centre
            scales, means = self.gaussian_parameters(z_hat)
        else:
            means = centre.expand_as(y)
        means = torch.zeros_like(y) if means is None else means
        y_hat = torch.round(y - means) + means
        return Rounded(y, z, z_hat, scales, means, y_hat, self.g_s(y_hat))

    def forward(self, x: Tensor, mode: LatentMode = "noise", step: float = 0.5) -> Forward:
        """``step``: of the union of both quantizers, in units of y; mode "switching" only."""
        y = self.g_a(x)
        z = self.h_a(self.hyper_input(y)).float()
        z_mode: LatentMode = "mixed" if mode == "switching" else mode
        z_rate, z_hat = quantize_latent(z, self.entropy_bottleneck.medians().detach(), z_mode)
        scales, means = self.gaussian_parameters(z_hat.to(y.dtype))
        y = y.float()
        centre = torch.zeros_like(y) if means is None else means.float()
        if mode == "switching":  # each quantizer's levels are two steps apart
            offset = (y - centre) / (2 * step)
            y_hat = switched(2 * offset) * step + centre
            likelihood = gaussian_likelihood(
                offset + torch.empty_like(y).uniform_(-0.5, 0.5), scales.float() / (2 * step)
            )
        else:
            y_rate, y_hat = quantize_latent(y, centre, mode)
            likelihood = gaussian_likelihood(y_rate, scales, means)
        x_hat = self.g_s(y_hat)
        return Forward(x_hat.float(), {"y": likelihood, "z": self.entropy_bottleneck.likelihood(z_rate)})
