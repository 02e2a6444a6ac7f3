"""Latent quantizers on the zoo's integer codecs, and the speed of Viterbi's search.

    python benchmarks/latents.py --images kodak=KODAK tecnick=TECNICK

Plain rounding is the anchor. Measures only; steps and factors were chosen on the training folder's val split.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

from rdquant.coder import ImageCoder
from rdquant.files.images import list_images, read_image
from rdquant.latents.coding import TCQ_STEP
from rdquant.latents.parts import quantized
from rdquant.load import open_coder
from rdquant.measure import Curve, Point, bd_rate, evaluate, machine
from rdquant.pixels import pad_to, to_batch
from rdquant.threads import allowed, limit

RESULTS = Path(__file__).parent / "results"
FAMILY, LAMBDAS = "mean-scale-s", ("0035", "0067", "0130", "0250")
QUANTIZERS = ("rdoq", "tcq4", "tcq8")


def _seconds(work, rounds: int = 15) -> float:  # type: ignore[no-untyped-def]
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def speed(files: list[Path]) -> dict[str, float]:
    """Of the search on one picture, and what decoding costs."""
    rgb = read_image(files[0])
    plain, coder = (open_coder(f"{FAMILY}-0130-w8a8", q) for q in ("uniform", "tcq8"))
    codec = coder.codec
    c = quantized(codec, to_batch(pad_to(rgb, codec.downsampling)), coder.coding)
    found = {}
    for name, threads in (("one_thread", 1), ("two_threads", 2)):
        limit(threads)
        found[name] = c.y.size / _seconds(lambda: coder.coding.levels(codec, c.y, c.means, c.indexes)) / 1e6
    found["picture_seconds"] = c.y.size / found["two_threads"] / 1e6
    files_of = {c: c.encode(rgb) for c in (plain, coder)}
    times: dict[ImageCoder, list[float]] = {plain: [], coder: []}
    for _ in range(10):
        for c, data in files_of.items():
            start = time.perf_counter()
            c.decode(data)
            times[c].append(time.perf_counter() - start)
    found["decode_ratio"] = median(times[coder]) / median(times[plain])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", nargs="+", required=True, metavar="NAME=FOLDER")
    args = parser.parse_args()
    sets = {item.partition("=")[0]: list_images(Path(item.partition("=")[2])) for item in args.images}
    timing = speed(next(iter(sets.values())))
    print(timing, flush=True)
    results: dict[str, dict] = {}
    for dataset, files in sets.items():
        anchor = Curve.load(RESULTS / f"{dataset}-{FAMILY}-w8a8.json")
        results[dataset] = {}
        for quantizer in QUANTIZERS:
            points = []
            for lam in LAMBDAS:
                coder = open_coder(f"{FAMILY}-{lam}-w8a8", quantizer)
                points.append(Point(f"{lam}-{quantizer}", coder.describe(), evaluate(coder, files)))
            result = bd_rate(anchor, Curve(quantizer, dataset, points))
            rows = [{k: getattr(p, k) for k in ("label", "bpp", "psnr", "ms_ssim")} for p in points]
            results[dataset][quantizer] = {**vars(result), "points": rows}
            print(f"{dataset} {quantizer}: {result.percent:+.2f} %", flush=True)
    names = " ".join(f"{name}={name.upper()}" for name in sets)
    summary = {
        "command": f"python benchmarks/latents.py --images {names}", "machine": machine(),
        "models": f"{FAMILY} W8A8", "anchor": "uniform", "interpolation": "pchip", "step": TCQ_STEP,
        "quantizers": QUANTIZERS, "bd_rate_psnr": results, "viterbi": timing,
        "threads": allowed(),
    }  # fmt: skip
    (RESULTS / "latents.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
