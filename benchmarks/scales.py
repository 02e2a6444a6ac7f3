"""Why scales of activations that J moved used to end worse than where they began.

    python benchmarks/scales.py --calib TRAIN

mean-scale-s-0130, W8A8, ranges of least squared error, rounding to nearest, no mixing: the start of the
ablation's table `range`. Scales moved on a grid or by gradients, with distortion as a mean of squared errors
or relative to the float codec's, picture by picture; taken as they are, or as far as held-out pictures agree.
Of the val split every third picture is held out of everything and measured, from real files; others
calibrate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from rdquant import zoo
from rdquant.coder import ImageCoder
from rdquant.files.container import Profile
from rdquant.files.float_models import float_fingerprint, load_float
from rdquant.files.integer_models import integer_fingerprint
from rdquant.files.split import split_files
from rdquant.graph.capture import capture
from rdquant.measure.results import machine
from rdquant.passes import load_calibration, prepare
from rdquant.passes.crops import probe
from rdquant.passes.held_out import HeldOut
from rdquant.passes.methods import options_for
from rdquant.passes.rdo import RdoCalibration
from rdquant.passes.rdo_config import RdoConfig
from rdquant.study.ablation import increase_interval, means, measure, rate_increase

FAMILY, LAMBDAS, SUBJECT = "mean-scale-s", ("0035", "0067", "0130", "0250"), "0130"
PICTURES, LAMBDA = 20, 0.013
RESULT = Path(__file__).parent / "results" / "scales.json"
SEARCHES: dict[str, dict[str, Any]] = {
    "grid": {"grid": True, "steps": 0},
    "gradients": {"learn": ("scales",), "steps": 40, "crop": 128, "compile": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", type=Path, required=True)
    args = parser.parse_args()
    files = split_files(args.calib, "val")
    crops = load_calibration(files, len(files), 256)
    shown, pool = crops[::3], [c for i, c in enumerate(crops) if i % 3][:: 64 // PICTURES][:PICTURES]
    parents = {lam: load_float(zoo.model_path(f"{FAMILY}-{lam}")) for lam in LAMBDAS}
    curve = [
        measure(ImageCoder(capture(c), float_fingerprint(c), Profile.FLOAT), shown) for c in parents.values()
    ]
    codec = parents[SUBJECT]
    quantize, _ = options_for("mse", {}, {"lambda_": LAMBDA})
    prepared = prepare(capture(codec), pool, quantize)
    rows = []

    def report(name: str, run: RdoCalibration) -> None:
        twin = run.twin
        own, other = (probe(p, most=len(p)) for p in (pool, shown))
        twin.set_rounding(twin.names(), True, True)
        with torch.no_grad():
            j = [float(twin(x).cost(LAMBDA, x[:, 0].numel())) for x in (own, other)]
        relative = HeldOut(run._convert(), shown, LAMBDA).cost(twin)
        integer = twin.export()
        coded = measure(ImageCoder(integer, integer_fingerprint(integer), Profile.INTEGER), shown)
        found = means(coded)
        logs = [torch.as_tensor(v).log().flatten() for v in run.stretch.values()]
        rows.append(
            {
                "scales": name, "j_calibration": j[0], "j_others": j[1], "relative_j_others": relative,
                "rate_percent": rate_increase([means(c) for c in curve], found),
                "interval": increase_interval(curve, coded), "psnr": found.psnr, "bpp": found.bpp,
                "mean_factor": float(torch.cat(logs).mean().exp()) if logs else 1.0,
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)

    def calibration(**options: Any) -> RdoCalibration:
        rdo = RdoConfig(**{"lambda_": LAMBDA, "steps": 0, **options})
        return RdoCalibration(codec, pool, quantize, rdo, prepared=prepared)

    report("start", calibration())
    for name, options in SEARCHES.items():
        for relative in (False, True):
            for judged in (False, True):
                run = calibration(**options, relative=relative)
                if not judged:  # whatever moves is welcome
                    falling = iter(range(0, -1000, -1))
                    run.held.cost = lambda _, falling=falling: float(next(falling))  # type: ignore[method-assign]
                run.run()
                how = "relative" if relative else "mean of squared errors"
                report(f"{name}, {how}{', held-out pictures decide' if judged else ''}", run)
    result = {
        "command": "python benchmarks/scales.py --calib TRAIN", "machine": machine(),
        "model": f"{FAMILY}-{SUBJECT}",
        "calibration_pictures": len(pool), "measured_pictures": len(shown), "rows": rows,
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
