from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rdquant.errors import UsageError
from rdquant.files.images import write_image
from rdquant.measure import ANCHORS, psnr, run_anchor
from rdquant.measure import anchors as module


@pytest.mark.parametrize("name", ANCHORS)
def test_real_files_at_rising_quality(name: str, photo: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    if name == "jpeg2000":
        pytest.importorskip("imagecodecs")
    anchor = ANCHORS[name]
    few = replace(anchor, settings=(anchor.settings[1], anchor.settings[-2]))
    monkeypatch.setitem(module.ANCHORS, name, few)
    write_image(tmp_path / "p.png", photo[:176, :176])
    curve = run_anchor(name, [tmp_path / "p.png"], "test")
    low, high = curve.points
    assert low.bpp < high.bpp and low.psnr < high.psnr
    assert high.psnr > 33 and low.images[0].bytes == pytest.approx(low.bpp * 176**2 / 8)


def test_jpeg2000_uses_its_colour_transform(photo: np.ndarray) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    rgb = photo[:256, :256]
    data = ANCHORS["jpeg2000"].encode(rgb, 32.0)
    without = imagecodecs.jpeg2k_encode(rgb, level=32.0, reversible=False, mct=False, codecformat="j2k")
    assert len(data) < 0.9 * len(without)
    assert psnr(rgb, ANCHORS["jpeg2000"].decode(data)) > 31


def test_unknown_anchor() -> None:
    with pytest.raises(UsageError, match="bpg"):
        run_anchor("bpg", [], "x")
