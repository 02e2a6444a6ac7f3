"""Any architecture, quantized and measured on Kodak: real files against the float models that they came from.

    python benchmarks/architectures.py --models A.safetensors B.safetensors ... --calib TRAIN --images KODAK

``--models``: float model files that say their lambda; those of one architecture are the points of its curve.
Each is quantized (`rdquant.quantize`, no gradients) at each of ``--widths`` on the val split of the training
folder. Test pictures are only measured on. Per point: J = lambda * 255^2 * MSE + bpp of mean MSE and bpp, and
its increase. Per architecture, where it has two points or more: the rate that each quantized point needs
more than the float curve at its PSNR (PCHIP of log-rate over PSNR, a straight line for two points, which goes
on beyond its ends), with 95 % confidence by bootstrap over pictures; and with three or more a BD-rate. Models
and measured points are kept in --run, so that the command resumes. Writes
benchmarks/results/architectures.json, where other architectures stay, and of an architecture the points of
models that are not given, if its others are the very same float models.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from statistics import fmean

from rdquant.files.float_models import load_float
from rdquant.files.images import list_images
from rdquant.files.integer_models import save_integer
from rdquant.files.model_file import model_description
from rdquant.files.split import split_files
from rdquant.load import open_coder
from rdquant.measure import Curve, Point, bd_rate, evaluate, machine
from rdquant.passes import QuantizeConfig, load_calibration, quantize
from rdquant.study.ablation import Measured, increase_interval, rate_increase

#: what sums of floats may change of a float model's rate, from machine to machine
SAME = 1e-3
RESULT = Path(__file__).parent / "results" / "architectures.json"


def measured(name: str, model: Path, files: list[Path], dataset: str, run: Path) -> Point:
    """A model on test pictures: stored, or measured now and stored."""
    coder = open_coder(str(model))
    store = run / f"{dataset}-{coder.fingerprint.hex()}.json"
    if not store.exists():
        Curve(name, dataset, [Point(name, coder.describe(), evaluate(coder, files))]).save(store)
    return Curve.load(store).points[0]


def mean_mse(point: Point) -> float:
    """Of 8-bit samples."""
    return fmean(255**2 / 10 ** (i.psnr / 10) for i in point.images)


def summary_of(point: Point, lambda_: float) -> dict:
    keys = ("bpp", "psnr", "ms_ssim", "encode_s", "decode_s")
    return {**{k: getattr(point, k) for k in keys}, "J": lambda_ * mean_mse(point) + point.bpp}


def with_points_of(before: dict, row: dict, width: str) -> None:
    """Into a width of ``row``: the curve of ``before``, and its points of models that ``row`` lacks."""
    curve = before.get("float_curve") or dict(zip(before["models"], before["float"], strict=True))
    same = [
        name in curve and abs(point["bpp"] / curve[name]["bpp"] - 1) <= SAME
        for name, point in zip(row["models"], row["float"], strict=True)
    ]
    if not all(same) or set(curve) == set(row["models"]):
        return
    points = [Measured(p["bpp"], p["psnr"], 0.0) for p in curve.values()]
    new, old = row["widths"][width], before["widths"].get(width, {})
    new["rate_increase_at_equal_psnr_percent"] = [
        rate_increase(points, Measured(p["bpp"], p["psnr"], 0.0)) for p in new["points"]
    ]
    new["not_measured_again"] = {
        **old.get("not_measured_again", {}),
        **{
            name: {key: values[i] for key, values in old.items() if isinstance(values, list)}
            for i, name in enumerate(before["models"])
            if old and name not in row["models"]
        },
    }
    row["float_curve"] = curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--dataset", default="kodak")
    parser.add_argument("--widths", nargs="+", default=["W8A8", "W10A10"])
    parser.add_argument("--pictures", type=int, default=64, help="Calibration pictures.")
    parser.add_argument("--run", type=Path, default=Path("runs/architectures"))
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    files = list_images(args.images)
    crops = load_calibration(split_files(args.calib, "val"), args.pictures, 256)
    families: dict[str, list[Path]] = {}
    for path in sorted(args.models, key=lambda p: model_description(p)["lambda"]):
        families.setdefault(load_float(path).architecture, []).append(path)
    # of the other architectures, what was measured before
    rows: dict[str, dict] = json.loads(args.out.read_text())["architectures"] if args.out.exists() else {}
    for architecture, paths in families.items():
        before = rows.get(architecture)
        row = rows[architecture] = {
            "options": load_float(paths[0]).options(), "models": [], "widths": {}, "machine": machine(),
        }  # fmt: skip
        parents = [measured(p.stem, p, files, args.dataset, args.run) for p in paths]
        lambdas = [float(model_description(p)["lambda"]) for p in paths]
        row["models"] = [p.stem for p in paths]
        row["lambdas"] = lambdas
        row["float"] = [summary_of(q, lam) for q, lam in zip(parents, lambdas, strict=True)]
        for width in args.widths:
            match = re.fullmatch(r"W(\d+)A(\d+)", width)
            if match is None:
                parser.error(f"widths are like W8A8, got {width!r}")
            config = QuantizeConfig(weight_bits=int(match[1]), activation_bits=int(match[2]))
            points, seconds = [], []
            for path, lam in zip(paths, lambdas, strict=True):
                model = args.run / f"{path.stem}-{width.lower()}.rdqm"
                clock = model.with_suffix(".seconds")
                if not model.exists():
                    start = time.perf_counter()
                    integer = quantize(load_float(path), crops, config, {"lambda": lam, "parent": path.stem})
                    save_integer(integer, model)
                    clock.write_text(f"{time.perf_counter() - start:.1f}")
                seconds.append(float(clock.read_text()) if clock.exists() else None)
                points.append(measured(model.stem, model, files, args.dataset, args.run))
            found: dict = {"points": [summary_of(q, lam) for q, lam in zip(points, lambdas, strict=True)]}
            found["J_increase_percent"] = [
                100 * (new["J"] / old["J"] - 1)
                for old, new in zip(row["float"], found["points"], strict=True)
            ]
            if len(paths) > 1:
                found["rate_increase_at_equal_psnr_percent"] = [rate_increase(parents, p) for p in points]
                images = [p.images for p in parents]
                found["rate_increase_interval"] = [increase_interval(images, p.images) for p in points]
            if len(paths) > 2:
                pair = (Curve(n, args.dataset, q) for n, q in (("float", parents), (width, points)))
                found["bd_rate_psnr"] = vars(bd_rate(*pair))
            found["calibration_seconds"] = seconds
            row["widths"][width] = found
            if before is not None:
                with_points_of(before, row, width)
            shown = {k: v for k, v in found.items() if k.endswith(("percent", "interval"))}
            print(architecture, width, json.dumps(shown), flush=True)
            result = {
                "command": "python benchmarks/architectures.py --models ... --calib TRAIN "
                f"--images {args.dataset.upper()}",
                "dataset": args.dataset, "pictures": len(files),
                "calibration_pictures": len(crops), "gradients": "none",
                "interpolation": "PCHIP of log-rate over PSNR; a straight line where there are two points",
                "architectures": rows,
            }  # fmt: skip
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
