"""What pictures cost a twin with latents as its files hold them, with gradients for what is to learn.

`CodedCosts` has gradients for all networks. A codec whose levels are the nearest (and one with serial
contexts has no others) is learned from as parents are: true levels for the synthesis, noise for the rate. If
an encoder searches for levels, the search itself chooses them here, and bits are those of the coder's tables
(`rdquant.latents.learning`). `StoredLatents` has them for the synthesis: latents are computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..coder import ImageCoder
from ..latents.coding import ScalarCoding
from ..latents.learning import InTraining, LevelBits, true_levels
from ..latents.parts import quantized
from .twin import Twin

#: bits of a batch (0 where they cannot move), and the mean squared error of each picture, ``(B,)``
Found = tuple[Tensor, Tensor]


class Costs(Protocol):
    """``pixels: (K, 3, H, W)`` uint8, of which a batch is taken at one of the codec's qualities."""

    pixels: Tensor

    def batch(self, random: np.random.Generator, size: int, quality: int) -> Found: ...


class CodedCosts:
    """`Costs` of whole files. ``coders``: the integer codec at its qualities."""

    def __init__(self, twin: Twin, coders: list[ImageCoder], pixels: Tensor) -> None:
        self.twin, self.coders, self.pixels = twin, coders, pixels
        self._searching = [InTraining.of(coder.codec, self._run) for coder in coders]
        self._bits = LevelBits(coders[0].coding, coders[0].codec)

    @torch.no_grad()
    def _run(self, name: str, *inputs: np.ndarray, valid: bool = False) -> np.ndarray:
        given = (torch.from_numpy(t.astype(np.float32)) for t in inputs)
        return _integers(self.twin.run(name, *given, valid=valid))

    def batch(self, random: np.random.Generator, size: int, quality: int) -> Found:
        return self.of(self.pixels[random.integers(len(self.pixels), size=size)].float(), quality)

    def of(self, x: Tensor, quality: int = 0) -> Found:
        """``x: (B, 3, H, W)``, holding 0..255."""
        twin, coding = self.twin, self.coders[quality].coding
        twin.take_gains(self.coders[quality].codec)
        y = twin.run("analysis", x)
        if isinstance(coding, ScalarCoding) and coding.search is None:
            y_hat, bits_y, bits_z = twin.latents(y, noise=True)
            return bits_y + bits_z, _errors(twin, y_hat, x)
        prior = twin.integer.prior
        z_hat, bits_z = twin.hyper(twin.run("hyper_analysis", y), noise=True)
        features = prior.begin(twin.run, z_hat)
        search = self._searching[quality]
        levels, found, parts = true_levels(search, _integers(features), _integers(y), coding)
        y_hat = y + (torch.from_numpy(found.astype(np.float32)) - y).detach()
        scales, means = prior.all_parameters(twin.run, features, y_hat)
        means = torch.zeros_like(y) if means is None else means
        bits_y = self._bits(coding, levels, parts, y, scales, means).sum()
        return bits_y + bits_z, _errors(twin, y_hat, x)


class StoredLatents:
    """`Costs` of the synthesis, each picture at the quality whose turn it is. ``coders`` as above."""

    def __init__(
        self, twin: Twin, coders: list[ImageCoder], pixels: Tensor, say: Callable[[int, int], None]
    ) -> None:
        self.twin, self.coders, self.pixels = twin, coders, pixels
        found = []
        for k, x in enumerate(pixels.split(1)):
            own = coders[k % len(coders)]
            found.append(quantized(own.codec, x.numpy(), own.coding).y_hat.astype(np.int16))
            say(k + 1, len(pixels))
        #: ``(K, M, h, w)`` int16
        self.y_hat = torch.from_numpy(np.concatenate(found))

    def batch(self, random: np.random.Generator, size: int, quality: int) -> Found:
        count = -(-(len(self.pixels) - quality) // len(self.coders))
        return self.of(torch.from_numpy(random.integers(count, size=size)) * len(self.coders) + quality)

    def of(self, indexes: Tensor) -> Found:
        """Of pictures at one quality."""
        self.twin.take_gains(self.coders[int(indexes[0]) % len(self.coders)].codec)
        x, y_hat = self.pixels[indexes].float(), self.y_hat[indexes].float()
        return torch.zeros(()), _errors(self.twin, y_hat, x)


def _errors(twin: Twin, y_hat: Tensor, x: Tensor) -> Tensor:
    return ((twin.run("synthesis", y_hat) - x) ** 2).mean((1, 2, 3))


def _integers(values: Tensor) -> np.ndarray:
    return np.rint(values.detach().numpy()).astype(np.int32)
