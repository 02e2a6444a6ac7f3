"""Results as data: what was measured of each picture, and how, in versioned JSON."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from .. import __version__
from ..errors import CurveError
from ..files.atomic import atomic_write
from ..threads import allowed
from .bootstrap import Interval, mean_interval
from .metrics import ms_ssim_db

RESULT_VERSION = 1


@dataclass(frozen=True)
class ImageResult:
    """One picture through one codec at one setting."""

    name: str
    width: int
    height: int
    bytes: int  #: of the whole file, header included
    bpp: float  #: 8 * bytes / pixels
    bpp_estimated: float | None  #: ideal code length under the coding tables, without any header
    psnr: float
    ms_ssim: float | None
    encode_s: float | None
    decode_s: float | None


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None


@dataclass(frozen=True, repr=False)
class Point:
    """One setting over a set of pictures. Means are means of per-picture values."""

    label: str
    model: dict[str, Any]
    images: list[ImageResult]

    def __repr__(self) -> str:
        means = f", {self.bpp:.3f} bpp, {self.psnr:.2f} dB" if self.images else ""
        return f"Point({self.label!r}, {len(self.images)} pictures{means})"

    @property
    def bpp(self) -> float:
        return fmean(i.bpp for i in self.images)

    @property
    def psnr(self) -> float:
        return fmean(i.psnr for i in self.images)

    @property
    def ms_ssim(self) -> float | None:
        return _mean([i.ms_ssim for i in self.images])

    @property
    def ms_ssim_db(self) -> float | None:
        return _mean([None if i.ms_ssim is None else ms_ssim_db(i.ms_ssim) for i in self.images])

    @property
    def bpp_estimated(self) -> float | None:
        return _mean([i.bpp_estimated for i in self.images])

    def interval(self, name: str) -> Interval | None:
        """95 % of the mean of "bpp", "psnr", "ms_ssim" or another figure; see `rdquant.measure.bootstrap`."""
        return mean_interval([getattr(i, name) for i in self.images])

    @property
    def encode_s(self) -> float | None:
        return _mean([i.encode_s for i in self.images])

    @property
    def decode_s(self) -> float | None:
        return _mean([i.decode_s for i in self.images])


@dataclass(frozen=True, repr=False)
class Curve:
    """A codec's points on one data set, and everything needed to read them right."""

    name: str
    dataset: str
    points: list[Point]
    meta: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Curve({self.name!r}, {self.dataset!r}, {len(self.points)} points)"

    def to_json(self) -> dict[str, Any]:
        """Means and their intervals beside the per-picture values they come from, six significant digits."""
        data = {"version": RESULT_VERSION, "name": self.name, "dataset": self.dataset, "meta": self.meta}
        rows = []
        for p in self.points:
            means = {
                k: getattr(p, k) for k in ("bpp", "bpp_estimated", "psnr", "ms_ssim", "encode_s", "decode_s")
            }
            intervals = {k: p.interval(k) for k in ("bpp", "psnr", "ms_ssim")}
            images = [_rounded(dataclasses.asdict(i)) for i in p.images]
            rows.append(
                {
                    "label": p.label,
                    "model": p.model,
                    "mean": _rounded(means),
                    "interval": intervals,
                    "images": images,
                }
            )
        return {**data, "points": rows}

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        text = json.dumps(self.to_json(), indent=1, default=str)
        # one picture a line
        text = text.replace(",\n     ", ", ").replace("{\n     ", "{").replace("\n    }", "}")
        with atomic_write(Path(path)) as handle:
            handle.write(text.encode() + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> Curve:
        """Raises `CurveError` for a missing, damaged or foreign file."""
        try:
            data = json.loads(Path(path).read_text())
            if data["version"] != RESULT_VERSION:
                raise CurveError(f"{path} has result version {data['version']!r}, not {RESULT_VERSION}")
            points = [
                Point(p["label"], p["model"], [ImageResult(**i) for i in p["images"]]) for p in data["points"]
            ]
            return cls(data["name"], data["dataset"], points, data["meta"])
        except OSError as error:
            raise CurveError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, CurveError):
                raise
            raise CurveError(f"{path} is not a result file of `rdquant evaluate`: {error}") from None


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}


def machine() -> dict[str, Any]:
    """What the measuring machine is, without names or paths."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": allowed(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("numpy", "numba", "torch") if find_spec(package)},
        "rdquant": __version__,
        "date": datetime.date.today().isoformat(),
    }
