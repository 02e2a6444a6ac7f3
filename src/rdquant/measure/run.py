"""Measuring a coder on pictures: real files, decoded again, nothing estimated but what says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..coder import ImageCoder
from ..errors import RdquantError
from ..files.images import read_image
from ..files.shards import ShardPictures
from .metrics import ms_ssim, psnr
from .results import ImageResult


class RoundTripError(RdquantError):
    """A decoded file differs from the codec's own forward pass."""


def evaluate_image(coder: ImageCoder, name: str, rgb: np.ndarray, check: bool = True) -> ImageResult:
    """Encode to bytes, decode them, compare.

    ``check`` also runs the rest of the forward pass, from the encoder's symbols, and raises `RoundTripError`
    unless every pixel agrees; it gives ``bpp_estimated`` too.
    """
    start = time.perf_counter()
    coded = coder.symbols(rgb)
    data = coder.pack(coded, rgb.shape[1], rgb.shape[0])
    encoded = time.perf_counter()
    decoded = coder.decode(data)
    end = time.perf_counter()
    pixels = rgb.shape[0] * rgb.shape[1]
    estimate = None
    if check:
        forward, bits = coder.reconstruct(coded, rgb.shape[1], rgb.shape[0])
        if not np.array_equal(forward, decoded):
            count = int((forward != decoded).sum())
            raise RoundTripError(f"{name}: {count} samples of the decoded file differ from the forward pass")
        estimate = bits / pixels
    return ImageResult(
        name=name,
        width=rgb.shape[1],
        height=rgb.shape[0],
        bytes=len(data),
        bpp=8 * len(data) / pixels,
        bpp_estimated=estimate,
        psnr=psnr(rgb, decoded),
        ms_ssim=ms_ssim(rgb, decoded),
        encode_s=encoded - start,
        decode_s=end - encoded,
    )


def evaluate(
    coder: ImageCoder,
    files: Sequence[Path | tuple[str, np.ndarray]] | ShardPictures,
    check: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[ImageResult]:
    """One result per picture, in order; pictures are files, or names with ``(H, W, 3)`` uint8, or those
    of shards."""
    results, count = [], len(files)
    for i, file in enumerate(files):
        name, rgb = (file.name, read_image(file)) if isinstance(file, Path) else file
        results.append(evaluate_image(coder, name, rgb, check))
        if progress:
            progress(i + 1, count)
    return results
