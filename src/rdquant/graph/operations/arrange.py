"""Operations that only move integers: they are the same on real numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BadModel
from ...lazy import F, torch
from .base import Operation, Port, Rounding

if TYPE_CHECKING:
    from torch import Tensor


class _Arrangement(Operation):
    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        return self.real(*q)

    def check(self, name: str, *ports: Port) -> Port:
        channels = self.channels(*(p.channels for p in ports))
        return Port(channels, min(p.lo for p in ports), max(p.hi for p in ports))


@dataclass(frozen=True)
class Concatenate(_Arrangement):
    """Channels of all inputs, one after another."""

    kind = "concatenate"
    arity = None

    def channels(self, *channels: int) -> int:
        return sum(channels)

    def real(self, *x: Tensor) -> Tensor:
        return torch.cat(x, 1)

    def exact(self, *q: np.ndarray) -> np.ndarray:
        return np.concatenate(q, 1)


@dataclass(frozen=True)
class Slice(_Arrangement):
    """Channels ``start .. stop - 1``."""

    kind = "slice"

    start: int
    stop: int

    def channels(self, *channels: int) -> int:
        if not 0 <= self.start < self.stop <= channels[0]:
            raise BadModel(f"channels {self.start}..{self.stop - 1} of {channels[0]}")
        return self.stop - self.start

    def real(self, *x: Tensor) -> Tensor:
        return x[0][:, self.start : self.stop]

    def exact(self, *q: np.ndarray) -> np.ndarray:
        return q[0][:, self.start : self.stop]


@dataclass(frozen=True)
class Shuffle(_Arrangement):
    """Pixel shuffle: ``(B, C r^2, H, W)`` -> ``(B, C, H r, W r)``, as PyTorch's."""

    kind = "shuffle"

    factor: int

    @property
    def up(self) -> int:
        return self.factor

    def channels(self, *channels: int) -> int:
        if not 1 <= self.factor <= 64 or channels[0] % self.factor**2:
            raise BadModel(f"{channels[0]} channels cannot be shuffled by {self.factor}")
        return channels[0] // self.factor**2

    def real(self, *x: Tensor) -> Tensor:
        return F.pixel_shuffle(x[0], self.factor)

    def exact(self, *q: np.ndarray) -> np.ndarray:
        (b, c, h, w), r = q[0].shape, self.factor
        parts = q[0].reshape(b, c // r**2, r, r, h, w).transpose(0, 1, 4, 2, 5, 3)
        return parts.reshape(b, c // r**2, h * r, w * r)


@dataclass(frozen=True)
class Unshuffle(_Arrangement):
    """The inverse of `Shuffle`: ``(B, C, H r, W r)`` -> ``(B, C r^2, H, W)``."""

    kind = "unshuffle"

    factor: int

    @property
    def down(self) -> int:
        return self.factor

    def channels(self, *channels: int) -> int:
        if not 1 <= self.factor <= 64:
            raise BadModel(f"a picture cannot be unshuffled by {self.factor}")
        return channels[0] * self.factor**2

    def real(self, *x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x[0], self.factor)

    def exact(self, *q: np.ndarray) -> np.ndarray:
        (b, c, h, w), r = q[0].shape, self.factor
        parts = q[0].reshape(b, c, h // r, r, w // r, r).transpose(0, 1, 3, 5, 2, 4)
        return parts.reshape(b, c * r**2, h // r, w // r)
