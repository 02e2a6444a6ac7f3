"""Mixed precision against uniform widths, on Kodak, from real files and real model files.

    python benchmarks/allocate.py --calib TRAIN --images KODAK

For each zoo model: the sensitivity table, plans for the sizes below (refined where they are small) and for
the sizes of uniform widths, all of them quantized on the same pictures, no gradients. Then four-point
BD-rates against the float parents. Resumes from --run. Calibration is on the training folder's val split.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from pathlib import Path

import numpy as np

from rdquant import zoo
from rdquant.allocate import Neighbourhood, Plan, SensitivityTable, knapsack, refine
from rdquant.allocate.judge import Judge
from rdquant.allocate.refine import best_of
from rdquant.allocate.run import judged_twins
from rdquant.allocate.search import uniform
from rdquant.allocate.table import measure_table
from rdquant.codecs import FloatCodec
from rdquant.coder import ImageCoder
from rdquant.errors import CurveError
from rdquant.files.container import Profile
from rdquant.files.float_models import load_float
from rdquant.files.images import list_images
from rdquant.files.integer_models import file_bytes, integer_fingerprint
from rdquant.files.model_file import model_description
from rdquant.files.split import split_files
from rdquant.graph.capture import capture
from rdquant.measure import Curve, Point, bd_rate, evaluate, machine
from rdquant.passes import QuantizeConfig, load_calibration, prepare, to_integer
from rdquant.study.plots import bits_figure, pareto_figure, to_png

FAMILY, LAMBDAS = "mean-scale-s", ("0035", "0067", "0130", "0250")
RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parent.parent / "docs" / "figures"
SIZES = ("4x", "5x", "6x", "8x", "10x", "12x")
#: from this size on, plans are refined
REFINED_FROM = 11.0
UNIFORM = (8, 6, 5, 4, 3)
ROUNDS, SEARCH_PICTURES, CALIBRATION_PICTURES = 3, 64, 96
CONFIG = QuantizeConfig(number_format="coded")


def search(codec: FloatCodec, crops: list[np.ndarray], lambda_: float, store: Path) -> dict:
    """The table, the refined plans and what they cost: a stored result, or made now and stored."""
    if store.exists():
        return json.loads(store.read_text())
    clock = {"start": time.perf_counter()}

    def lap(name: str) -> None:
        now = time.perf_counter()
        clock[name], clock["start"] = round(now - clock["start"], 1), now

    twins, x = judged_twins(codec, crops, CONFIG)
    lap("preparation_seconds")
    table = measure_table(twins, x, lambda_, sum(p.numel() for p in codec.parameters()))
    lap("table_seconds")
    judge = Judge(twins, x, lambda_, table.j_float, outputs=False)
    near, refined = Neighbourhood(judge, table), {}
    for name, size in targets(table).items():
        if table.sizes.float_bytes / size >= REFINED_FROM:
            refine(near, size, ROUNDS)
            refined[name] = best_of(near.archive, size).to_json()
    lap("refine_seconds")
    del clock["start"]
    evaluations = {"table": table.evaluations, "refine": judge.evaluations}
    result = {"refined": refined, "table": table.to_json(), "evaluations": evaluations, **clock}
    store.write_text(json.dumps(result, indent=1))
    return result


def targets(table: SensitivityTable) -> dict[str, int]:
    """Bytes of each plan but the uniform ones."""
    found = {s: table.sizes.target(s) for s in SIZES}
    return found | {f"as W{b}": uniform(table, b).size for b in UNIFORM if b != max(UNIFORM)}


def plans(store: Path, found: dict) -> dict[str, Plan]:
    """All plans by name: refined, from the table alone, and uniform."""
    path = store.with_name(f"table-{store.stem}.json")
    path.write_text(json.dumps(found["table"]))
    table = SensitivityTable.load(path)
    out = {name: knapsack(table, size) for name, size in targets(table).items()}
    for name, fields in found["refined"].items():
        out[name] = Plan(**{k: v for k, v in fields.items() if k != "version"})
    return out | {f"W{b}": uniform(table, b) for b in UNIFORM}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/allocate"))
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    files = list_images(args.images)
    val = split_files(args.calib, "val")
    shown, crops = (load_calibration(val, n, 256) for n in (SEARCH_PICTURES, CALIBRATION_PICTURES))
    curves: dict[str, list[tuple[Point, int]]] = {}
    searches, predicted, bits = {}, [], {}
    for lam in LAMBDAS:
        path = zoo.find(f"{FAMILY}-{lam}")
        assert path is not None
        codec, lambda_ = load_float(path), model_description(path)["lambda"]
        store = args.run / f"search-{lam}.json"
        found = search(codec, shown, lambda_, store)
        chosen = plans(store, found)
        mixed = seen = None
        bits[lam] = {name: plan.bits for name, plan in chosen.items()}
        for name, plan in chosen.items():
            digest = hashlib.sha256(json.dumps(dict(plan.bits), sort_keys=True).encode()).hexdigest()[:8]
            store = args.run / f"{lam}-{digest}.json"
            if not store.exists():
                if mixed is None or seen is None:
                    mixed, seen = prepare(capture(codec), crops, CONFIG)
                config = dataclasses.replace(CONFIG, layer_bits=plan.bits)
                integer, _ = to_integer(mixed, seen, config)
                coder = ImageCoder(integer, integer_fingerprint(integer), Profile.INTEGER)
                point = Point(f"{FAMILY}-{lam}", coder.describe(), evaluate(coder, files))
                Curve(name, "kodak", [point], {"bytes": file_bytes(integer)}).save(store)
            curve = Curve.load(store)
            point, size = curve.points[0], curve.meta["bytes"]
            curves.setdefault(name, []).append((point, size))
            predicted.append((size, plan.size))
            print(f"{lam} {name:8} {size:8} bytes {point.bpp:.4f} bpp {point.psnr:.3f} dB", flush=True)
        searches[lam] = {k: v for k, v in found.items() if k.endswith("_seconds") or k == "evaluations"}
    parent = Curve.load(RESULTS / f"kodak-{FAMILY}.json")
    float_bytes = [found["table"]["sizes"]["float_bytes"] for _ in LAMBDAS]
    rows = {}
    for name, pairs in curves.items():
        curve = Curve(name, "kodak", [p for p, _ in pairs])
        try:
            result = vars(bd_rate(parent, curve))
        except CurveError as error:  # a curve in ruins
            result = {"percent": None, "error": str(error)}
        sizes = [size for _, size in pairs]
        rows[name] = {
            "bytes": sizes, "times_smaller": [f / s for f, s in zip(float_bytes, sizes, strict=True)],
            "bd_rate_psnr": result,
            "coded_bits": [SensitivityTable.load(args.run / f"table-search-{lam}.json").sizes.coded_bits(size)
                           for lam, size in zip(LAMBDAS, sizes, strict=True)],
            "bits": {lam: dict(bits[lam][name]) for lam in LAMBDAS},
            "points": [{k: getattr(p, k) for k in ("label", "bpp", "psnr", "ms_ssim")} for p, _ in pairs],
        }  # fmt: skip
        print(f"{name:8} {np.mean(rows[name]['times_smaller']):5.2f}x  BD-rate {result['percent']} %")
    summary = {
        "command": "python benchmarks/allocate.py --calib TRAIN --images KODAK", "machine": machine(),
        "dataset": "kodak", "anchor": f"{FAMILY} (float)", "interpolation": "pchip", "weight_format": "coded",
        "activation_bits": 8, "granularity": "weights per output channel, activations per channel, static, "
        "mixed behind each GDN", "scopes": "g_a, h_a, h_s, g_s, tables", "gradient_steps": 0,
        "calibration_pictures": CALIBRATION_PICTURES, "search_pictures": SEARCH_PICTURES,
        "predicted_size_error_percent": float(100 * max(abs(a / b - 1) for a, b in predicted)),
        "searches": searches, "plans": rows,
    }  # fmt: skip
    (RESULTS / "allocate.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(rows)


def draw(rows: dict) -> None:
    """The figures of docs/mixed-precision.md."""

    def point(name: str) -> tuple[float, float]:
        return float(np.mean(rows[name]["times_smaller"])), rows[name]["bd_rate_psnr"]["percent"]

    fronts = {
        "mixed": [point(n) for n in rows if n.endswith("x") or n.startswith("as ")],
        "uniform": [point(f"W{b}") for b in UNIFORM],
    }
    fronts = {n: [p for p in points if p[1] is not None and p[1] < 100] for n, points in fronts.items()}
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / "pareto.png").write_bytes(to_png(pareto_figure(fronts, f"{FAMILY}, Kodak, A8")))
    bits = {n: rows[n]["bits"]["0130"] for n in ("6x", "8x", "10x", "12x")}
    (FIGURES / "bits.png").write_bytes(to_png(bits_figure(bits, f"{FAMILY}-0130")))


if __name__ == "__main__":
    main()
