"""All methods beside each other: on every codec, at every width, from real files; made and
stored by `rdquant.study.executor`.

A cell quantizes one float model by one method at one width, or to one file size, codes pictures to files with
it, and says how much more rate it needs than the float parents' curve at equal PSNR (`rate_increase`: one
point; where only one model of an architecture is given, the increase of J). A cell that was made with fewer
pictures or steps than the method has by default says so (``reduced``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..allocate.methods import METHODS as SEARCHES
from ..allocate.methods import Problem, plan_for
from ..allocate.run import judged_twins, parameter_count
from ..codec import Codec
from ..codecs import FloatCodec
from ..coder import ImageCoder
from ..errors import UsageError
from ..files.atomic import atomic_write
from ..files.container import Profile
from ..files.float_models import float_fingerprint, load_float
from ..files.images import list_images, read_image
from ..files.integer_models import file_bytes, integer_fingerprint
from ..files.model_file import model_description
from ..files.split import split_files
from ..graph.capture import capture
from ..measure.bootstrap import RESAMPLES, interval, percent_text
from ..passes import QuantizeConfig, load_calibration, prepare
from ..passes.methods import METHODS, Job, options_for, pictures_for, quantize_by
from ..passes.rdo import Trace
from ..passes.rdo_config import RdoConfig
from ..passes.sized import quantize_to_size
from ..zoo import model_path
from .ablation import Measured, increase_interval, means, measure, rate_increase

WIDTHS = ("W10A10", "W8A8", "W6A8", "W4A8")
SIZES = ("4x", "6x", "8x", "12x")
#: methods whose gradients can be reduced, to so many steps (of a unit, where they have units)
REDUCIBLE = ("ours", "adaround", "brecq", "rdo-ptq")

#: what was published, and what differs from the cells beside it
PUBLISHED: Mapping[str, tuple[str, str]] = {
    "rdo-ptq": (
        "Kodak BD-rate, channel-wise: W8A8 5.84 % (Minnen2018), 4.88 % (Cheng2020); W10A10 0.41, 0.43 %",
        "larger codecs; dynamic ranges of activations; 20,000 steps a layer; here all is static integers",
    ),
    "fmpq": (
        "Kodak BD-rate: 1.20 % (Minnen2018), 0.89 % (Cheng2020), weights at 4.0x",
        "larger codecs; whether activations were quantized is not known; weights stored plainly",
    ),
    "hessian": (
        "HAMP-LIC, Kodak BD-rate: W6.6A8 3.75 % (Minnen2018), 2.99 % (Cheng2020)",
        "larger codecs; block reconstruction besides; weights stored plainly",
    ),
}


@dataclass(frozen=True)
class Cell:
    """``method``: of `rdquant.passes.methods` at a width, or of `rdquant.allocate.methods` at a size."""

    model: str
    method: str
    at: str

    @property
    def sized(self) -> bool:
        return not self.at.startswith("W")

    def bits(self) -> tuple[int, int]:
        """Of weights and activations."""
        weights, _, activations = self.at[1:].partition("A")
        if not (weights.isdigit() and activations.isdigit()):
            raise UsageError(f"a width is like W8A8, a size like 8x, got {self.at!r}")
        return int(weights), int(activations)


def grid(models: list[str], methods: list[str], ats: list[str]) -> list[Cell]:
    """Every cell, model after model. Raises `UsageError` for a method that there is not."""
    if unknown := set(methods) - set(METHODS) - set(SEARCHES):
        known = ", ".join(dict.fromkeys([*METHODS, *SEARCHES]))
        raise UsageError(f"no method {', '.join(sorted(unknown))}; there are {known}")
    cells = [Cell(m, method, at) for m in models for at in ats for method in methods]
    return [c for c in cells if c.method in (SEARCHES if c.sized else METHODS)]


@dataclass
class Reduced:
    """What cells are made with; None: as the method has it."""

    calibration: int = 64
    steps: int | None = None
    mixing_steps: int | None = None
    budget: int = 1000
    every: int = 1  #: of the pictures that are measured, one of so many

    def options(self) -> list[str]:
        """As words of the command line, where they are not the defaults."""
        words = []
        for f in dataclasses.fields(self):
            if (value := getattr(self, f.name)) != f.default:
                words += [f"--{f.name.replace('_', '-')}", str(value)]
        return words

    def marks(self, cell: Cell) -> list[str]:
        """What of it is less than usual, of one cell."""
        found = []
        most = None if cell.sized else METHODS[cell.method].pictures
        if self.calibration < min(64, most or 64):
            found.append(f"{self.calibration} calibration pictures")
        if self.every > 1:
            found.append(f"every {self.every}th picture")
        if self.steps is not None and cell.method in REDUCIBLE and not cell.sized:
            found.append(f"{self.steps} steps")
        if self.mixing_steps is not None and (cell.sized or cell.method == "ours"):
            found.append(f"mixings of {self.mixing_steps} steps")
        if cell.method in ("evolutionary", "annealing") and self.budget < 1000:
            found.append(f"{self.budget} plans")
        return found


@dataclass
class Model:
    """A float codec of the study; ``family``: models of one curve."""

    codec: FloatCodec
    lambda_: float
    family: str
    _prepared: tuple[Any, Any] | None = field(default=None, repr=False)
    _problem: Problem | None = field(default=None, repr=False)


class Comparison:
    """The cells over some models, in a folder of results.

    ``pool``: calibration pictures, ``(H, W, 3)`` uint8; ``shown``: pictures that are measured.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        pool: list[np.ndarray],
        shown: list[np.ndarray],
        folder: Path,
        reduced: Reduced,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.models, self.folder, self.reduced, self.about = models, folder, reduced, dict(about or {})
        count = min(reduced.calibration, len(pool))
        self.pool = [pool[i * len(pool) // count] for i in range(count)]
        self.shown = shown[:: reduced.every]
        self._floats: dict[str, list[Measured]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, cell: Cell) -> Path:
        """Where the cell is stored, by what it depends on."""
        model = self.models[cell.model]
        key = {
            "cell": dataclasses.asdict(cell), "fingerprint": float_fingerprint(model.codec).hex(),
            "lambda": model.lambda_, "marks": self.reduced.marks(cell), "pictures": len(self.shown),
            "calibration": len(self.pool), **self.about,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
        return self.folder / f"{cell.model}-{cell.method}-{cell.at}-{digest}.json"

    def parent(self, name: str) -> list[Measured]:
        """The float codec on each of the pictures."""
        if name not in self._floats:
            store = self.folder / f"{name}-float-{len(self.shown)}.json"
            if store.exists():
                self._floats[name] = [Measured(**row) for row in json.loads(store.read_text())]
            else:
                codec = self.models[name].codec
                coder = ImageCoder(capture(codec), float_fingerprint(codec), Profile.FLOAT)
                self._floats[name] = measure(coder, self.shown)
                with atomic_write(store) as handle:
                    handle.write(json.dumps([vars(row) for row in self._floats[name]], indent=1).encode())
        return self._floats[name]

    def _integer(self, cell: Cell) -> tuple[Codec, Trace, dict[str, Any]]:
        model, reduced = self.models[cell.model], self.reduced
        own: dict[str, Any] = {"mixing_steps": reduced.mixing_steps}
        if cell.sized:
            config = QuantizeConfig(number_format="coded", **own)
            if model._problem is None:
                twins, x = judged_twins(model.codec, self.pool, config)
                model._problem = Problem(
                    twins, x, model.lambda_, parameter_count(model.codec), budget=reduced.budget
                )
            problem = model._problem
            target = problem.target(cell.at)
            plan = plan_for(problem, cell.method, target)
            quantize, rdo = options_for(
                "ours",
                {**own, "number_format": "coded", "layer_bits": plan.bits},
                {"lambda_": model.lambda_, "steps": 0},
            )
            prepared = self._prepare(model, quantize, self.pool)
            integer, trace = quantize_to_size(
                lambda c: quantize_by("ours", Job(model.codec, self.pool, c, rdo, prepared=prepared)),
                prepared, quantize, target,
            )  # fmt: skip
            found = {"target": target, "planned": plan.size, "increase": plan.increase, "bits": plan.bits}
            return integer, trace, found
        quantize, rdo = self._options(cell)
        pictures = pictures_for(cell.method, self.pool)
        job = Job(model.codec, pictures, quantize, rdo, prepared=self._prepare(model, quantize, pictures))
        return *quantize_by(cell.method, job), {}

    def _options(self, cell: Cell) -> tuple[QuantizeConfig, RdoConfig]:
        reduced = self.reduced
        weights, activations = cell.bits()
        steps = {"steps": reduced.steps} if reduced.steps is not None and cell.method in REDUCIBLE else {}
        if cell.method == "ours" and weights >= 6:
            steps = {}
        return options_for(
            cell.method,
            {"mixing_steps": reduced.mixing_steps, "weight_bits": weights, "activation_bits": activations},
            {"lambda_": self.models[cell.model].lambda_, "compile": False, **steps},
        )

    def _prepare(self, model: Model, quantize: QuantizeConfig, pictures: list[np.ndarray]) -> Any:
        key = _prepared_for(quantize, len(pictures))
        if model._prepared is None or model._prepared[0] != key:
            model._prepared = key, prepare(capture(model.codec), pictures, quantize)
        return model._prepared[1]

    def label(self, cell: Cell) -> str:
        return f"{cell.model} {cell.method} {cell.at}"

    def preparation(self, cell: Cell) -> tuple[Any, ...]:
        """The model, and what of its preparation the cell shares: sized cells the sensitivities."""
        if cell.sized:
            return cell.model, "sized"
        pictures = len(pictures_for(cell.method, self.pool))
        return cell.model, *_prepared_for(self._options(cell)[0], pictures)

    def make(self, cell: Cell) -> dict[str, Any]:
        """The cell's result, made now."""
        model, start = self.models[cell.model], time.perf_counter()
        integer, trace, more = self._integer(cell)
        seconds = time.perf_counter() - start
        coder = ImageCoder(integer, integer_fingerprint(integer), Profile.INTEGER)
        rows, parent = measure(coder, self.shown), self.parent(cell.model)
        found = means(rows)
        j, j_float = (np.array([m.bpp + model.lambda_ * m.mse for m in of]) for of in (rows, parent))
        curve = [self.parent(n) for n, m in self.models.items() if m.family == model.family]
        if len(curve) > 1:
            rate, spread = rate_increase([means(of) for of in curve], found), increase_interval(curve, rows)
        else:
            rate = None
            spread = interval(lambda w: 100 * float(w @ j / (w @ j_float) - 1), len(rows), RESAMPLES)
        size = file_bytes(integer)
        parameters = 4 * parameter_count(model.codec)
        costs = {e["unit"]: e["J"] for e in trace.entries if "J" in e}
        return {
            **dataclasses.asdict(cell), "bpp": found.bpp, "psnr": found.psnr, "mse": found.mse,
            "rate_percent": rate, "j_percent": 100 * (j.mean() / j_float.mean() - 1), "interval": spread,
            "held_out_j": costs, "bytes": size,
            "times_smaller": parameters / size, "seconds": seconds, "pictures": len(self.shown),
            "reduced": self.reduced.marks(cell), **more,
        }  # fmt: skip


def _prepared_for(quantize: QuantizeConfig, pictures: int) -> tuple[Any, ...]:
    widths = (quantize.weight_bits, quantize.activation_bits, tuple(quantize.layer_bits.values()))
    return quantize.mixing, pictures, None if quantize.mixing == "none" else widths


def open_comparison(
    models: list[str], calib: Path, images: Path, folder: Path, reduced: Reduced
) -> Comparison:
    """The study of zoo names or files; the val split of ``calib`` calibrates, ``images`` are measured.

    Raises `UsageError` for a model that does not say its lambda.
    """
    found = {}
    for name in dict.fromkeys(models):
        if (lambda_ := model_description(model_path(name)).get("lambda")) is None:
            raise UsageError(f"{name} does not say its lambda")
        stem = Path(name).stem
        found[stem] = Model(load_float(model_path(name)), lambda_, stem.rpartition("-")[0])
    pool = load_calibration(split_files(calib, "val"), reduced.calibration, 256)
    shown = [read_image(p) for p in list_images(images)]
    return Comparison(found, pool, shown, folder, reduced, {"images": images.name})


def table(results: list[dict[str, Any]], model: str) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows of one model: percent more rate at equal PSNR (of J where there is no curve),
    methods by widths and sizes. A cell that is reduced ends in an asterisk.
    """
    own = [r for r in results if r["model"] == model]
    ats, methods = (list(dict.fromkeys(r[k] for r in own)) for k in ("at", "method"))
    rows = []
    for method in methods:
        row: list[Any] = [method]
        for at in ats:
            found = next((r for r in own if r["method"] == method and r["at"] == at), None)
            if found is None:
                row.append("")
                continue
            value = found["rate_percent"] if found["rate_percent"] is not None else found["j_percent"]
            row.append(percent_text(value, found.get("interval")) + ("*" if found["reduced"] else ""))
        rows.append([*row, *PUBLISHED.get(method, ("", ""))])
    return ["method", *ats, "published", "what differs there"], rows
