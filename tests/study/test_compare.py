from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import small_codec
from rdquant import cli
from rdquant.errors import UsageError
from rdquant.files.float_models import save_float
from rdquant.files.images import write_image
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


def test_the_command_makes_cells_by_processes_and_resumes(
    photo: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("calib", "shown"):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "0.png", photo[:64, :64])
        write_image(tmp_path / name / "1.png", photo[64:128, :64])
    save_float(small_codec("mbt2018-mean"), tmp_path / "small-1.safetensors", {"lambda": 0.01})

    model = str(tmp_path / "small-1.safetensors")
    words = ["study", "compare", "--calib", str(tmp_path / "calib"), "--images", str(tmp_path / "shown"),
             "-o", str(tmp_path / "out"), "-m", model, "--parent", model, "--method", "minmax",
             "--calibration", "1", "--jobs", "2", "--json", "--at", "W10A10"]  # fmt: skip

    def compare(*more: str) -> list[dict[str, Any]]:
        cli.app([*words, *more], standalone_mode=False)
        return json.loads(capsys.readouterr().out)["cells"]

    first = compare()
    again = compare("--at", "W8A8")
    assert again[:1] == first and [c["at"] for c in again] == ["W10A10", "W8A8"]
