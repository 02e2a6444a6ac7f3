from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from conftest import small_codec
from rdquant.errors import UsageError
from rdquant.study import executor
from rdquant.study.compare import Cell, Comparison, Model, Reduced, grid, table


def test_cells_are_measured_marked_stored_and_resumed(photo: np.ndarray, tmp_path: Path) -> None:
    low, high = small_codec("mbt2018-mean"), small_codec("mbt2018-mean")
    high.g_a[-1].weight.data.mul_(1.3)
    crops = [photo[i : i + 64, i : i + 64] for i in (0, 100, 200, 300)]
    reduced = Reduced(calibration=3, steps=4, mixing_steps=4, budget=5, every=2)
    models = {"low": Model(low, 0.01, "f"), "high": Model(high, 0.02, "f")}
    recipe = functools.partial(Comparison, models, crops, [photo[:64, 64:128]] * 3, tmp_path, reduced)
    cells = grid(["low"], ["ours", "mse", "annealing"], ["W4A8", "3bits"])
    assert {(c.method, c.at) for c in cells} == {
        ("ours", "W4A8"), ("mse", "W4A8"), ("ours", "3bits"), ("annealing", "3bits"),
    }  # fmt: skip
    first = executor.run(recipe(), recipe, cells, jobs=1)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.json")}
    assert executor.run(recipe(), recipe, cells, jobs=1) == first
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.json")}
    by = {(r["method"], r["at"]): r for r in first}
    assert "4 steps" in by["ours", "W4A8"]["reduced"] and "5 plans" in by["annealing", "3bits"]["reduced"]
    assert all(r["pictures"] == 2 and "every 2th picture" in r["reduced"] for r in first)
    for sized in (by["ours", "3bits"], by["annealing", "3bits"]):
        assert sized["bytes"] <= sized["target"]
    columns, rows = table(first, "low")
    assert columns[:3] == ["method", "W4A8", "3bits"]
    assert [r[0] for r in rows] == ["ours", "mse", "annealing"] and rows[1][2] == "" and rows[0][1][-1] == "*"


def test_bad_cells_are_quoted() -> None:
    with pytest.raises(UsageError, match="magic"):
        grid(["m"], ["magic"], ["W8A8"])
    with pytest.raises(UsageError, match="W8"):
        Cell("m", "ours", "W8").bits()
