"""Retrained codecs on test sets: whole files against the float parents with plain rounding.

    python benchmarks/retrain.py --runs runs/retrain --calib TRAIN --images kodak=KODAK tecnick=TECNICK

``--runs`` holds a folder NAME-LAMBDA for each call of `rdquant retrain` (its ``--run``), with the model
NAME-LAMBDA.safetensors: `benchmarks/retrain_runs.sh` makes them. Curves are kept there, so that the command
resumes. The family SHIPPED joins the zoo, in float and quantized on the val split. Test sets are only
measured on: steps, coherences, lengths and rates were chosen on the training folder's val split.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
from scipy.interpolate import PchipInterpolator
from zoo import CALIBRATION_PICTURES, entry, integer_meta, write_index

from rdquant import zoo
from rdquant.files.float_models import load_float, save_float
from rdquant.files.images import list_images, read_image
from rdquant.files.integer_models import save_integer
from rdquant.files.model_file import model_description
from rdquant.files.split import split_files
from rdquant.graph.capture import capture
from rdquant.latents.gains import latent_gains
from rdquant.latents.refine import DISTORTION_WEIGHT, EFFORTS
from rdquant.load import LATENTS, QuantizerMismatch, open_coder
from rdquant.measure import Curve, Point, bd_rate, evaluate, machine
from rdquant.passes import QuantizeConfig, load_calibration, quantize
from rdquant.passes.methods import Job, quantize_by
from rdquant.passes.rdo_config import RdoConfig
from rdquant.train.retrain import judge_coder

RESULTS = Path(__file__).parent / "results"
PARENTS, LAMBDAS = "mean-scale-s", ("0035", "0067", "0130", "0250")
COMMAND = "python benchmarks/retrain.py --runs RUNS --calib TRAIN --images"
#: quantizer, and the retraining's name (None: the parents themselves)
FAMILIES: dict[str, tuple[str, str | None]] = {
    "rdoq, not retrained": ("rdoq", None),
    "tcq8, not retrained": ("tcq8", None),
    "uniform": ("uniform", "uniform"),
    "rdoq": ("rdoq", "rdoq"),
    "tcq8": ("tcq8", "tcq8"),
    "uniform, trained with noise": ("uniform", "noise"),
    "uniform, trained with noise, retrained": ("uniform", "uniform-of-noise"),
    "tcq8, trained with noise": ("tcq8", "noise"),
    "tcq8, trained with noise, retrained": ("tcq8", "tcq8-of-noise"),
    "tcq8, trained with noise, all retrained": ("tcq8", "tcq8-all-of-noise"),
}
CLASSICAL = ("jpeg", "webp")
#: tests, and what else than the parents each is compared with
AGAINST = [
    ("tcq8", "tcq8, not retrained"),
    ("rdoq", "rdoq, not retrained"),
    ("uniform, trained with noise, retrained", "uniform, trained with noise"),
    ("tcq8, trained with noise, retrained", "tcq8, trained with noise"),
    ("tcq8, trained with noise, retrained", "uniform, trained with noise"),
    ("tcq8, trained with noise, all retrained", "uniform, trained with noise"),
]
#: retrained on weights rounded to `ROUNDED` bits, and what that is compared with, at `ROUNDED_AT`
ON_ROUNDED, ROUNDED, ROUNDED_AT = ("tcq8", "tcq8-on-w6"), 6, "0130"
#: quantized to W8A8, for the zoo
SHIPPED = "tcq8"
SHIPPED_NAME = f"{PARENTS}-tcq8-w8a8"
IN_ZOO = f"{SHIPPED}, W8A8"
#: what `--effort` is measured with, by data set: family, effort, and on every how many-th picture
REFINED = {
    "kodak": [("rdoq", 1, 1), ("tcq8", 1, 1), (IN_ZOO, 1, 1), (IN_ZOO, 2, 4), (IN_ZOO, 3, 4)],
    "tecnick": [(IN_ZOO, 1, 6)],
}


def model(runs: Path, name: str | None, lam: str) -> str:
    if name == IN_ZOO:
        return f"{PARENTS}-{lam}-tcq8-w8a8"
    return f"{PARENTS}-{lam}" if name is None else str(runs / f"{name}-{lam}" / f"{name}-{lam}.safetensors")


def describe_parents(runs: Path, calib: Path) -> None:
    """Those trained with noise say their synthesis gains, as the zoo's do: a trellis needs them."""
    crops = load_calibration(split_files(calib, "val"), CALIBRATION_PICTURES, 256)[:8]
    for lam in LAMBDAS:
        path = Path(model(runs, "noise", lam))
        if "latent_gains" not in model_description(path):
            codec = load_float(path)
            gains = [float(f"{g:.4g}") for g in latent_gains(capture(codec), crops)]
            save_float(codec, path, {"lambda": int(lam) / 10**4, "latent_gains": gains})


