from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from rdquant import cli
from rdquant.errors import UsageError
from rdquant.measure import Curve, ImageResult, Point
from rdquant.measure.query import Results

MACHINE = {"cpu": "a cpu", "threads": 2, "rdquant": "0.2.0", "date": "2026-11-27"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A curve, both kinds of compare and of ablation, searches, and three files of no known kind."""

    def image(name: str, psnr: float, seconds: float | None = 0.5) -> ImageResult:
        return ImageResult(name, 8, 4, 12, 3.0, None, psnr, 0.9, seconds, 0.25)

    model = {"fingerprint": "ab12", "profile": "integer", "quality": 60.0, "refinement_rounds": 4}
    points = [
        Point("m@60", {**model, "quantize": {"weight_bits": 8, "activation_bits": 10}},
              [image("a.png", 30.0), image("b.png", 32.0)]),
        Point("jpeg", {"codec": "Pillow"}, [image("a.png", math.inf, None)]),
    ]  # fmt: skip
    Curve("mine", "two", points, {"machine": MACHINE}).save(tmp_path / "curve.json")
    cell: dict[str, Any] = {
        "model": "m", "method": "mse", "at": "W8A8", "bpp": 1.0, "psnr": 30.0, "mse": 65.0,
        "rate_percent": 2.0, "j_percent": 1.5, "held_out_j": {}, "bytes": 100, "times_smaller": 4.0,
        "seconds": 3.0, "pictures": 1, "reduced": ["4 steps", "5 plans"],
    }  # fmt: skip
    other = {**cell, "method": "ours", "rate_percent": None}
    ablation = {
        "cell": {"quantize": {}, "rdo": {}, "images": 2, "choice": "random"}, "rdo": {},
        "quantize": {"weight_bits": 6, "activation_bits": 8}, "bpp": 1.0, "psnr": 30.0, "mse": 65.0,
        "rate_increase_percent": 4.0, "calibration_seconds": 9.0,
    }  # fmt: skip
    tables = {"range": {"columns": ["", "W8A8", "W6A8"], "rows": [["mse", 1.0, None], ["minmax", 2.0, 3.0]]}}
    plan = {"plan": {"size": 50}, "increase": 0.25, "seconds": 1.0}
    (tmp_path / "study").mkdir()
    for name, data in {
        "compare": {"machine": MACHINE, "cells": [cell, other]},
        "m-mse-W8A8-1": cell,
        "m-mse-W4A8-2": {**cell, "at": "W4A8"},
        "ab": ablation,
        "tables": {"machine": MACHINE, "model": "m", "tables": tables},
        "searches": {"machine": MACHINE, "target": "8x", "searches": {"greedy": plan}},
        "m-float-1": {"bpp": 1.0, "psnr": 30.0, "mse": 65.0},
        "list": [1, 2],
    }.items():
        (tmp_path / "study" / f"{name}.json").write_text(json.dumps(data))
    (tmp_path / "broken.json").write_text("{")
    return tmp_path


def test_every_kind_of_file_becomes_rows(folder: Path) -> None:
    pytest.importorskip("duckdb")
    found = Results([folder, folder / "curve.json"])
    assert sorted(p.name for p in found.skipped) == ["broken.json", "list.json", "m-float-1.json"]
    columns, rows = found.ask("SELECT * FROM points ORDER BY label DESC")
    first, second = (dict(zip(columns, row, strict=True)) for row in rows)
    assert first["file"].endswith("curve.json") and str(first.pop("date")) == "2026-11-27"
    assert {k: v for k, v in first.items() if k != "file"} == {
        "dataset": "two", "name": "mine", "label": "m@60", "fingerprint": "ab12", "profile": "integer",
        "weight_bits": 8, "activation_bits": 10, "quality": 60.0, "rounds": 4, "bpp": 3.0,
        "bpp_estimated": None, "psnr": 31.0, "ms_ssim": 0.9, "encode_s": 0.5, "decode_s": 0.25,
        "pictures": 2, "cpu": "a cpu", "threads": 2, "version": "0.2.0",
    }  # fmt: skip
    assert second["psnr"] == math.inf and second["rounds"] is second["encode_s"] is None
    asked = "SELECT label, picture, bytes, psnr FROM images ORDER BY ALL"
    assert found.ask(asked)[1] == [
        ["jpeg", "a.png", 12, math.inf], ["m@60", "a.png", 12, 30.0], ["m@60", "b.png", 12, 32.0],
    ]  # fmt: skip
    # what compare.json holds is not counted again
    asked = (
        "SELECT study, question, method, setting, rate_percent, j_percent, bytes, seconds, cpu IS NULL "
        "FROM cells ORDER BY ALL NULLS FIRST"
    )
    assert found.ask(asked)[1] == [
        ["ablation", None, None, "W6A8", 4.0, None, None, 9.0, True],
        ["ablation", "range", "minmax", "W6A8", 3.0, None, None, None, False],
        ["ablation", "range", "minmax", "W8A8", 2.0, None, None, None, False],
        ["ablation", "range", "mse", "W6A8", None, None, None, None, False],
        ["ablation", "range", "mse", "W8A8", 1.0, None, None, None, False],
        ["compare", None, "mse", "W4A8", 2.0, 1.5, 100, 3.0, True],
        ["compare", None, "mse", "W8A8", 2.0, 1.5, 100, 3.0, False],
        ["compare", None, "ours", "W8A8", None, 1.5, 100, 3.0, False],
        ["searches", None, "greedy", "8x", None, 25.0, 50, 1.0, False],
    ]


def test_the_command_lists_answers_and_counts(folder: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("duckdb")

    def shown(*words: str) -> tuple[str, str]:
        cli.app(["results", str(folder), *words], standalone_mode=False)
        return tuple(capsys.readouterr())  # type: ignore[return-value]

    out, err = shown()
    assert "7 result files" in out and "curve.json" in out and "study/*.json" in out
    assert "3 of 10 files left out, of no kind known here: broken.json" in err.replace("\n", " ")
    out, _ = shown("--json", "--sql", "SELECT reduced, 1.5 AS x FROM cells WHERE method = 'ours'")
    answer = json.loads(out)
    assert answer["rows"] == [{"reduced": "4 steps; 5 plans", "x": 1.5}] and len(answer["skipped"]) == 3
    kinds = {(r["kind"], r["rows"]) for r in json.loads(shown("--json")[0])["rows"]}
    assert kinds == {("curve", 2), ("ablation", 5), ("compare", 3), ("searches", 1)}


def test_what_cannot_be_answered_quotes_the_question(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "duckdb", None)
        with pytest.raises(UsageError, match=r"needs duckdb.*rdquant\[results\]"):
            Results([folder])
    pytest.importorskip("duckdb")
    found = Results([folder])
    for sql in ("SELECT nonsense FROM points", "SELEC 1", "SELECT * FROM rows", ""):
        with pytest.raises(UsageError, match=repr(sql).replace("*", r"\*")):
            found.ask(sql)
    with pytest.raises(UsageError, match="points, images, cells"):
        found.ask("SELEC 1")
    (folder / "empty").mkdir()
    for path in ("empty", "none"):
        with pytest.raises(UsageError, match=path):
            Results([folder / path])
