from __future__ import annotations

from pathlib import Path

import pytest

from rdquant.errors import CurveError
from rdquant.measure import Curve, ImageResult, Point, machine


def test_round_trip_and_means(tmp_path: Path) -> None:
    images = [
        ImageResult("a", 8, 4, 10, 2.5, 2.4, 30.0, None, 0.5, 0.25),
        ImageResult("b", 8, 4, 14, 3.5, 3.4, 34.0, 0.99, 1.5, 0.75),
    ]
    curve = Curve("c", "set", [Point("p", {"x": 1}, images)], {"machine": machine()})
    curve.save(tmp_path / "c.json")
    again = Curve.load(tmp_path / "c.json")
    assert again == curve
    p = again.points[0]
    assert (p.bpp, p.psnr, p.ms_ssim, p.bpp_estimated, p.decode_s) == (3.0, 32.0, 0.99, 2.9, 0.5)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 9}', '{"version": 1, "name": "x"}'])
def test_damaged_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CurveError, match=r"c\.json"):
        Curve.load(tmp_path / "c.json")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CurveError, match="cannot read"):
        Curve.load(tmp_path / "c.json")