def measured(runs: Path, family: str, dataset: str, files: list[Path], effort: int, check: bool) -> Curve:
    """The family's curve on ``files``, from the store if it is there."""
    quantizer, name = FAMILIES.get(family, (SHIPPED, IN_ZOO))
    label = f"{family}, effort {effort}" if effort else family
    stored = runs / "curves" / f"{dataset}-{label.replace(', ', '-').replace(' ', '-')}.json"
    if stored.exists():
        return Curve.load(stored)
    points = []
    for lam in LAMBDAS:
        coder = open_coder(model(runs, name, lam), quantizer, effort=effort)
        points.append(Point(f"{lam}-{label}", coder.describe(), evaluate(coder, files, check)))
        print(f"{dataset} {label} {lam}: {points[-1].bpp:.4f} bpp {points[-1].psnr:.3f} dB", flush=True)
    stored.parent.mkdir(exist_ok=True)
    Curve(label, dataset, points).save(stored)
    return Curve.load(stored)


def shipped(runs: Path, calib: Path, sets: dict[str, list[Path]]) -> dict[str, Curve]:
    """`SHIPPED` in integers: stored in the zoo, with its curves by data set."""
    stored = {d: runs / "curves" / f"{d}-{SHIPPED_NAME}.json" for d in sets}
    if all(path.exists() for path in stored.values()):
        return {d: Curve.load(path) for d, path in stored.items()}
    folder, config = Path(zoo.__file__).parent, QuantizeConfig()
    crops = load_calibration(split_files(calib, "val"), CALIBRATION_PICTURES, 256)
    points: dict[str, list[Point]] = {d: [] for d in sets}
    entries = dict(zoo.index())
    floats = measured(runs, SHIPPED, "kodak", sets["kodak"], 0, True)
    for lam, point in zip(LAMBDAS, floats.points, strict=True):
        source = Path(model(runs, FAMILIES[SHIPPED][1], lam))
        file = folder / f"{PARENTS}-{lam}-tcq8.safetensors"
        file.write_bytes(source.read_bytes())
        entries[file.stem] = entry(file, "float", load_float(file), model_description(file)["lambda"], point)
    for lam in LAMBDAS:
        source = folder / f"{PARENTS}-{lam}-tcq8.safetensors"
        codec, about = load_float(source), model_description(source)
        about = {
            "lambda": about["lambda"], LATENTS: about[LATENTS], "parent": source.stem,
            "calibration_pictures": len(crops),
        }  # fmt: skip
        integer, _ = quantize_by("ours", Job(codec, crops, config, RdoConfig(lambda_=about["lambda"])), about)
        file = folder / f"{PARENTS}-{lam}-tcq8-w8a8.rdqm"
        save_integer(integer, file)
        coder = open_coder(str(file), effort=0)
        for dataset, files in sets.items():
            point = Point(file.stem, coder.describe(), evaluate(coder, files, dataset == "kodak"))
            points[dataset].append(point)
            print(f"{dataset} {file.stem}: {point.bpp:.4f} bpp {point.psnr:.3f} dB", flush=True)
            if dataset == "kodak":
                entries[file.stem] = entry(file, "integer", codec, about["lambda"], point)
    write_index(entries)
    curves = {}
    for dataset in sets:
        meta = {"command": COMMAND, "machine": machine(), **integer_meta(config), "quantizer": "tcq8"}
        curves[dataset] = Curve(SHIPPED_NAME, dataset, points[dataset], meta)
        for path in (RESULTS / stored[dataset].name, stored[dataset]):
            path.parent.mkdir(exist_ok=True)
            curves[dataset].save(path)
    return curves


def subset(curve: Curve, like: Curve) -> Curve:
    """``curve`` on the pictures of ``like``."""
    names = {i.name for i in like.points[0].images}
    points = [dataclasses.replace(p, images=[i for i in p.images if i.name in names]) for p in curve.points]
    return dataclasses.replace(curve, points=points)


