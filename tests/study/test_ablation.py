from __future__ import annotations

import functools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conftest import small_codec
from rdquant.errors import UsageError
from rdquant.study import executor
from rdquant.study.ablation import Cell, Measured, Study, grid, rate_increase, tables

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


def test_cells_are_stored_shared_and_resumed(photo: np.ndarray, tmp_path: Path) -> None:
    low, high = small_codec("mbt2018-mean"), small_codec("mbt2018-mean")
    high.g_a[-1].weight.data.mul_(1.3)
    crops = [photo[i : i + 64, i : i + 64] for i in (0, 100, 200, 300)]

    recipe = functools.partial(Study, [low, high], 0, 0.01, crops[:3], crops[3:], tmp_path, QUICK)
    cells = [
        Cell("a", "one", "W8A8", {"weight_bits": 8}, images=2),
        Cell("b", "other name", "W8A8", {"weight_bits": 8}, images=2),
        Cell("b", "entropy", "W8A8", {"weight_bits": 8}, images=2, choice="entropy"),
    ]
    first = executor.run(recipe(), recipe, cells, jobs=1)
    assert len(list(tmp_path.glob("*.json"))) == 2 and first[0] == first[1]
    assert all(math.isfinite(r["rate_increase_percent"]) and r["peak_memory_mb"] > 0 for r in first)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.json")}
    assert executor.run(recipe(), recipe, cells, jobs=1) == first
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.json")}
    columns, rows = tables(list(zip(cells, first, strict=True)))["b"]
    assert columns == ["", "W8A8"] and [r[0] for r in rows] == ["other name", "entropy"]
