"""A report's page, tables, figures and pictures, without a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from curves import curve

from golden.make import HERE
from rdquant import cli
from rdquant.errors import UsageError
from rdquant.load import open_coder
from rdquant.measure import bd_rate, psnr
from rdquant.report import Inputs, matched, read_inputs, tables, write_report

VOID = {"meta", "link", "img", "input", "br"}


class Checker(HTMLParser):
    """Elements close in order; nothing is fetched; ids are unique."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        if "id" in values:
            self.ids.append(str(values["id"]))
        for name in ("src", "href"):
            if name in values and not str(values[name]).startswith(("data:", "#")):
                self.fetched.append(str(values[name]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: Path) -> str:
    text, checker = page.read_text(), Checker()
    checker.feed(text)
    assert checker.open == [] and checker.fetched == []
    assert len(checker.ids) == len(set(checker.ids))
    return text


def test_the_page_holds_everything_and_escapes_it(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    inputs = Inputs(
        [curve("ours </script><b>", 0.8), curve("jpeg", 1.0), curve("else", 1.1, dataset="other")],
        plans={"small": {"g_a.0": 8, "g_a.2": 4}},
        sensitivity={"table": {"g_a.0": {4: 0.01, 8: 0.0}, "g_a.2": {4: 0.2, 8: 1e-5}}},
        traces={"search": [{"unit": "start", "J": 1.0}, {"unit": "end", "J": 0.9}]},
    )
    page = write_report(inputs, tmp_path / "r", "A <i> title")
    text = checked(page)
    assert "A &lt;i&gt; title" in text and "</script><b>" not in text
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    names = {f["name"] for f in figures}
    assert names >= {"set-psnr", "set-ms_ssim_db", "other-psnr", "bits", "sensitivity-table", "cost"}
    assert names == {p.stem for p in (tmp_path / "r").glob("*.svg")}
    first = next(f for f in figures if f["name"] == "set-psnr")["traces"][0]
    assert first["x"] == [p.bpp for p in inputs.curves[0].points]
    for svg in (tmp_path / "r").glob("*.svg"):
        assert svg.read_text().startswith("<?xml") and "<text" in svg.read_text()
    before = {p.name: p.read_bytes() for p in (tmp_path / "r").glob("*.svg")}
    write_report(inputs, tmp_path / "r", "A <i> title")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "r").glob("*.svg")}


def test_the_matrix_is_bd_rates_both_ways() -> None:
    ours, other, apart = curve("ours", 0.8), curve("other", 1.0), curve("apart", 1.0, pictures=3)
    table = tables.bd_matrix("set", [ours, other, apart])
    assert table.rows[0][2].value == pytest.approx(bd_rate(other, ours).percent)
    assert table.rows[1][1].value == pytest.approx(bd_rate(ours, other).percent)
    assert table.rows[0][2].value == pytest.approx(-20) and table.rows[0][2].tone == -1
    assert table.rows[1][1].tone == 1 and "[" in table.rows[1][1].text
    assert (
        table.rows[0][1].text == "" and table.rows[2][1].text == "-" and "pictures" in table.rows[2][1].title
    )


def test_pictures_are_matched_by_bytes(photo: np.ndarray) -> None:
    coder, rgb = open_coder(str(HERE / "mean-w8.rdqm")), photo[:160, :200]
    (found,) = matched(coder, [("p", rgb)], ("jpeg", "webp"))
    size = len(coder.encode(rgb))
    sizes = [int(re.search(r"([\d,]+) bytes", v.label).group(1).replace(",", "")) for v in found.versions[1:]]  # type: ignore[union-attr]
    assert sizes[0] == size and all(0.5 * size < s <= size for s in sizes[1:])
    assert f"{psnr(rgb, found.versions[2].rgb):.2f} dB" in found.versions[2].label
    with pytest.raises(UsageError, match="'gif'"):
        matched(coder, [("p", rgb)], ("gif",))


def test_inputs_are_told_apart(tmp_path: Path) -> None:
    curve("ours", 1.0).save(tmp_path / "a.json")
    plan = {"version": 1, "bits": {"g_a.0": 8}, "increase": 0.1, "size": 5, "method": "knapsack"}
    (tmp_path / "b.json").write_text(json.dumps(plan))
    (tmp_path / "c.json").write_text(json.dumps({"zeta": {"g_a.0": {"8": 0.5}}, "sizes": {}}))
    (tmp_path / "d.json").write_text(json.dumps({"trace": [{"unit": "start", "J": 2.0}, {"unit": "x"}]}))
    (tmp_path / "e.json").write_text(json.dumps({"something": "else"}))
    found = read_inputs([tmp_path])
    assert [c.name for c in found.curves] == ["ours"] and found.plans == {"b": {"g_a.0": 8}}
    assert found.sensitivity == {"c": {"g_a.0": {8: 0.5}}} and len(found.traces["d"]) == 1
    with pytest.raises(UsageError, match=r"e\.json is no result"):
        read_inputs([tmp_path / "e.json"])
    with pytest.raises(UsageError, match="cannot read"):
        read_inputs([tmp_path / "none.json"])
    (tmp_path / "f").mkdir()
    with pytest.raises(UsageError, match="nothing to report"):
        read_inputs([tmp_path / "f"])


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("plotly")
    curve("ours", 1.0).save(tmp_path / "a.json")
    cli.app(["report", str(tmp_path / "a.json"), "-o", str(tmp_path / "r"), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert len(found["files"]) == 3 and all(Path(f).is_file() for f in found["files"])
    with pytest.raises(UsageError, match="--images and --model"):
        cli.app(["report", str(tmp_path / "a.json"), "--images", "x.png"], standalone_mode=False)
