"""What a report is made of: results, plans, sensitivity tables and traces, told apart by their content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..measure import Curve


@dataclass
class Inputs:
    """``curves`` as they were given, each of one data set; the others by name of their file.

    ``plans``: bits by layer. ``sensitivity``: by layer, by width, relative increase of J. ``traces``: entries
    with ``J``, of `rdquant quantize --json`.
    """

    curves: list[Curve] = field(default_factory=list)
    plans: dict[str, dict[str, int]] = field(default_factory=dict)
    sensitivity: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    traces: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """Files, and all JSON files directly in folders. Raises `UsageError` for a file that is none of these.

    Of folders, files of other kinds are left out. Raises `UsageError` if nothing is left.
    """
    found = Inputs()
    for path in paths:
        if path.is_dir():
            for file in sorted(path.glob("*.json")):
                _read(file, found)
        elif not _read(path, found):
            raise UsageError(
                f"{path} is no result of `rdquant evaluate`, no plan or table of `rdquant allocate`, and no "
                "trace of `rdquant quantize --json`"
            )
    if not (found.curves or found.plans or found.sensitivity or found.traces):
        raise UsageError(f"nothing to report in {', '.join(map(str, paths))}")
    return found


def _read(path: Path, found: Inputs) -> bool:
    """Whether a file was of use."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        return False
    if isinstance(data.get("points"), list) and "dataset" in data:
        found.curves.append(Curve.load(path))
    elif isinstance(data.get("zeta"), dict) and "sizes" in data:
        found.sensitivity[path.stem] = {
            layer: {int(bits): float(z) for bits, z in row.items()} for layer, row in data["zeta"].items()
        }
    elif isinstance(data.get("bits"), dict) and "increase" in data:
        found.plans[path.stem] = {layer: int(bits) for layer, bits in data["bits"].items()}
    elif isinstance(data.get("trace"), list):
        found.traces[path.stem] = [entry for entry in data["trace"] if "J" in entry]
    else:
        return False
    return True
