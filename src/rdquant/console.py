"""What the command line shows: tables, progress with time left, and JSON beside every table.

`Size` and `Seconds` are numbers that tables show in units people read; JSON has bytes and seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

#: a pipe has no width of its own; tables must not be cut there
_OUT = Console(width=None if sys.stdout.isatty() else 1000)
_ERR = Console(stderr=True)


@dataclass
class Settings:
    """What every verb was told about its output."""

    json: bool = False  #: results on stdout as JSON, instead of tables and lines
    quiet: bool = False  #: nothing on stderr but errors
    verbose: bool = False  #: tracebacks of errors, time and memory at the end


settings = Settings()


class Size(int):
    """Bytes."""

    def __str__(self) -> str:
        value, unit = float(self), "B"
        for unit in ("B", "kB", "MB", "GB"):
            if abs(value) < 999.5 or unit == "GB":
                break
            value /= 1000
        return f"{value:.3g} {unit}" if unit != "B" else f"{int(self)} B"


class Seconds(float):
    """A duration."""

    def __str__(self) -> str:
        if self < 0.9995:
            return f"{1000 * self:.3g} ms"
        if self < 60:
            return f"{float(self):.3g} s"
        minutes, seconds = divmod(round(self), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def error(message: str) -> None:
    """One line on stderr."""
    _ERR.print(f"[bold red]error:[/] {_escape(message)}", soft_wrap=True, highlight=False)


def say(message: object) -> None:
    """One line of progress or result, on stderr, so that stdout stays data; nothing if quiet."""
    if settings.quiet:
        return
    _ERR.print(_escape(str(message)), soft_wrap=True, highlight=False)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout; numbers to the right."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(r[i], int | float) or r[i] is None for r in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_escape(format_cell(v)) for v in row))
    _OUT.print(table)


def format_cell(value: Any) -> str:
    """Floats to four significant places or so, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float) and not isinstance(value, Seconds):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.3f}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def show_json(data: Any) -> None:
    """JSON on stdout."""
    json.dump(data, sys.stdout, indent=1, default=str)
    sys.stdout.write("\n")


@contextmanager
def progress(label: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr: the block calls ``update(done, total, note="")``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_ERR, transient=True, disable=settings.quiet) as bar:
        task = bar.add_task(label, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
