"""RDO-PTQ of the zoo at several widths: calibrate, measure on real files, BD-rate against the parents.

    python benchmarks/rdo.py --calib TRAIN --images kodak=KODAK tecnick=TECNICK [--widths W8A8 W4A8]

Each calibration is `rdquant quantize` in a process of its own, whose time and peak memory are recorded.
Calibrates on the val split of the training folder; test sets are only measured on. Models that exist in
--models are not made again, and points that are stored are not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from rdquant.files.images import list_images
from rdquant.load import open_coder
from rdquant.measure import Curve, Point, bd_rate, evaluate, machine

WIDTHS = ("W8A8", "W10A10", "W6A8", "W4A8")
LAMBDAS = ("0035", "0067", "0130", "0250")
FAMILY = "mean-scale-s"
IMAGES = 96
RESULTS = Path("benchmarks/results")


def calibrate(
    name: str, width: str, calib: Path, target: Path, extra: list[str], images: int = IMAGES
) -> dict:
    """Run `rdquant quantize`, leaving the model, and return its trace, seconds and peak memory."""
    weights, activations = re.fullmatch(r"W(\d+)A(\d+)", width).groups()  # type: ignore[union-attr]
    command = [
        "quantize", name, "--calib", str(calib), "--split", "val", "--images", str(images),
        "--weights", weights, "--activations", activations, "--json", "-o", str(target), *extra,
    ]  # fmt: skip
    start = time.perf_counter()
    words = [sys.executable, "-m", "rdquant", *command, "--overwrite"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    out = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"rdquant {' '.join(command)} failed")
    return {
        "command": "rdquant "
        + " ".join({str(calib): "TRAIN", str(target): "MODEL"}.get(c, c) for c in command),
        "seconds": time.perf_counter() - start,
        "peak_memory_mb": usage.ru_maxrss / 1024,
        "trace": [
            e for e in json.loads(out)["trace"] if e["unit"] in ("float", "start", "grid", "bias", "end")
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--images", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--widths", nargs="+", default=WIDTHS)
    parser.add_argument("--lambdas", nargs="+", default=LAMBDAS)
    parser.add_argument("--models", type=Path, default=Path("runs/rdo"))
    parser.add_argument("--extra", nargs="*", default=[], help="more options of rdquant quantize")
    parser.add_argument("--tag", default="", help="suffix of result names")
    args = parser.parse_args()
    sets = {item.partition("=")[0]: list_images(Path(item.partition("=")[2])) for item in args.images}
    args.models.mkdir(parents=True, exist_ok=True)

    def point(name: str, model: str, dataset: str) -> Point:
        coder = open_coder(model)
        store = args.models / f"{dataset}-{coder.fingerprint.hex()}.json"
        if store.exists():
            return Curve.load(store).points[0]
        for family in (FAMILY, f"{FAMILY}-w8a8"):  # measured by benchmarks/zoo.py or an earlier run
            path = RESULTS / f"{dataset}-{family}.json"
            for known in Curve.load(path).points if path.exists() else ():
                if known.model.get("fingerprint") == coder.fingerprint.hex():
                    return dataclasses.replace(known, label=name)
        found = Point(name, coder.describe(), evaluate(coder, sets[dataset]))
        Curve("point", dataset, [found]).save(store)
        return found

    for width in args.widths:
        summary: dict = {"machine": machine(), "width": width, "bd_rate_psnr": {}, "calibration": {}}
        models = {}
        for lam in args.lambdas:
            label = f"{FAMILY}-{lam}-{width.lower()}{args.tag}"
            path = args.models / f"{label}.rdqm"
            record = path.with_suffix(".json")
            if not record.exists():
                found = calibrate(f"{FAMILY}-{lam}", width, args.calib, path, args.extra)
                record.write_text(json.dumps(found, indent=1))
            summary["calibration"][label] = json.loads(record.read_text())
            models[label] = path
        for dataset in sets:
            parents = [point(f"{FAMILY}-{lam}", f"{FAMILY}-{lam}", dataset) for lam in args.lambdas]
            points = [point(label, str(path), dataset) for label, path in models.items()]
            meta = {
                "weight_bits": width, "granularity": "weights per output channel; activations per channel, "
                "static, mixed behind each GDN", "scopes": "g_a, h_a, h_s, g_s, tables",
                "latents": "16-bit fixed point",
                "gamma_bits": 8, "h_s_weight_bits": "at most 7 where 8 are asked for",
                "interpolation": "pchip", "machine": machine(),
            }  # fmt: skip
            parent = Curve(FAMILY, dataset, parents, {"machine": machine()})
            if dataset != "kodak":  # that one is benchmarks/zoo.py's
                parent.save(RESULTS / f"{dataset}-{FAMILY}.json")
            curve = Curve(f"{FAMILY}-{width.lower()}{args.tag}", dataset, points, meta)
            curve.save(RESULTS / f"{dataset}-{curve.name}.json")
            for p, q in zip(parents, points, strict=True):
                print(
                    f"{dataset:8} {q.label:28} {q.bpp:.4f} bpp {q.psnr:.3f} dB "
                    f"(float {p.bpp:.4f} {p.psnr:.3f})"
                )
            if len(points) > 1:
                result = bd_rate(parent, curve)
                summary["bd_rate_psnr"][dataset] = vars(result)
                print(f"{dataset}: {width}{args.tag} against float {result.percent:+.3f} %", flush=True)
        (RESULTS / f"rdo-{width.lower()}{args.tag}.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
