"""Pictures as files have them, and as networks take them."""

from __future__ import annotations

import numpy as np


def pad_to(pixels: np.ndarray, multiple: int) -> np.ndarray:
    """``(H, W, 3)`` -> sides rounded up to a multiple by repeating the last row and column. A copy."""
    h, w = pixels.shape[:2]
    if h % multiple == w % multiple == 0:
        return pixels.copy()  # which padding takes ten times as long for
    return np.pad(pixels, ((0, -h % multiple), (0, -w % multiple), (0, 0)), mode="edge")


def to_batch(pixels: np.ndarray) -> np.ndarray:
    """``(H, W, 3)`` uint8 -> ``(1, 3, H, W)`` uint8, channels last in memory: a view.

    Its first stride is that of a batch, by which PyTorch sees the layout.
    """
    return pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2)


def to_pixels(batch: np.ndarray) -> np.ndarray:
    """``(1, 3, H, W)`` uint8 -> ``(H, W, 3)`` uint8."""
    return batch[0].transpose(1, 2, 0)
