"""Serial context: each position from its decoded neighbours (Minnen et al. 2018, "joint" model).

A position (r, c) depends on two rows above, as far as two columns to the right, and on the two positions to
its left. So all positions of one ``c + 3 r`` are independent of each other, and are decoded at a time: a
wavefront, of ``width + 3 (height - 1)`` steps instead of ``height * width``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Part, Prior, Run, register

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
            Part(slice(0, channels), (top * width + left + torch.arange(n) * (width - _SLOPE))[None])
            for top, left, n in _diagonals(height, width)
        ]

    def walk(self, run: Run, features: Tensor, y_hat: Tensor) -> Iterator[tuple[Part, Tensor, Tensor | None]]:
        (b, m, h, w), f = y_hat.shape, features.shape[1]
        # channels last, so that patches along a diagonal are views
        own = features.permute(0, 2, 3, 1).contiguous()
        line, along = w + 2 * _REACH, max(0, w - _SLOPE)  # a diagonal has one position if it is negative
        padded = own.new_zeros(b, h + 2 * _REACH, line, m)
        image = padded.stride(0)
        for part, (top, left, n) in zip(self.parts(m, h, w), _diagonals(h, w), strict=True):
            at = top * line + left
            patches = padded.as_strided(
                (b, n, m, KERNEL, KERNEL), (image, (line - _SLOPE) * m, 1, line * m, m), at * m
            )
            context = run("context", patches.flatten(0, 1), valid=True)
            here = own.as_strided((b, n, f, 1, 1), (h * w * f, along * f, 1, 1, 1), (top * w + left) * f)
            out = run("parameters", here.flatten(0, 1), context)
            scales, means = self.split(out.reshape(b, n, -1).transpose(1, 2)[:, :, None])
            yield part, scales, means
            middle = at + _REACH * (line + 1)
            padded.as_strided((b, n, m), (image, (line - _SLOPE) * m, 1), middle * m).copy_(
                part.take(y_hat)[:, :, 0].transpose(1, 2)
            )

    def all_parameters(self, run: Run, features: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.split(run("parameters", features, run("context", y_hat)))
