"""What gradients of a calibration follow: J itself, or its expansion around the float codec."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..codec import Z_FRACTION_BITS, Codec
from ..graph.operations import round_ste
from .flow import Passed, through
from .rdo_config import RdoConfig
from .twin import Twin


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

    def forward(self, x: Tensor, t: Passed) -> Tensor:
        twin, unit = self.twin, self.twin.unit
        count = x.shape[0] * x.shape[2] * x.shape[3]
        out = twin.run("synthesis", round_ste(t.y_hat * unit))
        loss = self.lambda_ * torch.mean((out - (t.x_hat * 255).clamp(0, 255)) ** 2)
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
    """J itself, latents truly rounded for the distortion."""

    def __init__(self, twin: Twin, lambda_: float, noise: bool) -> None:
        super().__init__()
        self.twin, self.lambda_, self.noise = twin, lambda_, noise

    def forward(self, x: Tensor) -> Tensor:
        return self.twin(x, self.noise).cost(self.lambda_, x.shape[0] * x.shape[2] * x.shape[3])


class Judge:
    """The loss of a batch.

    "J": the codec's cost. Its gradient mixes what quantization did with all that training left undone, so on
    few pictures it learns the pictures. "reconstruction": around a trained codec J rises with the squares
    of what quantization changes, and those need no ground truth: lambda times the error of the decoded
    picture, of the latent times the synthesis gain, and the bits that wrong means and scales cost. Each
    segment meets the float codec's own inputs.
    """

    def __init__(self, twin: Twin, codec: Codec, rdo: RdoConfig, gains: Tensor) -> None:
        self.codec, self.rdo = codec, rdo
        self.reconstruct = rdo.objective == "reconstruction"
        twin.soft_end = self.reconstruct
        self.student: Any = (
            Mismatch(twin, rdo.lambda_, gains)
            if self.reconstruct
            else Exact(twin, rdo.lambda_, rdo.rate == "noise")
        )

    def __call__(self, x: Tensor) -> Tensor:
        if not self.reconstruct:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.rdo.bf16):
                return self.student(x)
        with torch.no_grad():
            targets = through(self.codec, x / 255)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.rdo.bf16):
            return self.student(x, targets)
