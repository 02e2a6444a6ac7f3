"""Folders of pictures that are split into training and validation."""

from __future__ import annotations

import csv
from pathlib import Path

from ..errors import UsageError
from .images import list_images


def split_files(folder: Path, split: str | None) -> list[Path]:
    """The pictures of one split (``train``, ``val``), sorted, or all of them for ``None``.

    A CSV in the folder with columns ``file`` and ``split`` decides; without one, every 20th picture is
    the val split. Raises `UsageError` when there is nothing to read.
    """
    if split is None:
        return list_images(folder)
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}")
    for table in sorted(folder.glob("*.csv")):
        with table.open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        if rows and {"file", "split"} <= set(rows[0]):
            files = sorted(folder / row["file"] for row in rows if row["split"] == split)
            break
    else:
        pictures = list_images(folder)
        files = [p for i, p in enumerate(pictures) if (i % 20 == 0) == (split == "val")]
    if not files:
        raise UsageError(f"{folder} has no pictures in the {split!r} split")
    return files
