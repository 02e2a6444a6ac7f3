from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rdquant.study.report import Report


def test_report_is_self_contained_and_escaped(tmp_path: Path) -> None:
    report = Report("A <b> title", "intro & more")
    report.heading("H<1>")
    report.table(("name", "value"), [["<script>", 1.23456], ["none", None]])
    report.pictures([("x < y", np.zeros((2, 3, 3), np.uint8))])
    report.write(tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "A &lt;b&gt; title" in page and "&lt;script&gt;" in page and "<script>" not in page
    assert "data:image/png;base64," in page and "http" not in page
    assert "1.235" in page and "<td>-</td>" in page


def test_rd_figure_draws_each_curve() -> None:
    pytest.importorskip("matplotlib")
    from rdquant.measure import Curve, ImageResult, Point
    from rdquant.study.plots import rd_figure, to_png

    def point(rate: float) -> Point:
        return Point("p", {}, [ImageResult("i", 1, 1, 1, rate, None, 30 + rate, None, None, None)])

    figure = rd_figure([Curve(n, "d", [point(2.0), point(1.0)], {}) for n in ("one", "two")])
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["one", "two"]
    assert list(lines[0].get_xdata()) == [1.0, 2.0]
    assert to_png(figure).startswith(b"\x89PNG")
