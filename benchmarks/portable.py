"""The portable profile and other engines: what W8A8 for everybody costs, and how fast and how near it is.

    python benchmarks/portable.py rates --calib TRAIN --images KODAK [--only 0130] [--tuned 0130=FILE ...]
    python benchmarks/portable.py engines --images KODAK [--model FILE]

"rates" quantizes the zoo's float codecs with ``--profile portable``, and measures rate (ideal
code length) and PSNR of parent and model; ``--tuned``: models that `rdquant finetune` made. "engines" decodes
all pictures with each engine: how many samples differ from the exact ones, and the median time of the
synthesis alone, interleaved, beside the float parent's in PyTorch. Both add to results/portable.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rdquant import zoo
from rdquant.codec import Codec
from rdquant.coder import ImageCoder
from rdquant.files.float_models import load_float
from rdquant.files.images import list_images, read_image
from rdquant.files.integer_models import load_integer, save_integer
from rdquant.files.model_file import model_description
from rdquant.files.split import split_files
from rdquant.graph.capture import capture
from rdquant.load import coder_of
from rdquant.measure import bd_rate_points, machine, psnr
from rdquant.passes import QuantizeConfig, load_calibration, quantize
from rdquant.passes.config import PROFILES
from rdquant.threads import allowed

LAMBDAS = ("0035", "0067", "0130", "0250")
ENGINES = ("exact", "torch", "openvino", "onnx")
OUT = Path("benchmarks/results/portable.json")


def add(name: str, value: Any) -> None:
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps({**found, name: value}, indent=1) + "\n")


def point(codec: Codec, pictures: list[np.ndarray]) -> list[float]:
    """Mean bits per pixel and PSNR."""
    coder, found = coder_of(codec, "uniform", effort=0), []
    for rgb in pictures:
        out, bits = coder.forward(rgb)
        found.append((bits / rgb[..., 0].size, psnr(rgb, out)))
    return [float(v) for v in np.mean(found, 0)]


class Spy(ImageCoder):
    """Keeps what the synthesis is given."""

    def _synthesise(self, y_hat: np.ndarray, *args: Any) -> np.ndarray:
        self.latents = y_hat.copy()
        return super()._synthesise(y_hat, *args)


def rates(args: argparse.Namespace) -> None:
    pictures = [read_image(f) for f in list_images(args.images)]
    crops = load_calibration(split_files(args.calib, "val"), args.calibration, 256)
    tuned = dict(item.split("=") for item in args.tuned)
    stored = json.loads(OUT.read_text()).get("rates", {}) if OUT.exists() else {}
    curves: dict[str, dict[str, list[float]]] = {"float": {}, "portable": {}, "finetuned": {}}
    curves |= stored.get("points_bpp_psnr", {})  # of the lambdas that are not measured now
    for lam in args.only:
        parent = load_float(zoo.find(f"mean-scale-s-{lam}"))  # type: ignore[arg-type]
        curves["float"][lam] = point(capture(parent), pictures)
        path = args.models / f"portable-{lam}.rdqm"
        if not path.exists():
            args.models.mkdir(parents=True, exist_ok=True)
            about = {"parent": f"mean-scale-s-{lam}", "lambda": float(f"0.{lam}"), "profile": "portable"}
            save_integer(quantize(parent, crops, QuantizeConfig(**PROFILES["portable"]), about), path)
        curves["portable"][lam] = point(load_integer(path), pictures)
        if lam in tuned:
            curves["finetuned"][lam] = point(load_integer(Path(tuned[lam])), pictures)
        print(lam, {k: v.get(lam) for k, v in curves.items()}, flush=True)
    table = {k: np.array(list(v.values())) for k, v in curves.items() if len(v) == len(LAMBDAS)}
    anchor = table.pop("float")
    result = {
        "command": "python benchmarks/portable.py rates --calib TRAIN --images KODAK --tuned ...",
        "finetuned": {lam: model_description(Path(file))["finetune"] for lam, file in tuned.items()},
        "calibration_pictures": len(crops),
        "points_bpp_psnr": curves,
        "bd_rate_percent": {k: bd_rate_points(*anchor.T, *v.T)[0] for k, v in table.items()},
        "rate_at_equal_psnr_percent": {
            k: {lam: at_equal_psnr(curves["float"], lam, p) for lam, p in v.items()}
            for k, v in curves.items()
            if k != "float"
        },
    }
    add("rates", result)
    print(json.dumps(result, indent=1))


def at_equal_psnr(parents: dict[str, list[float]], lam: str, found: list[float]) -> float:
    """What a point costs, in percent of the rate that its parent would need for the point's PSNR: along the
    line (of log-rates) through the two parents nearest to that.
    """
    near = sorted(parents.values(), key=lambda p: abs(p[1] - found[1]))[:2]
    (r0, q0), (r1, q1) = sorted(near, key=lambda p: p[1])
    slope = np.log(r1 / r0) / (q1 - q0)
    own = parents[lam]
    return 100 * float(np.expm1(np.log(found[0] / own[0]) + slope * (own[1] - found[1])))


def engines(args: argparse.Namespace) -> None:
    codec, parent = load_integer(args.model), capture(load_float(zoo.find(args.parent)))  # type: ignore[arg-type]
    coder, pictures = coder_of(codec), [read_image(f) for f in list_images(args.images)]
    latents = [coder.symbols(rgb).y_hat for rgb in pictures]
    exact = [codec.synthesis(y).astype(int) for y in latents]
    agreement = {}
    for engine in ENGINES[1:]:
        apart = [np.abs(codec.synthesis(y, engine) - x) for y, x in zip(latents, exact, strict=True)]  # type: ignore[arg-type]
        samples = np.concatenate([d.flatten() for d in apart])
        agreement[engine] = {
            "equal": float((samples == 0).mean()), "within 1": float((samples <= 1).mean()),
            "worst picture within 1": float(min((d <= 1).mean() for d in apart)),
            "largest": int(samples.max()),
        }  # fmt: skip
        print(engine, agreement[engine], flush=True)
    spy, same = Spy(coder.codec, coder.fingerprint, coder.profile), True
    for rgb, y_hat in zip(pictures[:4], latents, strict=False):
        file = coder.encode(rgb)
        for engine in ENGINES:
            spy.decode(file, engine=engine)  # type: ignore[arg-type]
            same &= np.array_equal(spy.latents, y_hat)
    ways: dict[str, Callable[[np.ndarray], Any]] = {
        "float parent, PyTorch": lambda y: parent.synthesis(y.astype(np.float32) / 2**codec.fraction_bits),
        **{e: (lambda y, e=e: codec.synthesis(y, e)) for e in ENGINES},  # type: ignore[misc]
    }
    times: dict[str, list[float]] = {w: [] for w in ways}
    for k in range(args.rounds + 1):
        for y in latents[:4]:
            for way, run in ways.items():
                start = time.perf_counter()
                run(y)
                if k:
                    times[way].append(time.perf_counter() - start)
    found = {w: 1e3 * median(t) for w, t in times.items()}
    result = {
        "command": f"python benchmarks/portable.py engines --images KODAK --rounds {args.rounds}",
        "machine": machine(), "threads": allowed(), "same latents in all engines": same,
        "agreement_with_exact": agreement, "synthesis_ms_768x512": found,
        "times_faster_than_float": {w: found["float parent, PyTorch"] / t for w, t in found.items()},
    }  # fmt: skip
    add("engines", result)
    print(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("rates", "engines"))
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--calibration", type=int, default=64, help="pictures of the val split")
    parser.add_argument(
        "--models", type=Path, default=Path("portable"), help="folder of the quantized models"
    )
    parser.add_argument("--model", type=Path, default=Path("portable/portable-0130.rdqm"))
    parser.add_argument("--parent", default="mean-scale-s-0130")
    parser.add_argument("--only", nargs="*", default=LAMBDAS, choices=LAMBDAS)
    parser.add_argument("--tuned", nargs="*", default=[], metavar="LAMBDA=FILE")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    {"rates": rates, "engines": engines}[args.what](args)


if __name__ == "__main__":
    main()
