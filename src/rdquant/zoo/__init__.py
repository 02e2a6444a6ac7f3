"""The models shipped with the package: float codecs and their quantized forms.

``index.json`` holds one entry per model: file, kind, architecture, lambda (lambdas, of models for many
rates), fingerprint and the rate-distortion on Kodak, of `benchmarks/zoo.py` or `benchmarks/rd_s.py`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from ..errors import UnknownModel

DEFAULT = "rd-s-w8a8"
_FOLDER = Path(__file__).parent


@functools.cache
def index() -> dict[str, dict[str, Any]]:
    """Name -> entry, of the models that are here: wheels leave out some float parents."""
    path = _FOLDER / "index.json"
    entries = json.loads(path.read_text()) if path.exists() else {}
    return {name: e for name, e in entries.items() if (_FOLDER / e["file"]).exists()}


def find(name: str) -> Path | None:
    """The file of a zoo model, or None."""
    entry = index().get(name)
    return None if entry is None else _FOLDER / entry["file"]


def model_path(name: str) -> Path:
    """A zoo name or a path -> the model file. Raises `UnknownModel`."""
    if (path := find(name)) is not None:
        return path
    if Path(name).is_file():
        return Path(name)
    raise UnknownModel(f"{name!r} is neither a file nor a zoo model; `rdquant zoo` lists those")


def by_fingerprint(fingerprint: bytes) -> Path | None:
    """The file of the zoo model with this fingerprint, or None."""
    for entry in index().values():
        if entry["fingerprint"] == fingerprint.hex():
            return _FOLDER / entry["file"]
    return None
