"""Training pictures: decoded once into memory, cropped and flipped at random.

A folder of pictures, optionally with a CSV that has the columns ``file`` and ``split``
(``train``/``val``). Which crop a step sees depends only on ``(seed, step, rank)``, so a resumed run
sees the same pictures as one that was never stopped.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import TrainingError
from ..files.images import list_images, read_image


def split_files(folder: Path, split: str) -> list[Path]:
    """The pictures of one split, sorted. Without a CSV, every 20th picture is the val split.

    Raises `TrainingError` when there is nothing to read.
    """
    if not folder.is_dir():
        raise TrainingError(f"no such folder: {folder}")
    for table in sorted(folder.glob("*.csv")):
        with table.open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        if rows and {"file", "split"} <= set(rows[0]):
            files = sorted(folder / row["file"] for row in rows if row["split"] == split)
            break
    else:
        pictures = list_images(folder)
        files = [p for i, p in enumerate(pictures) if (i % 20 == 0) == (split == "val")]
    if not files:
        raise TrainingError(f"{folder} has no pictures in the {split!r} split")
    return files


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
