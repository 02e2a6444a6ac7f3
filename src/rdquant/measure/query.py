"""What do the result files of a folder say? Their rows as tables of a database, asked in SQL (DuckDB).

Files are those of `rdquant evaluate`, `rdquant anchor` and `rdquant study`; others are left out, and named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..errors import CurveError, UsageError
from ..lazy import extras
from .results import Curve

Row = dict[str, Any]

_OF_FILE = {"cpu": "VARCHAR", "threads": "BIGINT", "date": "DATE", "version": "VARCHAR"}
_MEASURED = dict.fromkeys(("bpp", "bpp_estimated", "psnr", "ms_ssim", "encode_s", "decode_s"), "DOUBLE")
_CURVE = dict.fromkeys(("file", "dataset", "name", "label"), "VARCHAR")
#: table -> column -> type; units as in `rdquant.measure.results`
TABLES: dict[str, dict[str, str]] = {
    "points": {
        **_CURVE,
        "fingerprint": "VARCHAR", "profile": "VARCHAR", "weight_bits": "BIGINT", "activation_bits": "BIGINT",
        "quality": "DOUBLE", "rounds": "BIGINT", **_MEASURED, "pictures": "BIGINT", **_OF_FILE,
    },
    "images": {
        **_CURVE,
        "picture": "VARCHAR", "width": "BIGINT", "height": "BIGINT", "bytes": "BIGINT", **_MEASURED,
    },
    "cells": {
        **dict.fromkeys(("file", "study", "model", "question", "method", "setting"), "VARCHAR"),
        **dict.fromkeys(("bpp", "psnr", "mse", "rate_percent", "j_percent"), "DOUBLE"),
        "bytes": "BIGINT", "seconds": "DOUBLE", "reduced": "VARCHAR", "options": "VARCHAR", **_OF_FILE,
    },
}  # fmt: skip

SUMMARY = """
SELECT file, 'curve' AS kind, name, dataset, count(*) AS "rows",
    min(bpp) AS "bpp from", max(bpp) AS "to", min(psnr) AS "dB from", max(psnr) AS "to dB", max(date) AS date
FROM points GROUP BY ALL
UNION ALL
SELECT CASE WHEN count(DISTINCT file) = 1 THEN min(file) ELSE folder || '*.json' END, study,
    string_agg(DISTINCT model, ', '), NULL, count(*), min(bpp), max(bpp), min(psnr), max(psnr), max(date)
FROM (SELECT *, regexp_replace(file, '[^/]*$', '') AS folder FROM cells) GROUP BY study, folder
ORDER BY ALL
"""


class Results:
    """The files in ``paths`` (files, or folders with all JSON below them) as tables `TABLES`.

    ``skipped``: files of no kind known here. Raises `UsageError` for a path without JSON, and without DuckDB.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        with extras():
            import duckdb
        self._duckdb = duckdb
        self.files = _files(paths)
        rows, self.skipped = _rows(self.files)
        self._connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"})
        self._connection.execute("SET python_enable_replacements = false")  # no variables of ours
        for table, columns in TABLES.items():
            typed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
            self._connection.execute(f"CREATE TABLE {table} ({typed})")
            shape = json.dumps([columns])
            given = json.dumps([{name: _plain(row.get(name)) for name in columns} for row in rows[table]])
            self._connection.execute(
                f"INSERT INTO {table} SELECT unnest(from_json(?, '{shape}'), recursive := true)", [given]
            )

    def ask(self, sql: str = SUMMARY) -> tuple[list[str], list[list[Any]]]:
        """Column names and rows. Raises `UsageError`, which quotes the SQL, for what cannot be answered."""
        try:
            answer = self._connection.execute(sql)
            if answer is None:
                raise UsageError(f"{sql!r} asks nothing")
            names = [column[0] for column in answer.description]
            return names, [[_number(value) for value in row] for row in answer.fetchall()]
        except self._duckdb.Error as error:
            why = " ".join(str(error).partition("\n\nLINE")[0].split())
            tables = ", ".join(TABLES)
            raise UsageError(
                f"no answer to {sql!r}: {why} (tables: {tables}; DESCRIBE lists columns)"
            ) from None


