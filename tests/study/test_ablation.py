from __future__ import annotations

import functools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conftest import small_codec
from rdquant import cli
from rdquant.errors import UsageError
from rdquant.files.float_models import save_float
from rdquant.files.images import write_image
from rdquant.study import ablation, executor
from rdquant.study.ablation import (
    Cell,
    Measured,
    Study,
    grid,
    increase_interval,
    means,
    rate_increase,
    shown,
    tables,
)

QUICK = {"steps": 4, "batch": 1, "crop": 64, "bf16": False, "compile": False}


def test_the_grid_has_no_empty_cell_and_no_twin() -> None:
    cells = grid()
    places = Counter((c.table, c.row, c.column) for c in cells)
    assert max(places.values()) == 1
    for table in {c.table for c in cells}:
        rows = {c.row for c in cells if c.table == table}
        columns = {c.column for c in cells if c.table == table}
        assert len([c for c in cells if c.table == table]) == len(rows) * len(columns), table


def test_rate_increase_on_a_straight_curve() -> None:
    curve = [Measured(2.0**i, 30.0 + i, 1.0) for i in range(4)]
    assert rate_increase(curve, Measured(2**1.5 * 1.1, 31.5, 1.0)) == pytest.approx(10)
    assert rate_increase(curve, Measured(2**-1.0, 29.0, 1.0)) == pytest.approx(0)
    with pytest.raises(UsageError, match="got 1"):
        rate_increase(curve[:1], curve[0])


def pictures(percent: list[float], level: int = 1) -> list[Measured]:
    """Pictures of very different rates and qualities, each with so many percent more rate than the parent of
    the level.
    """
    return [
        Measured((1 + p / 100) * 2**level * (1 + i % 5), 30.0 + level + i % 7, 1.0)
        for i, p in enumerate(percent)
    ]


def test_the_interval_of_an_increase_is_of_the_same_pictures_of_all_models() -> None:
    curve = [pictures([0.0] * 24, level) for level in range(4)]
    assert increase_interval(curve, pictures([10.0] * 24)) == pytest.approx((10, 10))
    widths = []
    for spread in (1.0, 4.0):
        point = pictures([10.0 + spread * (-1) ** (i // 3) for i in range(24)])
        low, high = increase_interval(curve, point) or (0.0, 0.0)
        assert low < rate_increase([means(c) for c in curve], means(point)) < high
        widths.append(high - low)
    assert widths[1] > 3 * widths[0] > 0
    low, high = increase_interval(curve, pictures([10.0] * 24)[::-1]) or (0.0, 0.0)
    assert high - low > 10 > widths[1]  # each picture against another one's curve
    same = [[c[0]] * 5 for c in curve]
    assert increase_interval(same, [curve[1][0]] * 5) == pytest.approx((0, 0))
    assert increase_interval([c[:1] for c in curve], curve[1][:1]) is None


def test_cells_are_stored_shared_and_resumed(photo: np.ndarray, tmp_path: Path) -> None:
    low, high = small_codec("mbt2018-mean"), small_codec("mbt2018-mean")
    high.g_a[-1].weight.data.mul_(1.3)
    crops = [photo[i : i + 64, i : i + 64] for i in (0, 100, 200, 300)]

    held_out = [crops[3], photo[:64, 300:364], photo[:64, 400:464]]
    recipe = functools.partial(Study, [low, high], 0, 0.01, crops[:3], held_out, tmp_path, QUICK)
    cells = [
        Cell("a", "one", "W8A8", {"weight_bits": 8}, images=2),
        Cell("b", "other name", "W8A8", {"weight_bits": 8}, images=2),
        Cell("b", "entropy", "W8A8", {"weight_bits": 8}, images=2, choice="entropy"),
    ]
    first = executor.run(recipe(), recipe, cells, jobs=1)
    assert len(list(tmp_path.glob("*.json"))) == 2 and first[0] == first[1]
    assert all(math.isfinite(r["rate_increase_percent"]) and r["peak_memory_mb"] > 0 for r in first)
    for result in first:
        least, most = result["rate_increase_interval"]
        assert least < result["rate_increase_percent"] < most and result["held_out_pictures"] == 3
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.json")}
    assert executor.run(recipe(), recipe, cells, jobs=1) == first
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.json")}
    pairs = list(zip(cells, first, strict=True))
    (columns, rows), (_, intervals) = (
        tables(pairs, f"rate_increase_{key}")["b"] for key in ("percent", "interval")
    )
    assert columns == ["", "W8A8"] and [r[0] for r in rows] == ["other name", "entropy"]
    assert intervals[1][1] == first[2]["rate_increase_interval"]
    assert shown([["a", 0.144, 2.0]], [["a", (0.06, 0.226), None]]) == [
        ["a", "+0.14 % [+0.06, +0.23]", "+2.00 %"]
    ]


def test_the_command_writes_all_that_documents_show(
    photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "calib").mkdir()
    for i in range(4):  # the first and the last are held out
        write_image(tmp_path / "calib" / f"{i}.png", photo[100 * i : 100 * i + 64, 200:264])
    (tmp_path / "calib" / "list.csv").write_text("file,split\n" + "".join(f"{i}.png,val\n" for i in range(4)))
    models = [str(tmp_path / f"small-{i}.safetensors") for i in range(2)]
    for factor, path in zip((1.0, 1.3), models, strict=True):
        codec = small_codec("mbt2018-mean")
        codec.g_a[-1].weight.data.mul_(factor)
        save_float(codec, Path(path), {"lambda": 0.01})
    cells = [Cell("t", "one", f"W{b}A8", {"weight_bits": b}, {"steps": 0}, 1) for b in (8, 6)]
    monkeypatch.setattr(ablation, "grid", lambda: cells)
    words = ["study", "ablation", "--calib", str(tmp_path / "calib"), "-o", str(tmp_path / "out"), "-m",
             models[0], "-m", models[1], "--subject", models[0], "--no-figures", "--jobs", "1"]  # fmt: skip
    cli.app([*words, "--json"], standalone_mode=False)
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result == json.loads((tmp_path / "out" / "tables.json").read_text())
    assert result["made"]["cells"] == 2 and result["made"]["jobs"] == 1 and result["made"]["busy"] > 0
    assert "2 cells took" in captured.err and "95 %" in result["note"] and result["seconds"] > 0
    (row,), (interval,) = (result["tables"]["t"][key] for key in ("rows", "intervals"))
    assert all(low < value < high for value, (low, high) in zip(row[1:], interval[1:], strict=True))
    cli.app(words, standalone_mode=False)
    table = capsys.readouterr().out
    assert all(text in table for text in shown([row], [interval])[0])