def above(anchor: Curve, test: Curve) -> list[float | None]:
    """dB of each point of ``test`` over ``anchor`` at its rate; None beyond the anchor's rates."""
    a = sorted(anchor.points, key=lambda p: p.bpp)
    curve = PchipInterpolator(np.log([p.bpp for p in a]), [p.psnr for p in a], extrapolate=False)
    found = [p.psnr - float(curve(np.log(p.bpp))) for p in test.points]
    return [None if np.isnan(f) else round(f, 4) for f in found]


def compare(anchor: Curve, test: Curve) -> dict:
    rows = [{k: getattr(p, k) for k in ("label", "bpp", "psnr", "ms_ssim", "encode_s")} for p in test.points]
    return {
        **vars(bd_rate(subset(anchor, test), test)),
        "pictures": len(test.points[0].images),
        "points": rows,
    }


def studies(runs: Path) -> dict[str, dict]:
    """What `rdquant retrain` kept of each run: its options, and what the val split said of each phase."""
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(runs.glob("*/guards.json"))}


def encode_seconds(files: list[Path]) -> dict[int, float]:
    """Median seconds to encode a picture, by effort; integer model at the middle of the curve."""
    pictures, found = [read_image(path) for path in files], {}
    for effort in range(len(EFFORTS)):
        coder, seconds = open_coder(model(Path(), IN_ZOO, "0130"), effort=effort), []
        for rgb in [pictures[0], *pictures]:
            start = time.perf_counter()
            coder.encode(rgb)
            seconds.append(time.perf_counter() - start)
        found[effort] = round(median(seconds[1:]), 3)  # the first compiles
    return found


def on_rounded_weights(runs: Path, calib: Path) -> dict[str, dict]:
    """J on the val split of integer models with few bits, by what they were retrained on."""
    crops = load_calibration(split_files(calib, "train"), CALIBRATION_PICTURES, 256)
    val = [read_image(path) for path in split_files(calib, "val")[:96]]
    found = {}
    for name in ON_ROUNDED:
        source = Path(model(runs, name, ROUNDED_AT))
        about, file = model_description(source), source.with_name(f"w{ROUNDED}.rdqm")
        if not file.exists():
            config = QuantizeConfig(weight_bits=ROUNDED)
            kept = {k: about[k] for k in ("lambda", LATENTS)}
            save_integer(quantize(load_float(source), crops, config, kept), file)
        for kind, path in (("float", source), (f"W{ROUNDED}A8", file)):
            judged = judge_coder(open_coder(str(path), effort=0), about["lambda"], val)
            found[f"{name}, {kind}"] = {k: round(getattr(judged, k), 5) for k in ("J", "bpp", "psnr")}
            print(name, kind, found[f"{name}, {kind}"], flush=True)
    return found


def compared_with_effort(
    runs: Path, dataset: str, files: list[Path], before: Curve, anchor: Curve, effort: int, every: int
) -> dict[str, dict]:
    """Of `IN_ZOO`: against the parents, itself without effort, and on Kodak classical codecs."""
    refined = measured(runs, IN_ZOO, dataset, files[::every], effort, (dataset, effort) == ("kodak", 1))
    found = {
        refined.name: compare(anchor, refined),
        f"{refined.name}, against {IN_ZOO}": compare(before, refined),
    }
    for name in CLASSICAL if dataset == "kodak" else ():
        classical = Curve.load(RESULTS / f"{dataset}-{name}.json")
        found[f"{refined.name}, against {name}"] = compare(classical, refined)
    return found


def efforts(runs: Path, sets: dict[str, list[Path]]) -> None:
    """The zoo's models alone, with effort, anew: into the results as they stand."""
    summary = json.loads((RESULTS / "retrain.json").read_text())
    for dataset, files in sets.items():
        found = summary["bd_rate_psnr"][dataset]
        for name in [name for name in found if name.startswith(f"{IN_ZOO}, effort")]:
            del found[name]
        before = Curve.load(RESULTS / f"{dataset}-{SHIPPED_NAME}.json")
        anchor = Curve.load(RESULTS / f"{dataset}-{PARENTS}.json")
        for family, effort, every in REFINED.get(dataset, ()):
            if family == IN_ZOO:
                found |= compared_with_effort(runs, dataset, files, before, anchor, effort, every)
    summary["encode_seconds"] = encode_seconds(sets["kodak"][::6])
    summary["efforts"] = {
        "of": IN_ZOO, "rounds": EFFORTS, "distortion_weight": DISTORTION_WEIGHT, "machine": machine(),
        "others": {"rounds": (0, 4), "distortion_weight": 1},
    }  # fmt: skip
    (RESULTS / "retrain.json").write_text(json.dumps(summary, indent=1) + "\n")


