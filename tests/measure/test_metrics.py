from __future__ import annotations

import numpy as np
import pytest

from rdquant.errors import UsageError
from rdquant.measure import ms_ssim, ms_ssim_db, psnr


def test_psnr_of_a_known_difference() -> None:
    a = np.full((4, 5, 3), 100, np.uint8)
    assert psnr(a, a + np.uint8(5)) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(a, a) == 100.0


def test_ms_ssim(photo: np.ndarray, rng: np.random.Generator) -> None:
    assert ms_ssim(photo, photo) == pytest.approx(1.0)
    noisy = (photo + rng.normal(0, 20, photo.shape)).clip(0, 255).astype(np.uint8)
    assert 0.5 < (ms_ssim(photo, noisy) or 0) < 0.99
    assert ms_ssim(photo[:160], photo[:160]) is None
    assert ms_ssim_db(0.99) == pytest.approx(20)


def test_metrics_refuse_unlike_pictures(photo: np.ndarray) -> None:
    with pytest.raises(UsageError, match="uint8"):
        psnr(photo, photo[1:])
    with pytest.raises(UsageError, match="float"):
        psnr(photo, photo.astype(float))
