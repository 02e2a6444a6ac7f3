"""Training pictures: decoded once into memory, cropped and flipped at random.

Which crop a step sees depends only on ``(seed, step, rank)``, so a resumed run
sees the same pictures as one that was never stopped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..files.images import read_image


class CropSource:
    """Random crops from pictures held in memory as uint8."""

    def __init__(self, files: list[Path], seed: int, rank: int = 0) -> None:
        self.pictures = [read_image(path) for path in files]
        self.seed, self.rank = seed, rank

    def batch(self, step: int, count: int, side: int) -> Tensor:
        """``(count, 3, side, side)`` float32 in [0, 1]; a function of the arguments and the seed."""
        rng = np.random.default_rng((self.seed, step, self.rank))
        out = np.empty((count, side, side, 3), np.uint8)
        for i in range(count):
            picture = self.pictures[rng.integers(len(self.pictures))]
            h, w = picture.shape[:2]
            if min(h, w) < side:
                pad = ((0, max(0, side - h)), (0, max(0, side - w)), (0, 0))
                picture = np.pad(picture, pad, mode="symmetric")
                h, w = picture.shape[:2]
            top, left = rng.integers(h - side + 1), rng.integers(w - side + 1)
            crop = picture[top : top + side, left : left + side]
            if rng.random() < 0.5:
                crop = crop[:, ::-1]
            if rng.random() < 0.5:
                crop = crop.transpose(1, 0, 2)
            out[i] = crop
        return torch.from_numpy(out).permute(0, 3, 1, 2).float().div_(255)


def centre_crops(files: list[Path], count: int, side: int) -> Tensor:
    """``(count, 3, side, side)`` uint8, of pictures spread evenly over ``files``, at least ``side`` large."""
    chosen = files[:: max(1, len(files) // count)][:count]
    crops = []
    for path in chosen:
        picture = read_image(path)
        top, left = ((n - side) // 2 for n in picture.shape[:2])
        if min(top, left) >= 0:
            crops.append(picture[top : top + side, left : left + side])
    if not crops:
        raise UsageError(f"none of {len(chosen)} pictures of the val split is {side} pixels large")
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
