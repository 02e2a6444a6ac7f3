"""A report as one HTML file: text, tables, figures and pictures, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..console import format_cell
from ..files.atomic import atomic_write

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left } tr:hover td { background: var(--soft) }
.wide { overflow-x: auto } figure { margin: 1rem 0 } figcaption { font-size: .88rem; opacity: .8 }
figure > img { max-width: 100%; background: #fff; border-radius: 6px }
.row { display: flex; gap: .8rem; flex-wrap: wrap } .row figure { flex: 1 1 15rem; margin: 0 }
.row img { width: 100%; image-rendering: auto } p { max-width: 46rem }
"""


@dataclass
class Report:
    """Sections in the order they are added; every text is escaped."""

    title: str
    intro: str = ""
    _body: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self._body.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self._body.append(f"<p>{html.escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
        cells = ("".join(f"<td>{html.escape(format_cell(v))}</td>" for v in row) for row in rows)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        self._body.append(f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>')

    def figure(self, png: bytes, caption: str) -> None:
        self._body.append(_figure(png, caption))

    def pictures(self, pictures: Sequence[tuple[str, np.ndarray]]) -> None:
        """Pictures side by side: ``(caption, (H, W, 3) uint8)`` each."""
        figures = "".join(_figure(_png(pixels), caption) for caption, pixels in pictures)
        self._body.append(f'<div class="row">{figures}</div>')

    def write(self, path: Path) -> None:
        page = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{_STYLE}</style><h1>{html.escape(self.title)}</h1><p>{html.escape(self.intro)}</p>"
            + "\n".join(self._body)
            + "</html>\n"
        )
        with atomic_write(path) as handle:
            handle.write(page.encode())


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def _figure(png: bytes, caption: str) -> str:
    text = html.escape(caption)
    source = base64.b64encode(png).decode()
    image = f'<img alt="{text}" src="data:image/png;base64,{source}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
