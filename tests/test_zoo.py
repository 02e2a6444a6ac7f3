from __future__ import annotations

import itertools

import numpy as np
import pytest

from rdquant import zoo
from rdquant.errors import UnknownModel
from rdquant.load import coder_for, open_coder


def test_every_entry_is_what_the_index_says() -> None:
    assert zoo.DEFAULT in zoo.index()
    for name, entry in zoo.index().items():
        coder = open_coder(name)
        assert coder.fingerprint.hex() == entry["fingerprint"], name
        assert zoo.model_path(name).stat().st_size == entry["bytes"] < 5_000_000
        assert entry["M"] == coder.codec.M and entry["architecture"] == coder.codec.architecture


def test_found_by_fingerprint() -> None:
    entry = zoo.index()[zoo.DEFAULT]
    assert coder_for(bytes.fromhex(entry["fingerprint"])).fingerprint.hex() == entry["fingerprint"]
    with pytest.raises(UnknownModel, match="0000"):
        coder_for(bytes(8))
    with pytest.raises(UnknownModel, match="nope"):
        open_coder("nope")


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (63, 65), (517, 389)])
def test_any_size_decodes_to_the_forward_pass(size: tuple[int, int], photo: np.ndarray) -> None:
    from rdquant.measure import evaluate_image

    rgb = np.pad(photo, ((0, 5), (0, 0), (0, 0)), "wrap")[: size[0], : size[1]]
    result = evaluate_image(open_coder(zoo.DEFAULT), "photo", rgb)  # raises where a pixel differs
    assert result.bpp_estimated is not None
    estimate = result.bpp_estimated * rgb.shape[0] * rgb.shape[1] / 8
    assert result.bytes <= 1.01 * estimate + 48  # two streams end in whole 32-bit words


def test_more_rate_is_more_quality(photo: np.ndarray) -> None:
    from rdquant.measure import evaluate_image

    for suffix in ("", "-w8a8", "-tcq8", "-tcq8-w8a8"):
        names = [f"mean-scale-s-{rate}{suffix}" for rate in ("0035", "0067", "0130", "0250")]
        results = [evaluate_image(open_coder(n), n, photo[:256, :256]) for n in names]
        assert all(a.bytes < b.bytes and a.psnr < b.psnr for a, b in itertools.pairwise(results))


def test_one_model_for_every_rate(photo: np.ndarray) -> None:
    """Size and PSNR rise with quality, and a target is met from below."""
    from rdquant.measure import evaluate_image

    coder = open_coder("rd-s-w8a8")
    rgb = photo[:256, :256]
    results = [evaluate_image(coder.at(q), str(q), rgb) for q in (1, 25, 50, 75, 100)]
    assert all(a.bytes < b.bytes and a.psnr < b.psnr for a, b in itertools.pairwise(results))
    wanted = (results[1].bytes + results[2].bytes) // 2
    assert 0.99 * wanted <= len(coder.encode_to_size(rgb, wanted)) <= wanted
