"""The ablation of RDO-PTQ: a declared grid of calibrations, which `rdquant.study.executor` makes and stores.

Every cell calibrates one float codec, writes real files for held-out pictures, and reports the rate that
it needs more than the float parent at equal PSNR: the parent's four-point curve on the same pictures is
interpolated (PCHIP of log-rate) at the cell's PSNR. That is a BD-rate of one point, and called so. Its
interval is by bootstrap over the held-out pictures (`rdquant.measure.bootstrap`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
from scipy.interpolate import PchipInterpolator

from ..codec import Codec
from ..codecs import FloatCodec
from ..coder import ImageCoder
from ..errors import UsageError
from ..files.container import Profile
from ..files.float_models import float_fingerprint, load_float
from ..files.integer_models import integer_fingerprint
from ..files.model_file import model_description
from ..files.split import split_files
from ..graph.capture import capture
from ..measure.bootstrap import RESAMPLES, Interval, interval, percent_text
from ..measure.metrics import psnr
from ..passes import QuantizeConfig, load_calibration, prepare
from ..passes.calibration import Calibration
from ..passes.config import MIXES, ROUNDINGS, WIDE_BITS
from ..passes.formats import FORMATS
from ..passes.rdo import RdoCalibration
from ..passes.rdo_config import FEW_BITS, STRATEGIES, RdoConfig
from ..zoo import model_path

WIDTHS = ((8, 8), (6, 8), (4, 8))
IMAGE_COUNTS = (1, 2, 5, 10, 20, 50)
#: calibration pictures of a cell that is not about their number
IMAGES = 20
#: gradients of a cell that has them: fewer and smaller than those of `rdquant quantize`
GRADIENTS: dict[str, Any] = {"steps": 40, "crop": 128, "compile": False}
#: and of the rounds in which mixings are learned, of all cells
MIXING_STEPS = 40


@dataclass(frozen=True)
class Cell:
    """One calibration: a row and a column of a table, and what makes it different from the default."""

    table: str
    row: str
    column: str
    quantize: dict[str, Any] = field(default_factory=dict)
    rdo: dict[str, Any] = field(default_factory=dict)
    images: int = IMAGES
    choice: str = "random"  #: or "entropy": the pictures that take most bits

    def key(self) -> dict[str, Any]:
        """What the result depends on; cells of two tables may share it."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if k not in ("table", "row", "column")}


def _width(weights: int, activations: int) -> dict[str, Any]:
    return {"weight_bits": weights, "activation_bits": activations}


def _rule(rule: str) -> dict[str, Any]:
    return {"weight_range": rule, "activation_range": rule, "rounding": "nearest", "mixing": "none"}


def _searched(bits: int) -> dict[str, Any]:
    """The default search of a width, its gradients reduced to `GRADIENTS`."""
    return GRADIENTS if bits < FEW_BITS else {}


def grid() -> list[Cell]:
    """Every cell of the study, table by table."""
    none: dict[str, Any] = {"steps": 0, "grid": False}
    cells = []
    for w, a in WIDTHS:
        column, width = f"W{w}A{a}", _width(w, a)
        cells += [Cell("strategy", s, column, width, {**GRADIENTS, "strategy": s}) for s in STRATEGIES]
        cells += [Cell("format", f, column, {**width, "number_format": f}, _searched(w)) for f in FORMATS]
    for w, a in ((10, 10), *WIDTHS):
        column, width = f"W{w}A{a}", _width(w, a)
        for rule in ("minmax", "percentile", "mse"):
            cells.append(Cell("range", rule, column, {**width, **_rule(rule)}, none))
        scales = {**GRADIENTS, "learn": ("scales",), "grid": True}
        cells.append(Cell("range", "rd scales", column, {**width, **_rule("mse")}, scales))
        cells.append(Cell("range", "mixing, two-sided rounding", column, width, none))
        cells.append(Cell("range", "default", column, width, _searched(w)))
    for w, a in ((8, 8), (4, 8), (8, 4)):
        column, width = f"W{w}A{a}", _width(w, a)
        cells += [Cell("mixing", m, column, {**width, "mixing": m}, none) for m in MIXES]
        cells += [Cell("rounding", r, column, {**width, "rounding": r}, none) for r in ROUNDINGS]
    for w, a in ((8, 8), (4, 8)):
        column, width = f"W{w}A{a}", {**_width(w, a), "rounding": "nearest"}
        for how in ("none", "empirical", "analytic"):
            cells.append(Cell("bias", how, column, width, {**none, "bias_correction": how}))
        cells.append(Cell("bias", "learned", column, width, {**GRADIENTS, "learn": ("bias",)}))
    for count in IMAGE_COUNTS:
        for choice in ("random", "entropy"):
            cells.append(Cell("images", choice, str(count), _width(6, 8), {}, count, choice))
    for row, w, a in (
        ("weights only", 6, WIDE_BITS),
        ("activations only", WIDE_BITS, 6),
        ("both", 6, 6),
    ):
        cells.append(Cell("what", row, "6 bits", _width(w, a)))
    hyper = ("hyper_analysis", "hyper_synthesis")
    for part in ("analysis", *hyper, "synthesis"):
        cells.append(Cell("scope", part, "W6A6", {**_width(6, 6), "scope": (part,)}))
    cells.append(Cell("scope", ", ".join(hyper), "W6A6", {**_width(6, 6), "scope": hyper}))
    cells.append(Cell("scope", "all", "W6A6", _width(6, 6)))
    everything = ("scales", "rounding", "bias")
    parts: tuple[tuple[str, dict[str, Any]], ...] = (
        ("conversion alone", none),
        ("grid of scales", {"steps": 0, "grid": True}),
        ("scales", {**GRADIENTS, "learn": ("scales",)}),
        ("rounding", {**GRADIENTS, "learn": ("rounding",)}),
        ("rounding, biases", GRADIENTS),
        ("scales, rounding, biases", {**GRADIENTS, "learn": everything}),
        ("rounding, biases, by J itself", {**GRADIENTS, "objective": "J"}),
    )
    for row, rdo in parts:
        for w, a in ((8, 8), (4, 8)):
            cells.append(Cell("parts", row, f"W{w}A{a}", _width(w, a), rdo))
    return cells


