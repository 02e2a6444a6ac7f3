"""What all architectures share: networks by name, and the forward pass of training with any prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..priors import Part, Prior
from .bottleneck import EntropyBottleneck, gaussian_likelihood
from .protocol import network

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
        """Estimated bits of each picture, float32 ``(B,)``."""
        parts = [-torch.log2(p).sum((1, 2, 3)) for p in self.likelihoods.values()]
        return torch.stack(parts).sum(0)


def ste_round(x: Tensor) -> Tensor:
    """Rounding whose gradient is one."""
    return x + (torch.round(x) - x).detach()


def noisy(v: Tensor) -> Tensor:
    """``v`` with a uniform noise of one step, which stands for its rounding (Balle et al. 2017)."""
    return v + torch.empty_like(v).uniform_(-0.5, 0.5)


def switched(v: Tensor) -> Tensor:
    """``v`` in steps -> the nearest that one of TCQ's two quantizers can be, drawn for each element anew:
    an even multiple, or an odd one or zero. Gradients pass straight through.
    """
    odd = torch.randint(0, 2, v.shape, device=v.device).to(v.dtype)
    size = v.abs()
    k = torch.floor((size + odd) / 2 + 0.5) * (size >= 0.5)
    return v + (torch.sign(v) * (2 * k - odd * (k > 0)) - v).detach()


class FloatCodec(nn.Module):
    """A float learned codec in training: a `rdquant.codecs.protocol.TrainedCodec` that is a module.

    Input pictures are ``(B, 3, H, W)`` in [0, 1] with H and W multiples of `downsampling`. An architecture
    sets ``prior`` and its modules, and has a method, or a module, for each network of the prior.
    """

    architecture: str
    #: the constructor's arguments: attributes that JSON can hold
    OPTIONS: ClassVar[tuple[str, ...]] = ("N", "M")
    #: picture pixels per element of the smallest latent, per side
    downsampling = 64
    #: of gains, and lambda of the lowest and the highest; None: a codec of one rate
    levels: ClassVar[int | None] = None
    lambdas: ClassVar[tuple[float, float] | None] = None
    prior: Prior
    N: int
    M: int  #: channels of y

    g_a: nn.Sequential
    g_s: nn.Sequential
    h_a: nn.Sequential  #: hyperpriors only, as h_s
    h_s: nn.Sequential
    entropy_bottleneck: EntropyBottleneck

    @classmethod
    def identify(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Options of the CompressAI checkpoint that these tensors are of; None, or a `KeyError`, if they are
        of another architecture.
        """
        return None

    @classmethod
    def renamed(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A CompressAI checkpoint of this architecture under our names."""
        return dict(tensors)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as files store them."""
        return {name: getattr(self, name) for name in self.OPTIONS}

    def at(self, level: Tensor | None) -> None:
        """In training: code each picture of a batch at its own level of the gains, ``(B,)`` real numbers in
        0..levels - 1; None: all in the middle, which is what is captured.
        """

    def analysis(self, x: Tensor) -> Tensor:
        return self.g_a(x)

    def synthesis(self, y_hat: Tensor) -> Tensor:
        return self.g_s(y_hat)

    def hyper_analysis(self, y: Tensor) -> Tensor:
        return self.h_a(y)

    def hyper_synthesis(self, z_hat: Tensor) -> Tensor:
        return self.h_s(z_hat)

    def run(self, name: str, *inputs: Tensor, valid: bool = False) -> Tensor:
        """A network by name: `rdquant.priors.base.Run`."""
        out = network(self, name)(*inputs)
        if not valid:
            return out
        # where its neighbours are all of the patch, an element does not see the padding
        row, column = out.shape[2] // 2, out.shape[3] // 2
        return out[:, :, row : row + 1, column : column + 1]

    @torch.no_grad()
    def run_arrays(
        self, name: str, *inputs: np.ndarray, valid: bool = False, part: Part | None = None
    ) -> np.ndarray:
        """The same on arrays, wherever the modules are."""
        device = next(p.device for p in self.parameters())
        given = (torch.from_numpy(t).to(device) for t in inputs)
        out: np.ndarray = self.run(name, *given, valid=valid).float().cpu().numpy()
        return out if part is None else part.pick(out)

    def coded(self, y: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(scales, means, y_hat)`` as a decoder finds them part by part, ``(B, M, H, W)`` each."""
        wanted, given = (t.detach().float().cpu().numpy() for t in (y, features))
        y_hat, all_scales, all_means = (np.zeros(wanted.shape, np.float32) for _ in range(3))
        for part, scales, means in self.prior.walk(self.run_arrays, given, y_hat):
            means = np.zeros_like(scales) if means is None else means
            part.put(scales, all_scales)
            part.put(means, all_means)
            part.put(np.round(part.take(wanted) - means) + means, y_hat)
        a, b, c = (torch.from_numpy(t).to(y.device) for t in (all_scales, all_means, y_hat))
        return a, b, c

    def seen(self, y: Tensor, features: Tensor, mode: LatentMode, step: float) -> Tensor:
        """The y_hat that contexts see in training, whose own rounding depends on what contexts give.

        Noise, or the rounding around the means that noise gives (found without gradients); in mode "round"
        the true one.
        """
        if not self.prior.has_contexts:
            return y
        if mode == "noise":
            return noisy(y)
        with torch.no_grad():
            if mode == "round":
                found = self.coded(y, features)[2]
            else:
                means = self.prior.all_parameters(self.run, features, noisy(y))[1]
                found = _reconstructed(y, 0.0 if means is None else means.float(), mode, step)
        return y + (found - y).detach()

    def forward(self, x: Tensor, mode: LatentMode = "noise", step: float = 0.5) -> Forward:
        """``step``: of the union of both quantizers, in units of y; mode "switching" only."""
        y = self.analysis(x)
        centre = self.entropy_bottleneck.medians().detach()
        factorized = self.hyper_analysis(y).float() if self.prior.hyper else y.float()
        rounded = noisy(factorized) if mode == "noise" else ste_round(factorized - centre) + centre
        rate = rounded if mode in ("noise", "round") else noisy(factorized)
        likelihood = self.entropy_bottleneck.likelihood(rate)
        if not self.prior.hyper:
            return Forward(self.synthesis(rounded).float(), {"y": likelihood})
        features = self.prior.begin(self.run, rounded.to(y.dtype))
        y = y.float()
        found = self.prior.parameters_of_rounded(self.run, features, y) if mode == "mixed" else None
        if found is None:
            context = self.seen(y, features, mode, step)
            found = self.prior.all_parameters(self.run, features, context)
        scales, means = found
        means = torch.zeros_like(y) if means is None else means.float()
        settled = mode == "round" and self.prior.has_contexts
        y_hat = context if settled else _reconstructed(y, means, mode, step)
        spacing = 2 * step if mode == "switching" else 1.0  # each quantizer's levels are two steps apart
        offset = (y - means) / spacing
        offset = y_hat - means if mode == "round" else noisy(offset)
        likelihoods = {"y": gaussian_likelihood(offset, scales.float() / spacing), "z": likelihood}
        return Forward(self.synthesis(y_hat).float(), likelihoods)


def _reconstructed(y: Tensor, means: Tensor | float, mode: LatentMode, step: float) -> Tensor:
    """What the synthesis is given of ``y``, by mode."""
    if mode == "noise":
        return noisy(y)
    if mode == "switching":
        return switched((y - means) / step) * step + means
    return ste_round(y - means) + means