def _files(paths: Iterable[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = sorted(path.rglob("*.json")) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise UsageError(
                f"no JSON files in {path}" if path.is_dir() else f"no such file or folder: {path}"
            )
        files += found
    return list(dict.fromkeys(files))


def _rows(files: list[Path]) -> tuple[dict[str, list[Row]], list[Path]]:
    """Of each table, and the files that are none. A cell that a file of many has too is left out."""
    read: dict[Path, Any] = {}
    for file in files:
        try:
            read[file] = json.loads(file.read_text())
        except (OSError, ValueError):
            read[file] = None
    together = {_key(c) for data in read.values() if isinstance(data, dict) for c in data.get("cells", ())}
    found: dict[str, list[Row]] = {table: [] for table in TABLES}
    skipped = []
    for file, data in read.items():
        try:
            of_file = _about(data)
            if isinstance(data.get("points"), list) and "dataset" in data:
                points, images = _curve(Curve.load(file))
                found["points"] += [{"file": file.as_posix(), **of_file, **row} for row in points]
                found["images"] += [{"file": file.as_posix(), **row} for row in images]
            else:
                cells = [] if _key(data) in together else _cells(data)
                found["cells"] += [{"file": file.as_posix(), **of_file, **row} for row in cells]
        except (CurveError, AttributeError, KeyError, TypeError, ValueError):
            skipped.append(file)
    return found, skipped


def _key(data: Any) -> str:
    return json.dumps(data, sort_keys=True)


def _about(data: Row) -> Row:
    machine = data.get("machine") or data.get("meta", {}).get("machine") or {}
    return {**{k: machine.get(k) for k in ("cpu", "threads", "date")}, "version": machine.get("rdquant")}


def _curve(curve: Curve) -> tuple[list[Row], list[Row]]:
    points, images = [], []
    for p in curve.points:
        of_both = {"dataset": curve.dataset, "name": curve.name, "label": p.label}
        quantize, rounds = p.model.get("quantize") or {}, p.model.get("refinement_rounds", 0)
        points.append(
            {
                **of_both, **{k: p.model.get(k) for k in ("fingerprint", "profile", "quality")},
                **{k: quantize.get(k) for k in ("weight_bits", "activation_bits")},
                "rounds": rounds if "fingerprint" in p.model else None,
                **{k: getattr(p, k) for k in _MEASURED}, "pictures": len(p.images),
            }
        )  # fmt: skip
        images += [{**vars(i), **of_both, "picture": i.name} for i in p.images]
    return points, images


def _cells(data: Row) -> list[Row]:
    """Of a study. Raises `KeyError` or `TypeError` for what is none."""
    model = data.get("model")
    if isinstance(data.get("cells"), list):
        return [_compared(cell) for cell in data["cells"]]
    if "tables" in data:
        return [
            {"study": "ablation", "model": model, "question": name, "method": row[0], "setting": column,
             "rate_percent": value}
            for name, table in data["tables"].items()
            for row in table["rows"]
            for column, value in zip(table["columns"][1:], row[1:], strict=True)
        ]  # fmt: skip
    if "searches" in data:
        return [
            {"study": "searches", "model": model, "method": name, "setting": data["target"],
             "bytes": o["plan"]["size"], "j_percent": 100 * o["increase"], "seconds": o["seconds"]}
            for name, o in data["searches"].items()
        ]  # fmt: skip
    if "calibration_seconds" in data:
        quantize = data["quantize"]
        return [
            {"study": "ablation", **{k: data[k] for k in ("bpp", "psnr", "mse")},
             "setting": f"W{quantize['weight_bits']}A{quantize['activation_bits']}",
             "rate_percent": data["rate_increase_percent"], "seconds": data["calibration_seconds"],
             "options": json.dumps(data["cell"])}
        ]  # fmt: skip
    return [_compared(data)]


def _compared(cell: Row) -> Row:
    kept = ("model", "method", "bpp", "psnr", "mse", "rate_percent", "j_percent", "bytes", "seconds")
    return {"study": "compare", "setting": cell["at"], "reduced": "; ".join(cell["reduced"]),
            **{k: cell[k] for k in kept}}  # fmt: skip


def _plain(value: Any) -> Any:
    """For JSON, which has no infinities."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else value