@dataclass(frozen=True)
class Measured:
    """Of one picture, or `means` of several, from real files; PSNR in dB, MSE of 8-bit samples."""

    bpp: float
    psnr: float
    mse: float


class Rated(Protocol):
    """What has a rate and a quality: `Measured`, `rdquant.measure.ImageResult`."""

    @property
    def bpp(self) -> float: ...
    @property
    def psnr(self) -> float: ...


def measure(coder: ImageCoder, pictures: list[np.ndarray]) -> list[Measured]:
    """Code each of ``pictures`` to a file (whose bytes count) and compare the decoded one."""
    rows = []
    for rgb in pictures:
        data = coder.encode(rgb)
        decoded = coder.decode(data)
        mse = float(np.mean((decoded.astype(np.float64) - rgb) ** 2))
        rows.append(Measured(8 * len(data) / (rgb.shape[0] * rgb.shape[1]), psnr(rgb, decoded), mse))
    return rows


def means(rows: Sequence[Measured]) -> Measured:
    """Over pictures."""
    return Measured(*(fmean(column) for column in zip(*map(dataclasses.astuple, rows), strict=True)))


def rate_increase(curve: Sequence[Rated], point: Rated) -> float:
    """Percent more rate than the curve needs at the point's PSNR.

    Outside the curve's PSNR the nearest two points are extended. Raises `UsageError` for fewer than two.
    """
    if len(curve) < 2:
        raise UsageError(f"a curve needs at least two float models, got {len(curve)}")
    ordered = sorted(curve, key=lambda m: m.psnr)
    q, r = [m.psnr for m in ordered], [math.log(m.bpp) for m in ordered]
    if q[0] <= point.psnr <= q[-1]:
        expected = float(PchipInterpolator(q, r)(point.psnr))
    else:
        i, j = (0, 1) if point.psnr < q[0] else (-2, -1)
        expected = r[i] + (point.psnr - q[i]) * (r[j] - r[i]) / (q[j] - q[i])
    return 100 * (point.bpp / math.exp(expected) - 1)


def increase_interval(curve: Sequence[Sequence[Rated]], point: Sequence[Rated]) -> Interval | None:
    """Of the `rate_increase` of means over pictures, 95 %: each draw takes the same pictures of all models.

    ``curve``: by float model, what each picture takes; ``point``: the same pictures. None for one picture.
    """
    tables = [np.array([(p.bpp, p.psnr, 0.0) for p in pictures]) for pictures in (*curve, point)]

    def figure(weights: np.ndarray) -> float:
        *parents, own = (Measured(*(weights @ table).tolist()) for table in tables)
        return rate_increase(parents, own)

    return interval(figure, len(point), RESAMPLES)


