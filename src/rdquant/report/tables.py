"""Tables of a report: columns and rows of cells that know what they are sorted by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..console import Seconds, Size, format_cell
from ..errors import CurveError
from ..measure import BDRate, Curve, bd_rate


@dataclass(frozen=True)
class Cell:
    """``text`` is shown, ``value`` sorts; ``title`` says more; ``tone``: -1 good, 1 bad."""

    text: str
    value: float | str | None = None
    title: str = ""
    tone: int = 0


@dataclass(frozen=True)
class Table:
    caption: str
    columns: list[str]
    rows: list[list[Cell]]


def cell(value: Any) -> Cell:
    return Cell(format_cell(value), value if isinstance(value, int | float | str) else None)


def _interval(value: float | None, interval: tuple[float, float] | None, places: int) -> Cell:
    if value is None or interval is None:
        return Cell("-" if value is None else f"{value:.{places}f}", value)
    low, high = interval
    return Cell(f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]", value)


def _inverse(r: BDRate) -> BDRate:
    """The same comparison with the parts of anchor and test exchanged."""

    def turn(percent: float) -> float:
        return 100 * (100 / (100 + percent) - 1)

    interval = None if r.interval is None else (turn(r.interval[1]), turn(r.interval[0]))
    return BDRate(
        turn(r.percent), r.low, r.high, r.test, r.anchor, r.test_points, r.anchor_points, r.metric, r.method,
        interval,
    )  # fmt: skip


def _compared(r: BDRate) -> Cell:
    sure = r.interval is not None and (r.interval[0] > 0 or r.interval[1] < 0)
    tone = 0 if not sure else -1 if r.percent < 0 else 1
    return Cell(r.text(), r.percent, f"compared from {r.low:.2f} to {r.high:.2f} dB, {r.method}", tone)


def bd_matrix(dataset: str, curves: Sequence[Curve]) -> Table:
    """BD-rate (PSNR) of each row against each column."""
    cells = [[Cell("", None) for _ in curves] for _ in curves]
    for i, test in enumerate(curves):
        for j in range(i):
            try:
                found = bd_rate(curves[j], test)
                cells[i][j], cells[j][i] = _compared(found), _compared(_inverse(found))
            except CurveError as error:
                cells[i][j] = cells[j][i] = Cell("-", None, str(error))
    caption = (
        f"BD-rate (PSNR) on {dataset}: rate of the row's codec against the column's at equal quality; "
        "negative is less. In brackets: 95 % confidence, bootstrap over pictures; coloured where that "
        "excludes 0. Mean curves, PCHIP."
    )
    rows = [[Cell(c.name, c.name), *row] for c, row in zip(curves, cells, strict=True)]
    return Table(caption, ["codec", *(f"against {c.name}" for c in curves)], rows)


def means(dataset: str, curves: Sequence[Curve]) -> Table:
    """One row for each point."""
    rows = []
    for curve in curves:
        for p in sorted(curve.points, key=lambda p: p.bpp):
            times = [None if s is None else Seconds(s) for s in (p.encode_s, p.decode_s)]
            rows.append([
                cell(curve.name), cell(p.label), _interval(p.bpp, p.interval("bpp"), 3),
                _interval(p.psnr, p.interval("psnr"), 2), _interval(p.ms_ssim, p.interval("ms_ssim"), 4),
                *map(cell, times),
            ])  # fmt: skip
    columns = ["codec", "point", "bpp", "PSNR, dB", "MS-SSIM", "encoding", "decoding"]
    caption = (
        f"Means on {dataset}, bytes of whole files; in brackets 95 % confidence, bootstrap over pictures."
    )
    return Table(caption, columns, rows)


def pictures(dataset: str, curves: Sequence[Curve]) -> Table:
    """One row for each picture at each point."""
    rows = [
        [
            cell(v)
            for v in (
                i.name,
                c.name,
                p.label,
                f"{i.width}x{i.height}",
                Size(i.bytes),
                i.bpp,
                i.psnr,
                i.ms_ssim,
            )
        ]
        for c in curves
        for p in c.points
        for i in p.images
    ]
    columns = ["picture", "codec", "point", "size", "file", "bpp", "PSNR, dB", "MS-SSIM"]
    return Table(f"Every picture of {dataset}. Columns sort; the field above filters.", columns, rows)