def retrained(runs: Path, dataset: str, files: list[Path], integer: Curve, before: dict | None) -> dict:
    """All families on one set. ``before``: earlier results, whose rows of the zoo with effort are kept."""
    anchor = Curve.load(RESULTS / f"{dataset}-{PARENTS}.json")
    own = [f for f in FAMILIES if dataset == "kodak" or "noise" in f]
    curves = {f: measured(runs, f, dataset, files, 0, dataset == "kodak") for f in own}
    found = {f: compare(anchor, c) for f, c in curves.items()}
    found[IN_ZOO] = compare(anchor, integer)
    for f, against in (pair for pair in AGAINST if pair[0] in curves):
        found[f"{f}, against {against}"] = compare(curves[against], curves[f])
    refined = {}
    for f, effort, every in REFINED.get(dataset, ()):
        if f == IN_ZOO:
            if before is None:
                found |= compared_with_effort(runs, dataset, files, integer, anchor, effort, every)
            continue
        refined[f] = measured(runs, f, dataset, files[::every], effort, True)
        found[refined[f].name] = compare(anchor, refined[f])
        found[f"{refined[f].name}, against {f}"] = compare(curves[f], refined[f])
    if before is not None:
        found |= {name: r for name, r in before.items() if name.startswith(f"{IN_ZOO}, effort")}
    if dataset == "kodak":
        found["tcq8"]["db_above_rdoq"] = above(curves["rdoq"], curves["tcq8"])
        name = f"{refined['tcq8'].name}, against {refined['rdoq'].name}"
        found[name] = compare(refined["rdoq"], refined["tcq8"])
        for name in CLASSICAL:
            classical = Curve.load(RESULTS / f"{dataset}-{name}.json")
            found[f"{IN_ZOO}, against {name}"] = compare(classical, integer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--images", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument(
        "--efforts", action="store_true", help="Only measure the zoo's models with effort anew."
    )
    parser.add_argument(
        "--families", action="store_true", help="All but the zoo's models with effort, into the results."
    )
    parser.add_argument("--studies", action="store_true", help="Only take the val tables anew.")
    args = parser.parse_args()
    if args.studies:
        summary = json.loads((RESULTS / "retrain.json").read_text())
        summary["val"] = studies(args.runs)
        if args.calib is not None:
            summary["on_rounded_weights"] = on_rounded_weights(args.runs, args.calib)
        (RESULTS / "retrain.json").write_text(json.dumps(summary, indent=1) + "\n")
        return
    if args.images is None or not (args.efforts or args.calib):
        parser.error("measuring needs --calib and --images")
    warnings.simplefilter("ignore", QuantizerMismatch)
    sets = {item.partition("=")[0]: list_images(Path(item.partition("=")[2])) for item in args.images}
    if args.efforts:
        efforts(args.runs, sets)
        return
    describe_parents(args.runs, args.calib)
    integers = shipped(args.runs, args.calib, sets)
    old = json.loads((RESULTS / "retrain.json").read_text()) if args.families else None
    results: dict[str, dict] = {}
    for dataset, files in sets.items():
        before = None if old is None else old["bd_rate_psnr"].get(dataset, {})
        results[dataset] = retrained(args.runs, dataset, files, integers[dataset], before)
        for name, r in results[dataset].items():
            print(f"{dataset} {name}: {r['percent']:+.2f} %", r.get("db_above_rdoq", ""), flush=True)
    names = " ".join(f"{name}={name.upper()}" for name in sets)
    summary = {
        "command": f"{COMMAND} {names}", "machine": machine(),
        "models": f"{PARENTS}, float", "anchor": "plain rounding, not retrained", "interpolation": "pchip",
        "efforts": {
            "of": "all", "rounds": EFFORTS, "distortion_weight": DISTORTION_WEIGHT, "machine": machine(),
        },
        "bd_rate_psnr": results,
    }  # fmt: skip
    if old is None:
        summary |= {
            "encode_seconds": encode_seconds(sets["kodak"][::6]), "val": studies(args.runs),
            "on_rounded_weights": on_rounded_weights(args.runs, args.calib),
        }  # fmt: skip
    else:
        summary = {**old, **summary, "efforts": {**old["efforts"], "of": "all"}}
        summary["efforts"].pop("others", None)
        summary["val"] |= studies(args.runs)
    (RESULTS / "retrain.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
