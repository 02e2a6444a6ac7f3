from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rdquant.errors import UsageError
from rdquant.files.images import write_image
from rdquant.measure import ANCHORS, psnr, run_anchor
from rdquant.measure import anchors as module

NEEDS = {
    "jpeg2000": "imagecodecs",
    "jpegxl": "imagecodecs",
    "hevc": "imageio_ffmpeg",
    "vvc": "imageio_ffmpeg",
}


@pytest.mark.parametrize("name", ANCHORS)
def test_real_files_at_rising_quality(name: str, photo: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    anchor = ANCHORS[name]
    few = replace(anchor, settings=(anchor.settings[1], anchor.settings[-2]))
    monkeypatch.setitem(module.ANCHORS, name, few)
    write_image(tmp_path / "p.png", photo[:176, :176])
    curve = run_anchor(name, [tmp_path / "p.png"], "test")
    low, high = curve.points
    assert low.bpp < high.bpp and low.psnr < high.psnr
    assert high.psnr > 32 and low.images[0].bytes == pytest.approx(low.bpp * 176**2 / 8)


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


@pytest.mark.parametrize("name", ["hevc", "vvc"])
def test_video_codecs_take_odd_sides(name: str, photo: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setitem(module.ANCHORS, name, replace(ANCHORS[name], settings=(-30,)))
    write_image(tmp_path / "p.png", photo[:65, :33])
    (image,) = run_anchor(name, [tmp_path / "p.png"], "test").points[0].images
    assert (image.width, image.height) == (33, 65) and image.psnr > 28


def test_what_was_measured_is_kept_by_content(photo: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    cache, calls = tmp_path / "cache", []

    def counted(rgb: np.ndarray, setting: float) -> bytes:
        calls.append(setting)
        return ANCHORS["jpeg"].encode(rgb, setting)

    monkeypatch.setitem(
        module.ANCHORS, "counted", replace(ANCHORS["jpeg"], settings=(20, 50), encode=counted)
    )
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png", photo[:32, :32])
    first = run_anchor("counted", [tmp_path / "a.png"], "test", cache=cache)
    again = run_anchor("counted", [tmp_path / "b.png"], "test", cache=cache)  # the same samples
    assert calls == [20, 50]
    assert [i.name for p in again.points for i in p.images] == ["b.png", "b.png"]
    assert [p.bpp for p in again.points] == [p.bpp for p in first.points]
    next(cache.iterdir()).write_text("damaged")
    run_anchor("counted", [tmp_path / "a.png"], "test", cache=cache)
    assert len(calls) == 3
    write_image(tmp_path / "a.png", photo[:32, 1:33])
    run_anchor("counted", [tmp_path / "a.png"], "test", cache=cache)
    assert len(calls) == 5
