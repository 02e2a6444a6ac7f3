from __future__ import annotations

import numpy as np
import pytest
import torch

from rdquant.coder import ImageCoder
from rdquant.errors import UsageError
from rdquant.latents.refine import EFFORTS, rounds_of, squared_error
from rdquant.load import open_coder
from rdquant.measure import psnr
from rdquant.pixels import pad_to, to_batch

MODEL, LAMBDA = "mean-scale-s-0130", 0.013


def cost(coder: ImageCoder, rgb: np.ndarray) -> float:
    """J of what a decoder makes, rate by whole bytes."""
    data = coder.encode(rgb)
    mse = 255**2 / 10 ** (psnr(rgb, coder.decode(data)) / 10)
    return LAMBDA * mse + 8 * len(data) / rgb[..., 0].size


@pytest.mark.parametrize("quantizer", ["uniform", "tcq8"])
@pytest.mark.parametrize("kind", ["-w8a8", ""])
def test_effort_lowers_the_cost_of_the_file(quantizer: str, kind: str, photo: np.ndarray) -> None:
    rgb = np.ascontiguousarray(photo[60:188, 150:300])
    plain, refined = (cost(open_coder(MODEL + kind, quantizer, effort=e), rgb) for e in (0, 2))
    assert refined < 0.97 * plain


def test_a_refined_picture_has_more_psnr_in_as_many_bytes(photo: np.ndarray) -> None:
    """Whose share of the gain goes to which is up to `DISTORTION_WEIGHT`."""
    rgb = np.ascontiguousarray(photo[60:316, 100:356])
    refined = open_coder("rd-s-w8a8@60", effort=1).encode(rgb)
    coder = open_coder("rd-s-w8a8@60")
    plain = coder.encode_to_size(rgb, len(refined))
    assert 0.98 * len(refined) < len(plain) <= len(refined)
    gain = psnr(rgb, coder.decode(refined)) - psnr(rgb, coder.decode(plain))
    assert 0.3 < gain < 1


def test_the_relaxed_synthesis_is_the_synthesis(photo: np.ndarray) -> None:
    """Of the integer codec, within rounding; and its gradient is its difference."""
    codec = open_coder(MODEL + "-w8a8").codec
    given = codec.analysis(to_batch(pad_to(photo[:64, :64], 64)))
    y = torch.from_numpy(given.astype(np.float32))
    relaxed = codec.relaxed_synthesis(y)
    assert float(np.abs(relaxed.numpy() - codec.synthesis(given)).mean()) < 1
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) * 20
    at = y.requires_grad_(True)
    target = torch.full_like(relaxed, 127.0)

    def error(v: torch.Tensor) -> torch.Tensor:
        return (codec.relaxed_synthesis(v) - target).square().sum()

    (slope,) = torch.autograd.grad(error(at), at)
    with torch.no_grad():
        difference = float(error(at + 0.05 * direction) - error(at - 0.05 * direction)) / 0.1
    assert float((slope * direction).sum()) == pytest.approx(difference, rel=0.05)


@pytest.mark.parametrize("kind", ["-w8a8", ""])
def test_strips_have_the_error_and_the_slope_of_the_whole(kind: str, photo: np.ndarray) -> None:
    """The last strips lie in the padding, in part and whole."""
    codec, rgb = open_coder(MODEL + kind).codec, np.ascontiguousarray(photo[:321, :100])
    pixels = to_batch(pad_to(rgb, 64))
    y = codec.analysis(pixels).astype(np.float32)
    size = rgb.shape[:2]
    whole, slopes = squared_error(codec, y, pixels, size, slope=True)
    for rows in (2, 8):
        error, found = squared_error(codec, y, pixels, size, True, most=rows * 16 * pixels.shape[3])
        assert error == pytest.approx(whole, rel=1e-5)
        assert found is not None and slopes is not None
        assert np.abs(found - slopes).max() < 1e-3 * np.abs(slopes).max()
    assert squared_error(codec, y, pixels, size, slope=False)[1] is None


def test_no_rounds_beyond_the_list() -> None:
    assert [rounds_of(e) for e in range(len(EFFORTS))] == list(EFFORTS) and rounds_of(0) == 0
    with pytest.raises(UsageError, match=r"effort must be 0..3, got 4"):
        open_coder(MODEL + "-w8a8", effort=4)
