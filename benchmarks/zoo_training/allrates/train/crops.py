"""Training pictures as one array on the training device; crops are gathered there.

Which crops a step sees is a function of ``(seed, step)``, so a resumed run sees what an unbroken one would.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdquant.files.images import read_image


class CropSource:
    """Random crops, flips and transpositions of pictures held as uint8 ``(P, H, W, 3)``."""

    def __init__(self, files: list[Path], seed: int, device: torch.device) -> None:
        pictures = [read_image(path) for path in files]
        sizes = np.array([p.shape[:2] for p in pictures])
        store = np.zeros((len(pictures), *sizes.max(0), 3), np.uint8)
        for row, picture in zip(store, pictures, strict=True):
            row[: picture.shape[0], : picture.shape[1]] = picture
        self.sizes, self.seed = sizes, seed
        self.store = torch.from_numpy(store).to(device)

    def batch(self, step: int, count: int, side: int) -> Tensor:
        """``(count, 3, side, side)`` float32 in [0, 1], channels last. Pictures smaller than ``side`` are
        drawn again.
        """
        rng = np.random.default_rng((self.seed, step))
        fit = np.flatnonzero(self.sizes.min(1) >= side)
        which = fit[rng.integers(len(fit), size=count)]
        starts = rng.integers(self.sizes[which] - side + 1)
        flips = rng.random((count, 3)) < 0.5
        span = np.arange(side)
        rows = np.where(flips[:, :1], span[::-1], span) + starts[:, :1]
        columns = np.where(flips[:, 1:2], span[::-1], span) + starts[:, 1:]
        device = self.store.device
        index = [
            torch.from_numpy(a).to(device) for a in (which[:, None, None], rows[:, :, None], columns[:, None])
        ]
        crops = self.store[index[0], index[1], index[2]]
        turned = torch.from_numpy(flips[:, 2]).to(device)[:, None, None, None]
        crops = torch.where(turned, crops.transpose(1, 2), crops)
        return crops.permute(0, 3, 1, 2).float().div_(255)


def centre_crops(files: list[Path], count: int, side: int, device: torch.device) -> Tensor:
    """``(count, 3, side, side)`` uint8: of pictures spread evenly over ``files``, at least ``side`` large."""
    store = CropSource(files[:: len(files) // count][:count], 0, device)
    starts = (store.sizes - side) // 2
    crops = [p[t : t + side, s : s + side] for p, (t, s) in zip(store.store, starts, strict=True)]
    return torch.stack(crops).permute(0, 3, 1, 2)
