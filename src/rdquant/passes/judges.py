"""What gradients of a calibration follow: J itself, or its expansion around the float codec."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..codec import Z_FRACTION_BITS, Codec
from ..codecs.bottleneck import gaussian_likelihood
from ..codecs.layers import lower_bound
from ..graph.operations import round_ste
from .calibration import LEAST_MSE
from .flow import Passed, through
from .rdo_config import RdoConfig
from .twin import Twin


def distortion(out: Tensor, x: Tensor, reference: Tensor | None = None) -> Tensor:
    """Mean squared error of pictures ``(B, 3, H, W)``, holding 0..255.

    With ``reference: (B,)``, the errors that the float codec leaves of each: relative to those, and to first
    order the same on average. Errors of photographs differ by factors of a hundred, so that a mean of them is
    that of a few; what is reported in the end is a mean of decibels.
    """
    if reference is None:
        return torch.mean((out - x) ** 2)
    errors = ((out - x) ** 2).mean((1, 2, 3))
    return reference.mean() * (1 + torch.log(errors / reference).mean())


def _softened(squares: Tensor) -> Tensor:
    """Squares, growing like a logarithm where they are large: a picture on which the float codec itself
    leaves what it was trained for must not decide.
    """
    return 10 * torch.log1p(squares / 10)


class Mismatch(torch.nn.Module):
    """J to second order around the float codec, segment by segment; see `Judge`."""

    gains: Tensor

    def __init__(self, twin: Twin, lambda_: float, gains: Tensor) -> None:
        super().__init__()
        self.twin, self.lambda_ = twin, lambda_
        self.register_buffer("gains", gains.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor, t: Passed, share: Tensor) -> Tensor:
        """``share: (B,)``: what a squared error of each picture counts."""
        twin, unit = self.twin, self.twin.unit
        count = x.shape[0] * x.shape[2] * x.shape[3]
        out = twin.run("synthesis", round_ste(t.y_hat * unit))
        errors = ((out - (t.x_hat * 255).clamp(0, 255)) ** 2).mean((1, 2, 3))
        loss = self.lambda_ * torch.mean(errors * share)
        error = twin.run("analysis", x) / unit - t.y
        loss = loss + self.lambda_ / 3 * (self.gains * error**2).sum() / count
        if t.z is None or t.z_hat is None or t.scales is None:
            return loss
        z_unit = 2.0**Z_FRACTION_BITS
        error = twin.run("hyper_analysis", round_ste(t.y * unit)) / z_unit - t.z
        loss = loss + 0.5 * _softened(error**2).sum() / count
        prior = twin.integer.prior
        features = prior.begin(twin.run, round_ste(t.z_hat * z_unit))
        scales, means = prior.all_parameters(twin.run, features, round_ste(t.y_hat * unit))
        # bits of a Gaussian coded with a slightly wrong mean or scale, widened by the unit bin
        spread = t.scales.clamp(min=0.11) ** 2 + 1 / 12
        if means is not None:
            shift = means / unit - t.means
            loss = loss + _softened(shift**2 / spread).sum() / (2 * math.log(2) * count)
        error = (scales / unit).clamp(min=0.11) - t.scales.clamp(min=0.11)
        return loss + _softened(error**2 / spread).sum() / (math.log(2) * count)


class Exact(torch.nn.Module):
    """J itself, latents truly rounded for the distortion; ``share`` as in `Mismatch`."""

    def __init__(self, twin: Twin, lambda_: float, noise: bool) -> None:
        super().__init__()
        self.twin, self.lambda_, self.noise = twin, lambda_, noise

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        return self.twin(x, self.noise, share).cost(self.lambda_, x.shape[0] * x.shape[2] * x.shape[3])


class Judge:
    """The loss of a batch.

    "J": the codec's cost. Its gradient mixes what quantization did with all that training left undone, so on
    few pictures it learns the pictures. "difference": the square of what quantization adds to J (HAMP-LIC's
    form of RDO-PTQ's objective), which ends where J is the float codec's. "reconstruction": around a trained
    codec J rises with the squares of what quantization changes, and those need no ground truth: lambda times
    the error of the decoded picture, of the latent times the synthesis gain, and the bits that wrong means
    and scales cost. Each segment meets the float codec's own inputs.

    Squared errors of pictures count by the inverse of what the float codec leaves of each (`distortion`),
    unless ``rdo.relative`` is false. ``typical``: such an error on average.
    """

    def __init__(self, twin: Twin, codec: Codec, rdo: RdoConfig, gains: Tensor, typical: float) -> None:
        self.codec, self.rdo, self.twin, self.typical = codec, rdo, twin, typical
        self.reconstruct = rdo.objective == "reconstruction"
        twin.soft_end = self.reconstruct
        self.student: Any = (
            Mismatch(twin, rdo.weight, gains)
            if self.reconstruct
            else Exact(twin, rdo.weight, rdo.rate == "noise" and rdo.objective == "J")
        )

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            targets = through(self.codec, x / 255)
            errors = ((targets.x_hat * 255).clamp(0, 255) - x).square().mean((1, 2, 3))
            share = torch.ones_like(errors)
            if self.rdo.relative:
                share = self.typical / errors.clamp(min=LEAST_MSE)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.rdo.bf16):
            if self.reconstruct:
                return self.student(x, targets, share)
            j = self.student(x, share)
        if self.rdo.objective == "J":
            return j
        return (j - self.rdo.weight * torch.mean(errors * share) - self._rate(x, targets)) ** 2

    @torch.no_grad()
    def _rate(self, x: Tensor, t: Passed) -> Tensor:
        """Bits per pixel of the float codec."""
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        if t.z_hat is None or t.scales is None:
            return self.twin.factorized_bits(t.y_hat) / pixels
        p = gaussian_likelihood(t.y_hat - t.means, lower_bound(t.scales, 0.11))
        return (self.twin.factorized_bits(t.z_hat) - torch.log2(p).sum()) / pixels
