"""One HTML file with everything in it: text, tables, figures and pictures. Nothing is fetched."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UsageError
from ..files.atomic import atomic_write
from .figures import Figure
from .matched import Matched
from .tables import Cell, Table


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text()


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UsageError("reports need Plotly: pip install 'rdquant[report]'") from None
    return str(get_plotlyjs())


def _data(value: Any) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def picture_uri(rgb: np.ndarray) -> str:
    """``(H, W, 3)`` uint8 as a data URI, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, "WEBP", lossless=True, quality=50, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


class Page:
    """Parts in the order they are added; every text is escaped."""

    def __init__(self, title: str, intro: str = "") -> None:
        self.title, self.intro = title, intro
        self._body: list[str] = []
        self._figures: list[dict[str, Any]] = []
        self._notes: list[str] = []

    def heading(self, text: str) -> None:
        self._body.append(f"<h2>{html.escape(text)}</h2>")

    def note(self, text: str) -> None:
        """A line at the page's end: where numbers come from."""
        self._notes.append(f"<li>{html.escape(text)}</li>")

    def table(self, table: Table, sortable: bool = False, folded: bool = False) -> None:
        """``folded``: long; behind a click, with a field that filters."""
        numeric = [any(_is_number(c) for c in column) for column in zip(*table.rows, strict=True)]
        heads = "".join(_head(c, sortable, n) for c, n in zip(table.columns, numeric, strict=False))
        rows = "".join(
            f"<tr>{''.join(_cell(c, i == 0) for i, c in enumerate(row))}</tr>" for row in table.rows
        )
        caption = html.escape(table.caption)
        whole = (
            f'<p class="caption">{caption}</p><div class="wide" tabindex="0" role="region" '
            f'aria-label="{caption}"><table aria-label="{caption}"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
        if folded:
            field = '<label class="filter">Filter <input type="search" autocomplete="off"></label>'
            whole = f"<details><summary>All {len(table.rows):,} rows</summary>{field}{whole}</details>"
        self._body.append(whole)

    def figure(self, figure: Figure) -> None:
        at = f"figure-{len(self._figures)}"
        self._figures.append(
            {"at": at, "name": figure.name, "traces": figure.traces, "layout": figure.layout}
        )
        caption = html.escape(figure.caption)
        self._body.append(
            f'<figure><div class="plot" id="{at}" role="img" aria-label="{caption}"></div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )

    def compare(self, pictures: Sequence[Matched]) -> None:
        """Two versions of a picture on top of each other, with a divider that moves."""
        data = [
            {
                "name": m.name, "width": m.versions[0].rgb.shape[1], "height": m.versions[0].rgb.shape[0],
                "versions": [{"label": v.label, "uri": picture_uri(v.rgb)} for v in m.versions],
            }
            for m in pictures
        ]  # fmt: skip
        self._body.append(
            f'<script type="application/json" class="pictures">{_data(data)}</script>'
            + _asset("compare.html")
        )

    def write(self, path: Path) -> None:
        plotly = f"<script>{_plotly()}</script>" if self._figures else ""
        page = (
            _asset("page.html")
            .replace("{{title}}", html.escape(self.title))
            .replace("{{intro}}", html.escape(self.intro))
            .replace("{{css}}", _asset("page.css"))
            .replace("{{notes}}", "".join(self._notes))
            .replace("{{figures}}", _data(self._figures))
            .replace("{{plotly}}", plotly)
            .replace("{{js}}", _asset("page.js"))
            .replace("{{body}}", "\n".join(self._body))
        )
        with atomic_write(path) as handle:
            handle.write(page.encode())


def _head(text: str, sortable: bool, number: bool) -> str:
    text, kind = html.escape(text), ' class="number"' if number else ""
    return f'<th scope="col"{kind}>{f"<button>{text}</button>" if sortable else text}</th>'


def _is_number(cell: Cell) -> bool:
    return isinstance(cell.value, int | float)


def _cell(cell: Cell, first: bool) -> str:
    tag = "th" if first else "td"
    parts = [' scope="row"'] if first else []
    if cell.value is not None:
        value = cell.value if isinstance(cell.value, str) else float(cell.value)
        parts.append(f' data-value="{html.escape(str(value))}"')
    if _is_number(cell) and not first:
        parts.append(' class="number' + {-1: " good", 0: "", 1: " bad"}[cell.tone] + '"')
    if cell.title:
        parts.append(f' title="{html.escape(cell.title)}"')
    return f"<{tag}{''.join(parts)}>{html.escape(cell.text)}</{tag}>"
