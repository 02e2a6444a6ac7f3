"""A plan: a weight width for every layer, and what it promises."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files.atomic import atomic_write
from ..measure.bootstrap import Interval
from ..passes.formats import FORMATS, FormatName

PLAN_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """``bits`` by layer (``g_a.0``). Round-trips through JSON; `rdquant quantize --plan` takes it."""

    bits: Mapping[str, int]
    size: int  #: bytes of the packed model file: measured on the calibration at hand, or predicted
    increase: float  #: relative increase of J: measured if refined, else the sum of the layers' zetas
    method: str
    beta: float | None = None  #: FMPQ's tolerance
    number_format: FormatName = "coded"  #: of the weights
    target: int | None = None  #: bytes that the file may have: `rdquant quantize --plan` keeps to it
    about: Mapping[str, Any] = field(default_factory=dict)
    interval: Interval | None = None  #: of ``increase``, 95 % over the judging pictures, if measured whole

    def average_bits(self, counts: Mapping[str, int]) -> float:
        """Mean bits of a weight; ``counts``: weights by layer."""
        return sum(self.bits[n] * c for n, c in counts.items()) / sum(counts.values())

    def to_json(self) -> dict[str, Any]:
        return {"version": PLAN_VERSION, **dataclasses.asdict(self)}

    def save(self, path: Path) -> None:
        with atomic_write(path) as handle:
            handle.write(json.dumps(self.to_json(), indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Raises `UsageError` for a file that is no plan."""
        try:
            fields = dict(json.loads(path.read_text()))
            version = fields.pop("version", None)
            if version != PLAN_VERSION:
                raise UsageError(
                    f"{path} is a plan of version {version!r}, this release reads {PLAN_VERSION}"
                )
            plan = cls(**fields)
            if not all(isinstance(b, int) and 2 <= b <= 16 for b in plan.bits.values()):
                raise UsageError(f"{path}: bits must be integers of 2..16, got {dict(plan.bits)}")
            if plan.number_format not in FORMATS:
                raise UsageError(f"{path}: unknown number format {plan.number_format!r}")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} is no plan: {error}") from None
        return plan
