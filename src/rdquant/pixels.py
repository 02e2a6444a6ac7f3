"""Pictures as arrays and as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pad_to(pixels: np.ndarray, multiple: int) -> np.ndarray:
    """``(H, W, 3)`` -> sides rounded up to a multiple by repeating the last row and column."""
    h, w = pixels.shape[:2]
    return np.pad(pixels, ((0, -h % multiple), (0, -w % multiple), (0, 0)), mode="edge")


def to_tensor(pixels: np.ndarray) -> Tensor:
    """``(H, W, 3)`` uint8 -> ``(1, 3, H, W)`` uint8, channels last in memory."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]


def to_pixels(tensor: Tensor) -> np.ndarray:
    """``(1, 3, H, W)`` uint8 -> ``(H, W, 3)`` uint8."""
    return tensor[0].permute(1, 2, 0).cpu().numpy()
