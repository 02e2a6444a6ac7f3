"""What gradients of a calibration follow: J itself, or its expansion around the float codec."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..codecs import FloatCodec
from ..integer import Z_FRACTION_BITS
from .rdo_config import RdoConfig
from .twin import Twin, round_ste


def _softened(squares: Tensor) -> Tensor:
    """Squares, growing like a logarithm where they are large: a picture on which the float codec itself
    leaves what it was trained for must not decide.
    """
    return 10 * torch.log1p(squares / 10)


class Mismatch(torch.nn.Module):
    """J to second order around the float codec, network by network; see `Judge`."""

    gains: Tensor

    def __init__(self, twin: Twin, lambda_: float, gains: Tensor) -> None:
        super().__init__()
        self.twin, self.lambda_ = twin, lambda_
        self.register_buffer("gains", gains.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor, t: tuple[Tensor | None, ...]) -> Tensor:
        twin, unit = self.twin, self.twin.unit
        y, z, z_hat, scales, means, y_hat, x_hat = t
        count = x.shape[0] * x.shape[2] * x.shape[3]
        assert y is not None and y_hat is not None and x_hat is not None
        out = twin.run("g_s", round_ste(y_hat * unit))
        loss = self.lambda_ * torch.mean((out - (x_hat * 255).clamp(0, 255)) ** 2)
        error = twin.run("g_a", x) / unit - y
        loss = loss + self.lambda_ / 3 * (self.gains * error**2).sum() / count
        if z is None or z_hat is None or scales is None:
            return loss
        z_unit = 2.0**Z_FRACTION_BITS
        error = twin.run("h_a", twin.hyper_input(round_ste(y * unit))) / z_unit - z
        loss = loss + 0.5 * _softened(error**2).sum() / count
        out = twin.run("h_s", round_ste(z_hat * z_unit)) / unit
        # bits of a Gaussian coded with a slightly wrong mean or scale, widened by the unit bin
        spread = scales.clamp(min=0.11) ** 2 + 1 / 12
        if twin.integer.has_means and means is not None:
            out, shift = out.chunk(2, 1)
            loss = loss + _softened((shift - means) ** 2 / spread).sum() / (2 * math.log(2) * count)
        error = out.clamp(min=0.11) - scales.clamp(min=0.11)
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
    network meets the float codec's own inputs.
    """

    def __init__(self, twin: Twin, codec: FloatCodec, rdo: RdoConfig, gains: Tensor) -> None:
        self.codec, self.rdo = codec, rdo
        self.reconstruct = rdo.objective == "reconstruction"
        twin.stage(twin.order["g_s"][-1]).soft_end = self.reconstruct
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
            targets = self.codec.rounded(x / 255)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.rdo.bf16):
            return self.student(x, tuple(vars(targets).values()))
