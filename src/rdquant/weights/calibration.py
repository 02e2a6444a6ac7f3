"""What flows between the layers of a float codec, seen on calibration pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..codecs import FloatCodec
from ..errors import CalibrationError
from ..files.images import read_image
from ..pixels import pad_to, to_tensor
from .rounding import gram_matrices

#: of a channel's histogram
BINS = 2048
#: pictures that are coded better than this count no more
LEAST_MSE = 4.0


@dataclass
class Observed:
    """Extremes and histograms of one tensor ``(B, C, H, W)``, per channel, over every position.

    All positions count, not a sample: activations behind inverse GDN have tails so heavy that what clips
    on other pictures is what a sample has not seen.
    """

    low: Tensor | None = None  #: (C,)
    high: Tensor | None = None
    #: (C, BINS) float64, counts over [-reach, reach] of each channel
    counts: Tensor | None = None
    reach: Tensor | None = None  #: (C,), grows by doubling

    def add(self, t: Tensor, weight: float = 1.0) -> None:
        """Take note of a tensor, each position counting ``weight``. Raises `CalibrationError` if it is not
        finite.
        """
        rows = t.detach().float().permute(0, 2, 3, 1).reshape(-1, t.shape[1])
        if not bool(torch.isfinite(rows).all()):
            raise CalibrationError(
                "an activation is not finite; the model or a calibration picture is broken"
            )
        low, high = rows.amin(0), rows.amax(0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        channels = rows.shape[1]
        top = torch.maximum(low.abs(), high.abs())
        if self.counts is None or self.reach is None:
            self.counts = torch.zeros(channels, BINS, dtype=torch.float64)
            self.reach = torch.exp2(torch.ceil(torch.log2(top.clamp(min=1e-12))))
        while bool((grow := top > self.reach).any()):
            folded = self.counts[grow].reshape(-1, BINS // 2, 2).sum(2)
            self.counts[grow] = torch.nn.functional.pad(folded, (BINS // 4, BINS // 4))
            self.reach = torch.where(grow, 2 * self.reach, self.reach)
        bins = ((rows / self.reach + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
        flat = (bins + BINS * torch.arange(channels)).flatten()
        self.counts += weight * torch.bincount(flat, minlength=channels * BINS).reshape(channels, BINS)

    @property
    def centres(self) -> Tensor:
        """Value of each bin, ``(C, BINS)`` float64."""
        assert self.reach is not None
        return self.reach.double()[:, None] * ((2 * torch.arange(BINS) + 1) / BINS - 1)

    @property
    def largest(self) -> float:
        """Largest magnitude seen anywhere."""
        assert self.low is not None and self.high is not None
        return max(float(-self.low.min()), float(self.high.max()))

    def error(self, scale: Tensor, lo: int, hi: int) -> Tensor:
        """Squared error of each channel, summed over positions, if stored as ``clip(round(x / scale))``.

        ``scale: (C,)`` -> ``(C,)`` float64.
        """
        assert self.counts is not None
        s, x = scale.double()[:, None], self.centres
        return (self.counts * ((x / s).round_().clamp_(lo, hi).mul_(s).sub_(x)).square_()).sum(1)

    def quantiles(self, outside: float) -> tuple[Tensor, Tensor]:
        """Per channel, the values below and above which a fraction ``outside`` lies. Two ``(C,)``."""
        assert self.counts is not None
        share = self.counts.cumsum(1) / self.counts.sum(1, keepdim=True)
        x = self.centres
        low = x.gather(1, (share < outside).sum(1, keepdim=True).clamp(max=BINS - 1))
        high = x.gather(1, (share < 1 - outside).sum(1, keepdim=True).clamp(max=BINS - 1))
        return low[:, 0], high[:, 0]


@dataclass
class Calibration:
    """All that conversion knows of the calibration pictures."""

    #: by module name (``g_a.0``: output of module 0 of g_a), and ``y``, ``hyper_input``
    tensors: dict[str, Observed] = field(default_factory=dict)
    #: by convolution: Gram matrix of its inputs, per output phase (`rdquant.weights.rounding`)
    grams: dict[str, list[Tensor]] = field(default_factory=dict)
    #: by convolution before a GDN: what errors of its outputs cost, see `rdquant.weights.mixing`
    sensitivities: dict[str, Tensor] = field(default_factory=dict)
    #: synthesis gain of each latent channel, (M,) float64, see `rdquant.latents.gains`
    gains: Tensor | None = None


def picture_weight(x_hat: Tensor, x: Tensor) -> float:
    """What a picture counts: what an error does to its PSNR depends on the error it has anyway.

    Both ``(1, 3, H, W)`` in [0, 1].
    """
    return 1 / max(float(torch.mean((x_hat.clamp(0, 1) - x) ** 2)) * 255**2, LEAST_MSE)


def observe(
    codec: FloatCodec,
    pictures: list[np.ndarray],
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Run the codec with true rounding on ``pictures`` (``(H, W, 3)`` uint8) and watch every layer.

    Each picture counts by the inverse of its mean squared error, so that ranges and roundings minimise
    what is lost relative to it (in dB), and a few pictures of high contrast do not decide alone.

    Raises `CalibrationError` when there are no pictures, or one gives values that are not finite.
    """
    if not pictures:
        raise CalibrationError("no calibration pictures")
    seen = Calibration()
    generator = torch.Generator().manual_seed(0)
    flows: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            flows[name] = (module, inputs[0], out)

        return hook

    handles = [
        module.register_forward_hook(watch(f"{part}.{name}"))
        for part in ("g_a", "g_s", "h_a", "h_s")
        if hasattr(codec, part)
        for name, module in getattr(codec, part).named_children()
    ]
    try:
        with torch.no_grad():
            for i, pixels in enumerate(pictures):
                x = to_tensor(pad_to(pixels, codec.downsampling)).float() / 255
                x_hat = codec(x, "round").x_hat
                _note(codec, flows, seen, picture_weight(x_hat, x), len(pictures), generator)
                if progress:
                    progress(i + 1, len(pictures))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _note(
    codec: FloatCodec,
    flows: dict[str, tuple[nn.Module, Tensor, Tensor]],
    seen: Calibration,
    weight: float,
    pictures: int,
    generator: torch.Generator,
) -> None:
    """Take note of all that one picture made flow."""
    for name, (module, taken, out) in flows.items():
        seen.tensors.setdefault(name, Observed()).add(out, weight)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            new = [weight * g for g in gram_matrices(module, taken, pictures, generator)]
            old = seen.grams.get(name)
            seen.grams[name] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]
    y = flows[f"g_a.{list(codec.g_a.named_children())[-1][0]}"][2]
    seen.tensors.setdefault("y", Observed()).add(y, weight)
    seen.tensors.setdefault("hyper_input", Observed()).add(codec.hyper_input(y), weight)


def load_calibration(files: list[Path], count: int, side: int) -> list[np.ndarray]:
    """Centre crops of at most ``side`` a side from ``count`` pictures spread evenly over ``files``."""
    count = min(count, len(files))
    crops = []
    for path in (files[i * len(files) // count] for i in range(count)):
        p = read_image(path)
        top, left = max(0, (p.shape[0] - side) // 2), max(0, (p.shape[1] - side) // 2)
        crops.append(p[top : top + side, left : left + side])
    return crops