class Study:
    """The grid over one codec, in a folder of results.

    ``parents``: float codecs of the rate-distortion curve; ``subject``: index of the one that is
    quantized; ``pool``: calibration pictures, at least 50; ``held_out``: pictures that are measured.
    """

    def __init__(
        self,
        parents: list[FloatCodec],
        subject: int,
        lambda_: float,
        pool: list[np.ndarray],
        held_out: list[np.ndarray],
        folder: Path,
        rdo: dict[str, Any] | None = None,
    ) -> None:
        self.codec, self.lambda_ = parents[subject], lambda_
        self.pool, self.held_out, self.folder = pool, held_out, folder
        self.rdo = rdo or {}
        self._parents = parents
        self._prepared: tuple[Any, tuple[Codec, Calibration]] | None = None  # of the last cell
        self._curve: list[list[Measured]] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def curve(self) -> list[list[Measured]]:
        """The float parents on each of the held-out pictures."""
        if self._curve is None:
            self._curve = [
                measure(ImageCoder(capture(c), float_fingerprint(c), Profile.FLOAT), self.held_out)
                for c in self._parents
            ]
        return self._curve

    def chosen(self, count: int, choice: str) -> list[np.ndarray]:
        """The calibration pictures of a cell."""
        if choice == "entropy":
            coder = ImageCoder(capture(self.codec), bytes(8), Profile.FLOAT)
            order = sorted(range(len(self.pool)), key=lambda i: -len(coder.encode(self.pool[i])))
        else:
            order = np.random.default_rng(7).permutation(len(self.pool)).tolist()
        return [self.pool[i] for i in order[:count]]

    def path(self, cell: Cell) -> Path:
        """Where the cell's result is stored: named by what it depends on."""
        key = {**cell.key(), "rdo_base": self.rdo, "lambda": self.lambda_, "resamples": RESAMPLES}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=list).encode()).hexdigest()
        return self.folder / f"{digest[:12]}.json"

    def label(self, cell: Cell) -> str:
        return f"{cell.table}: {cell.row} {cell.column}"

    def preparation(self, cell: Cell) -> tuple[Any, ...]:
        """What `prepare` of a cell depends on."""
        quantize = QuantizeConfig(**cell.quantize)
        mixing = quantize.mixing
        weights = None if mixing == "none" else (quantize.weight_bits, tuple(quantize.layer_bits.items()))
        mixed = mixing, quantize.doubled if mixing == "plain" else 0.0
        return cell.images, cell.choice, mixed, weights, quantize.activation_bits, quantize.scope

    def make(self, cell: Cell) -> dict[str, Any]:
        """The cell's result, made now."""
        pictures = self.chosen(cell.images, cell.choice)
        quantize = QuantizeConfig(**{"mixing_steps": MIXING_STEPS, **cell.quantize})
        rdo = RdoConfig(**{"lambda_": self.lambda_, **self.rdo, **cell.rdo})
        start = time.perf_counter()
        key = self.preparation(cell)
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = key, prepare(capture(self.codec), pictures, quantize)
        run = RdoCalibration(self.codec, pictures, quantize, rdo, prepared=self._prepared[1])
        integer = run.run()
        seconds = time.perf_counter() - start
        rows = measure(ImageCoder(integer, integer_fingerprint(integer), Profile.INTEGER), self.held_out)
        found = means(rows)
        return {
            "cell": cell.key(), "rdo": rdo.to_json(), "quantize": quantize.to_json(),
            "bpp": found.bpp, "psnr": found.psnr, "mse": found.mse,
            "rate_increase_percent": rate_increase([means(c) for c in self.curve], found),
            "rate_increase_interval": increase_interval(self.curve, rows),
            "calibration_seconds": seconds,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "trace": [e for e in run.trace.entries if e["unit"] in ("float", "start", "grid", "bias", "end")],
            "held_out_pictures": len(self.held_out),
        }  # fmt: skip


def open_study(models: list[str], subject: str, calib: Path, folder: Path, rdo: dict[str, Any]) -> Study:
    """The study of zoo names or files, on the val split of a folder; of its pictures every third is held out.

    Raises `UsageError` for a subject that is not among the models or does not say its lambda.
    """
    if subject not in models:
        raise UsageError(f"--subject {subject} is not among the models: {', '.join(models)}")
    if (lambda_ := model_description(model_path(subject)).get("lambda")) is None:
        raise UsageError(f"{subject} does not say its lambda")
    files = split_files(calib, "val")
    crops = load_calibration(files, len(files), 256)
    pool = [c for i, c in enumerate(crops) if i % 3]
    parents = [load_float(model_path(m)) for m in models]
    return Study(parents, models.index(subject), lambda_, pool, crops[::3], folder, rdo)


def tables(
    results: list[tuple[Cell, dict[str, Any]]], value: str = "rate_increase_percent"
) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Per table its column names and rows; None where a cell has no result."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for cell, result in results:
        found.setdefault(cell.table, {}).setdefault(cell.row, {})[cell.column] = result[value]
    out = {}
    for table, rows in found.items():
        columns = list(dict.fromkeys(c for row in rows.values() for c in row))
        out[table] = (["", *columns], [[name, *map(row.get, columns)] for name, row in rows.items()])
    return out


def shown(rows: list[list[Any]], intervals: list[list[Any]]) -> list[list[str]]:
    """Rows of `tables` and of their intervals, as text."""
    return [
        [name, *map(percent_text, values, known)]
        for (name, *values), (_, *known) in zip(rows, intervals, strict=True)
    ]
