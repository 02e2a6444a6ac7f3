"""What flows between the operations of a float codec, seen on calibration pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..compiled import njit
from ..errors import CalibrationError
from ..files.images import read_image
from ..graph import Node
from ..graph.operations import Convolution
from ..pixels import pad_to, to_batch
from ..quality import at_spread
from .flow import through
from .mixed import Mixing
from .rounding import gram_matrices

#: of a channel's histogram
BINS = 2048
#: pictures that are coded better than this count no more
LEAST_MSE = 4.0


@njit(cache=True, nogil=True)
def _clip_errors(counts, centres, scale, lo, hi, clip_cost, out):  # type: ignore[no-untyped-def]
    for c in range(len(scale)):
        total, s = 0.0, scale[c]
        for b in range(counts.shape[1]):
            if counts[c, b] > 0:
                x = centres[c, b]
                q = np.rint(x / s)
                error = min(max(q, lo), hi) * s - x
                total += counts[c, b] * error * error * (clip_cost if q < lo or q > hi else 1.0)
        out[c] = total


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
        """Take note of a tensor, each position counting ``weight``."""
        rows = t.detach().float().permute(0, 2, 3, 1).reshape(-1, t.shape[1])
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

    @functools.cached_property
    def centres(self) -> Tensor:
        """Value of each bin, ``(C, BINS)`` float64."""
        assert self.reach is not None  # all pictures have been added
        return self.reach.double()[:, None] * ((2 * torch.arange(BINS) + 1) / BINS - 1)

    @property
    def largest(self) -> float:
        """Largest magnitude seen anywhere."""
        assert self.low is not None and self.high is not None
        return max(float(-self.low.min()), float(self.high.max()))

    def error(self, scale: Tensor, lo: int, hi: int, clip_cost: float = 1.0) -> Tensor:
        """Squared error of each channel, summed over positions, if stored as ``clip(round(x / scale))``.

        ``scale: (C,)`` -> ``(C,)`` float64. ``clip_cost``: how often a clipped value's error counts.
        """
        assert self.counts is not None
        out = np.empty(len(scale))
        _clip_errors(
            self.counts.numpy(),
            self.centres.numpy(),
            scale.double().numpy(),
            float(lo),
            float(hi),
            float(clip_cost),
            out,
        )
        return torch.from_numpy(out)

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

    #: by node (`rdquant.graph.Node`), and ``y``
    tensors: dict[str, Observed] = field(default_factory=dict)
    #: by convolution: Gram matrices of its inputs (`rdquant.passes.rounding`)
    grams: dict[str, list[Tensor]] = field(default_factory=dict)
    #: by convolution: what errors of its outputs cost, see `rdquant.passes.mixing`
    sensitivities: dict[str, Tensor] = field(default_factory=dict)
    #: matrices that mix channels, by the node that they are inserted as
    mixings: dict[str, Mixing] = field(default_factory=dict)
    #: synthesis gain of each latent channel, (M,) float64, see `rdquant.latents.gains`
    gains: Tensor | None = None


def picture_weight(x_hat: Tensor, x: Tensor) -> float:
    """What a picture counts: what an error does to its PSNR depends on the error it has anyway.

    Both ``(1, 3, H, W)`` in [0, 1].
    """
    return 1 / max(float(torch.mean((x_hat.clamp(0, 1) - x) ** 2)) * 255**2, LEAST_MSE)


@torch.no_grad()
def observe(
    codec: Codec,
    pictures: list[np.ndarray],
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Run a float codec with true rounding on ``pictures`` (``(H, W, 3)`` uint8) and watch every operation.

    Each picture counts by the inverse of its mean squared error, so that ranges and roundings minimise
    what is lost relative to it (in dB), and a few pictures of high contrast do not decide alone.

    Raises `CalibrationError` when there are no pictures, or one gives values that are not finite.
    """
    seen = Calibration()
    generator = torch.Generator().manual_seed(0)
    for weight, y, flows in _flowing(codec, pictures, progress):
        for node, taken, out in flows:
            seen.tensors.setdefault(node.name, Observed()).add(out, weight)
            if isinstance(node.op, Convolution):
                new = gram_matrices(node.op, taken, len(pictures), generator)
                if node.name not in seen.grams:
                    seen.grams[node.name] = [torch.zeros(g.shape, dtype=torch.float64) for g in new]
                for total, gram in zip(seen.grams[node.name], new, strict=True):
                    total.add_(gram, alpha=weight)
        seen.tensors.setdefault("y", Observed()).add(y, weight)
    return seen


@torch.no_grad()
def extremes(
    codec: Codec, pictures: list[np.ndarray], progress: Callable[[int, int], None] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """By node, lowest and highest of each channel on ``pictures``: ``(C,)`` each. Raises as `observe`."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for _, _, flows in _flowing(codec, pictures, progress):
        for node, _, out in flows:
            low, high = out.amin((0, 2, 3)), out.amax((0, 2, 3))
            if node.name in found:
                low, high = torch.minimum(low, found[node.name][0]), torch.maximum(high, found[node.name][1])
            found[node.name] = low, high
    return found


def _flowing(
    codec: Codec, pictures: list[np.ndarray], progress: Callable[[int, int], None] | None
) -> Iterator[tuple[float, Tensor, list[tuple[Node, Tensor, Tensor]]]]:
    """Of each picture: its weight, y, and every node with what it takes first and gives."""
    if not pictures:
        raise CalibrationError("no calibration pictures")
    for i, pixels in enumerate(pictures):
        x = torch.from_numpy(to_batch(pad_to(pixels, codec.downsampling))).float().contiguous() / 255
        flows: list[tuple[Node, Tensor, Tensor]] = []

        def note(
            network: str, node: Node, taken: tuple[Tensor, ...], out: Tensor, flows: list = flows
        ) -> None:
            if not bool(torch.isfinite(out).all()):
                raise CalibrationError(
                    "an activation is not finite; the model or a calibration picture is broken"
                )
            flows.append((node, taken[0], out))

        passed = through(at_spread(codec, i), x, note)
        yield picture_weight(passed.x_hat, x), passed.y, flows
        if progress:
            progress(i + 1, len(pictures))


def load_calibration(files: list[Path], count: int, side: int) -> list[np.ndarray]:
    """Centre crops of at most ``side`` a side from ``count`` pictures spread evenly over ``files``."""
    count = min(count, len(files))
    crops = []
    for path in (files[i * len(files) // count] for i in range(count)):
        p = read_image(path)
        top, left = max(0, (p.shape[0] - side) // 2), max(0, (p.shape[1] - side) // 2)
        crops.append(p[top : top + side, left : left + side])
    return crops
