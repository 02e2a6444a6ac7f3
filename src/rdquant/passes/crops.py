"""What a calibration shows the codec: random crops for gradients, a fixed batch to compare by."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..hardware import layout
from ..pixels import pad_to, to_batch


class Crops:
    """Random crops of calibration pictures, a pure function of (seed, step)."""

    def __init__(self, pictures: list[np.ndarray], side: int, seed: int) -> None:
        self.pictures = [pad_to(p, side) if min(p.shape[:2]) < side else p for p in pictures]
        self.side, self.seed = side, seed

    def batch(self, step: int, count: int) -> Tensor:
        """``(count, 3, side, side)`` float32 of 0..255, half of them mirrored."""
        random = np.random.default_rng((self.seed, step))
        crops = []
        for _ in range(count):
            p = self.pictures[random.integers(len(self.pictures))]
            top, left = (random.integers(n - self.side + 1) for n in p.shape[:2])
            crop = p[top : top + self.side, left : left + self.side]
            crops.append(np.ascontiguousarray(crop[:, ::-1] if random.random() < 0.5 else crop))
        x = torch.from_numpy(np.concatenate([to_batch(c) for c in crops])).float()
        return x.contiguous(memory_format=layout(x.device))


def probe(pictures: list[np.ndarray], side: int = 256, most: int = 10) -> Tensor:
    """A fixed batch of centre crops on which the grid compares scales. ``(B, 3, side, side)``, 0..255."""
    crops = []
    for i in range(min(most, len(pictures))):
        p = pictures[i * len(pictures) // min(most, len(pictures))]
        p = pad_to(p, side) if min(p.shape[:2]) < side else p
        top, left = (p.shape[0] - side) // 2, (p.shape[1] - side) // 2
        crops.append(to_batch(p[top : top + side, left : left + side]))
    x = torch.from_numpy(np.concatenate(crops)).float()
    return x.contiguous(memory_format=layout(x.device))
