"""Picture quality, always on decoded 8-bit RGB."""

from __future__ import annotations

import math

import numpy as np

from ..errors import UsageError
from ..lazy import torch

#: what PSNR says of two equal pictures, so that means and JSON stay finite
PSNR_OF_EQUALS = 100.0
#: below this side the five scales of MS-SSIM (window 11) do not fit
MS_SSIM_SIDE = 161


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise UsageError(f"two uint8 pictures of one shape, please: {a.shape} {a.dtype}, {b.shape} {b.dtype}")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """``10 log10(255^2 / MSE)`` in dB over all samples of two ``(H, W, 3)`` uint8 pictures; at most 100."""
    _check(a, b)
    mse = float(np.mean((a.astype(np.float64) - b) ** 2))
    return PSNR_OF_EQUALS if mse == 0 else min(PSNR_OF_EQUALS, 10 * math.log10(255**2 / mse))


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float | None:
    """MS-SSIM (Wang et al. 2003) in [0, 1], mean over RGB. None if a side is under 161 pixels."""
    from pytorch_msssim import ms_ssim as compute

    _check(a, b)
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    x, y = (torch.from_numpy(np.array(p)).permute(2, 0, 1)[None].float() for p in (a, b))
    return float(compute(x, y, data_range=255))


def ms_ssim_db(value: float) -> float:
    """``-10 log10(1 - v)``, at most 100: MS-SSIM on a scale where curves can be compared."""
    return min(100.0, -10 * math.log10(max(1 - value, 1e-10)))
