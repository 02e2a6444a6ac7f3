"""Serial context: each position from its decoded neighbours (Minnen et al. 2018, "joint" model).

A position (r, c) depends on two rows above, as far as two columns to the right, and on the two positions to
its left. So all positions of one ``c + 3 r`` are independent of each other, and are decoded at a time: a
wavefront, of ``width + 3 (height - 1)`` steps instead of ``height * width``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .base import Part, Prior, Run, RunArrays, register

if TYPE_CHECKING:
    from torch import Tensor

#: of the masked convolution
KERNEL = 5
_REACH = KERNEL // 2
#: columns that a position waits for in the row above, and itself
_SLOPE = _REACH + 1


def _diagonals(height: int, width: int) -> Iterator[tuple[int, int, int]]:
    """First row and column of each step, and its positions: each next one is a row down, 3 columns left."""
    for k in range(width + _SLOPE * (height - 1)):
        top = max(0, -(-(k - width + 1) // _SLOPE))
        count = min(height - 1, k // _SLOPE) + 1 - top
        if count > 0:
            yield top, k - _SLOPE * top, count


@register
@dataclass(frozen=True)
class Serial(Prior):
    """Networks: "context", a masked 5x5 convolution over y_hat; "parameters", 1x1 over both contexts."""

    kind = "serial"
    no_trellis = "a level changes the context of the levels next to it"

    means: bool = True

    @property
    def networks(self) -> dict[str, tuple[str, ...]]:
        return {
            **super().networks,
            "context": ("y_hat",),
            "parameters": ("hyper_synthesis", "context"),
        }

    @property
    def pointwise(self) -> tuple[str, ...]:
        return ("parameters",)

    @property
    def masked(self) -> tuple[str, ...]:
        return ("context",)

    def outputs(self, channels: int) -> dict[str, int]:
        return {"parameters": channels}

    def parts(self, channels: int, height: int, width: int) -> list[Part]:
        return [
            Part(slice(0, channels), (top * width + left + np.arange(n) * (width - _SLOPE))[None])
            for top, left, n in _diagonals(height, width)
        ]

    def walk(
        self, run: RunArrays, features: np.ndarray, y_hat: np.ndarray
    ) -> Iterator[tuple[Part, np.ndarray, np.ndarray | None]]:
        (b, m, h, w), f = y_hat.shape, features.shape[1]
        # channels last, so that patches along a diagonal are views
        own = np.ascontiguousarray(features.transpose(0, 2, 3, 1)).reshape(b, h * w, f)
        line = w + 2 * _REACH
        padded = np.zeros((b, (h + 2 * _REACH) * line, m), y_hat.dtype)
        image, at, channel = padded.strides
        # a diagonal has one position if this is negative
        step, along = (line - _SLOPE) * at, max(0, w - _SLOPE)
        for part, (top, left, n) in zip(self.parts(m, h, w), _diagonals(h, w), strict=True):
            patches = as_strided(
                padded[:, top * line + left :],
                (b, n, m, KERNEL, KERNEL),
                (image, step, channel, line * at, at),
            )
            context = run("context", patches.reshape(b * n, m, KERNEL, KERNEL), valid=True)
            first = top * w + left
            here = own[:, first : first + (n - 1) * along + 1 : max(1, along)]
            out = run("parameters", here.reshape(b * n, f, 1, 1), context)
            scales, means = self.split(out.reshape(b, n, -1).swapaxes(1, 2)[:, :, None])
            yield part, scales, means
            middle = (top + _REACH) * line + left + _REACH
            last = middle + (n - 1) * (line - _SLOPE)
            padded[:, middle : last + 1 : line - _SLOPE] = part.take(y_hat)[:, :, 0].swapaxes(1, 2)

    def all_parameters(
        self, run: Run[Tensor], features: Tensor, y_hat: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return self.split(run("parameters", features, run("context", y_hat)))
