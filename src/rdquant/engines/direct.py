"""Convolutions as plain loops in float64: grouped ones, and those of activations that have no 16 bits."""

from __future__ import annotations

import numpy as np

from ..compiled import njit
from .buffers import store
from .epilogues import PLAIN, enter_real
from .products import LANES, NONE, SPAN


@njit(cache=True, nogil=True)
def convolve(  # type: ignore[no-untyped-def]
    start, stop, x, shift, stride, up, transposed, groups, w, bias, e, out, size, zero, width
):  # fmt: skip
    """Rows ``start .. stop - 1`` of all pictures'.

    ``x: (B, H, W, I)`` int32; ``w: (k, k, I / groups, O)``, ``bias: (O,)`` float64; ``shift``: of the
    first tap. ``e``: `Epilogue`, of no other kind than requantization. ``out: (B, rows, bytes)``, ``width``
    positions a row, stored as `Form` says.
    """
    _, height, across, _ = x.shape
    k, _, inner, channels = w.shape
    outer, line = channels // groups, (channels + LANES - 1) // LANES * LANES
    rows = out.shape[1]
    tile = np.empty(SPAN * line)
    result, none = np.empty(SPAN * line, np.int32), np.empty(0, np.int16)
    for i in range(start, stop):
        b, y = i // rows, i % rows
        for first in range(0, width, SPAN):
            count = min(SPAN, width - first)
            for p in range(count):
                acc = tile[p * line : p * line + channels]
                for o in range(channels):
                    acc[o] = bias[o]
                for ky in range(k):
                    r = y - shift - ky if transposed else y * stride + shift + ky
                    if r % up or r < 0 or r // up >= height:
                        continue
                    for kx in range(k):
                        c = first + p - shift - kx if transposed else (first + p) * stride + shift + kx
                        if c % up or c < 0 or c // up >= across:
                            continue
                        here = x[b, r // up, c // up]
                        if inner == 1 and outer == 1:
                            for o in range(channels):
                                acc[o] += np.float64(here[o]) * w[ky, kx, 0, o]
                        else:
                            for n in range(groups):
                                for j in range(inner):
                                    v = np.float64(here[n * inner + j])
                                    for o in range(n * outer, (n + 1) * outer):
                                        acc[o] += v * w[ky, kx, j, o]
            if e.kind == PLAIN:
                store(tile, line, count, NONE, channels, zero, out[b, y], size, first * channels, channels)
            else:
                enter_real(tile, line, count, e, none, none, result)
                store(result, line, count, NONE, channels, zero, out[b, y], size, first * channels, channels)
