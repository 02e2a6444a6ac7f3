"""rd-s, one model for every rate: into the zoo, measured, compared with published and classical curves.

    python benchmarks/rd_s.py store --run RUN --calib TRAIN       # float16 parent; W8A8 integers, fine-tuned
    python benchmarks/rd_s.py measure --images KODAK --dataset kodak [--only float w8a8] [--qualities ...]
    python benchmarks/rd_s.py monotone --images KODAK --dataset kodak   # size by quality, size for a target
    python benchmarks/rd_s.py compare --dataset kodak
    python benchmarks/rd_s.py about --calib TRAIN   # multiplications; what its start keeps of pictures
    python benchmarks/rd_s.py hours   # J on the val split over hours of training, from the logs

Calibrates on the val split of the training folder and fine-tunes on its train split; test sets are only
measured on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor, nn

from rdquant import zoo
from rdquant.codecs import FloatCodec
from rdquant.files.float_models import load_float, save_float
from rdquant.files.images import list_images, read_image
from rdquant.files.model_file import model_description
from rdquant.files.split import split_files
from rdquant.graph.capture import capture
from rdquant.latents.gains import latent_gains
from rdquant.load import LATENTS, open_coder
from rdquant.measure import Curve, Point, bd_rate, evaluate, machine
from rdquant.passes import load_calibration
from rdquant.quality import LAMBDAS
from rdquant.study.plots import lines_figure
from rdquant.train.components import start_from_components
from rdquant.train.data import CropSource, centre_crops
from rdquant.train.loop import initialise

NAME = "rd-s"
RESULTS = Path("benchmarks/results")
LOGS = RESULTS / "training/all-rates"
FIGURE = Path("docs/figures/rd-s-hours.svg")
#: logs of what the zoo's model came from, in order
RUNS = (
    "components-edge-0.2", "components-start", "rd-s", "rd-s-larger",
    *(f"rd-s-larger-{k}" for k in range(2, 7)), "rd-s-trellis",
)  # fmt: skip
QUALITIES = (1, 15, 30, 45, 60, 75, 90, 100)
CALIBRATION_PICTURES = 96
#: the integer synthesis learns from
LEARNED_PICTURES, MINUTES = 1000, 30.0
#: of the trellis's search with effort 0, which training had at 2. Chosen on the val split, by rate at equal
#: PSNR of eight pictures against plain rounding before the trellis (2.5: -2.1 %, 3: -2.5, 4: -2.0)
COHERENCE = 3.0
#: the same with effort 1 (against the float parent before the trellis with RDOQ; 1.3: -3.0 %, 1.5: -3.3,
#: 1.75: -3.0, 2.1: -1.9)
REFINED_COHERENCE = 1.5
#: of a curve: model, effort
CURVES = {"float": (NAME, 0), "w8a8": (f"{NAME}-w8a8", 0), "w8a8-effort1": (f"{NAME}-w8a8", 1)}
#: CompressAI's published mbt2018-mean on Kodak: bpp, PSNR
PUBLISHED = ((0.124, 27.70), (0.198, 29.36), (0.307, 31.13), (0.461, 32.95), (0.662, 34.97), (0.914, 36.91))
MEASURED = ("bpp", "psnr", "ms_ssim", "encode_s", "decode_s")
ANCHORS = ("jpeg", "webp", "jpeg2000", "jpegxl", "avif")
PUBLISHED_RANGE = (28.5, 35.0)


def store(run: Path, calib: Path, minutes: float) -> None:
    folder = Path(zoo.__file__).parent
    crops = load_calibration(split_files(calib, "val"), CALIBRATION_PICTURES, 256)
    codec, told = load_float(run / "model.safetensors"), model_description(run / "model.safetensors")
    gains = [float(f"{g:.4g}") for g in latent_gains(capture(codec), crops)]
    about = {LAMBDAS: told[LAMBDAS], "latent_gains": gains}
    about[LATENTS] = {**told[LATENTS], "coherence": COHERENCE, "refined_coherence": REFINED_COHERENCE}
    save_float(codec, folder / f"{NAME}.safetensors", about)
    options = {
        "data": calib, "out": folder / f"{NAME}-w8a8.rdqm", "run": run / "finetune", "profile": "exact",
        "calibration": CALIBRATION_PICTURES, "pictures": LEARNED_PICTURES, "minutes": minutes,
    }  # fmt: skip
    given = [f"--{name}={value}" for name, value in options.items()]
    words = [sys.executable, "-m", "rdquant", "finetune", NAME, *given, "--overwrite"]
    subprocess.run(words, check=True)


def entry(name: str, curve: Curve) -> dict[str, Any]:
    """What the index says of a model: Kodak in the middle of its qualities."""
    path = Path(zoo.__file__).parent / (f"{name}.rdqm" if name.endswith("w8a8") else f"{name}.safetensors")
    codec = load_float(path.parent / f"{NAME}.safetensors")
    point = curve.points[len(QUALITIES) // 2]
    keys = MEASURED[:3] if "timings" in curve.meta else MEASURED
    return {
        "file": path.name, "kind": "integer" if path.suffix == ".rdqm" else "float",
        "architecture": codec.architecture, **codec.options(), LAMBDAS: model_description(path)[LAMBDAS],
        "fingerprint": point.model["fingerprint"], "bytes": path.stat().st_size,
        "kodak": {
            "quality": QUALITIES[len(QUALITIES) // 2],
            **{k: float(f"{getattr(point, k):.5g}") for k in keys},
        },
    }  # fmt: skip


def measure(images: Path, dataset: str, only: list[str], qualities: list[int]) -> None:
    files = list_images(images)
    for label in only or CURVES:
        model, effort = CURVES[label]
        path = str(
            Path(zoo.__file__).parent / (f"{model}.rdqm" if "w8a8" in model else f"{model}.safetensors")
        )
        points = []
        for quality in qualities:
            coder = open_coder(f"{path}@{quality}", effort=effort)
            points.append(Point(f"{model}@{quality}", coder.describe(), evaluate(coder, files)))
            print(f"{label} {quality} {points[-1].bpp:.4f} bpp {points[-1].psnr:.3f} dB", flush=True)
        config: dict[str, Any] = {"latents": coder.coding.quantizer.name, "effort": effort}
        if label != "float":
            config |= {
                "weight_bits": "8 (of both transforms, first and last layers and the last block's last: 12)",
                "activation_bits": "8 (hyper-coder, context, in both transforms what the last layers "
                "and parts of the last two blocks read: 12)",
                "granularity": "per channel, static", "quantized": "every network and table",
                "finetune": "synthesis, through the twin",
            }  # fmt: skip
        command = f"python benchmarks/rd_s.py measure --images {dataset.upper()} --dataset {dataset}"
        if tuple(qualities) != QUALITIES:
            command += f" --qualities {' '.join(map(str, qualities))}"
        curve = Curve(
            f"{NAME}-{label}", dataset, points, {"command": command, "machine": machine(), **config}
        )
        curve.save(RESULTS / f"{dataset}-{NAME}-{label}.json")


def index() -> None:
    """Entries of the zoo's index, from the results on Kodak."""
    path = Path(zoo.__file__).parent / "index.json"
    entries = {n: e for n, e in json.loads(path.read_text()).items() if not n.startswith(NAME)}
    for label in ("float", "w8a8"):
        name = CURVES[label][0]
        entries[name] = entry(name, Curve.load(RESULTS / f"kodak-{NAME}-{label}.json"))
    path.write_text(json.dumps(entries, indent=1) + "\n")


def monotone(images: Path, dataset: str, step: int = 3) -> None:
    """Sizes of every picture over the qualities, and files for targets between them."""
    coder = open_coder(str(Path(zoo.__file__).parent / f"{NAME}-w8a8.rdqm"))
    qualities = [*range(1, 101, step)]
    falls, misses, worst = [], [], 0.0
    for file in list_images(images):
        rgb = read_image(file)
        sizes = [len(coder.at(q).encode(rgb)) for q in qualities]
        falls += [
            (file.stem, q, b - a) for q, a, b in zip(qualities, sizes, sizes[1:], strict=False) if b <= a
        ]
        for share in (0.3, 0.7):
            wanted = int(sizes[0] + share * (sizes[-1] - sizes[0]))
            below = 1 - len(coder.encode_to_size(rgb, wanted)) / wanted
            worst = max(worst, below)
            if not 0 <= below <= 0.01:
                misses.append((file.stem, wanted, round(below, 5)))
    found = {
        "dataset": dataset, "qualities": qualities, "not_rising": falls, "target_misses": misses,
        "furthest_below_target": round(worst, 5),
        "command": f"python benchmarks/rd_s.py monotone --images {dataset.upper()} --dataset {dataset}",
    }  # fmt: skip
    (RESULTS / f"{dataset}-{NAME}-monotone.json").write_text(json.dumps(found, indent=1) + "\n")
    print(found)


def against_published(curve: Curve) -> dict[str, float]:
    """Mean and ends of how much more rate a curve takes than the published one, in percent."""
    bpp, psnr = np.array(PUBLISHED).T
    rate = PchipInterpolator(psnr, np.log(bpp))
    points = sorted((p.psnr, np.log(p.bpp)) for p in curve.points)
    own = PchipInterpolator(*zip(*points, strict=True))
    low, high = max(PUBLISHED_RANGE[0], points[0][0]), min(PUBLISHED_RANGE[1], points[-1][0])
    at = np.linspace(low, high, 500)
    more = own(at) - rate(at)
    percent = {"bd_rate": np.expm1(more.mean()), "at_low": np.expm1(more[0]), "at_high": np.expm1(more[-1])}
    return {"from_db": low, "to_db": high, **{k: round(100 * float(v), 2) for k, v in percent.items()}}


def compare(dataset: str) -> None:
    paths = {label: RESULTS / f"{dataset}-{NAME}-{label}.json" for label in CURVES}
    curves = {label: Curve.load(p) for label, p in paths.items() if p.exists()}
    found: dict[str, Any] = {"dataset": dataset, "interpolation": "PCHIP, log rate over PSNR, mean curves"}
    if dataset == "kodak":
        found["against published mbt2018-mean"] = {k: against_published(c) for k, c in curves.items()}
    anchors = {"float": curves["float"]}
    classical = {name: RESULTS / f"{dataset}-{name}.json" for name in ANCHORS}
    anchors |= {name: Curve.load(path) for name, path in classical.items() if path.exists()}
    for name, anchor in anchors.items():
        found[f"against {name}"] = {k: vars(bd_rate(anchor, c)) for k, c in curves.items() if c is not anchor}
    found["command"] = f"python benchmarks/rd_s.py compare --dataset {dataset}"
    (RESULTS / f"{dataset}-{NAME}-bdrate.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def multiplications(codec: FloatCodec, side: int = 256) -> dict[str, float]:
    """kMAC of convolutions a pixel: ``decoder`` is all but g_a and h_a, ``encoder`` those two."""
    total: Counter[str] = Counter()

    def add(name: str, module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        moving = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        total[name] += moving.numel() * module.weight[0].numel()

    for name, module in codec.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(partial(add, name.partition(".")[0]))
    with torch.no_grad():
        codec(torch.rand(1, 3, side, side), "mixed")  # each pass of the context once
    parts = {name: count / side**2 / 1000 for name, count in total.items()}
    encoder = parts["g_a"] + parts["h_a"]
    parts |= {"encoder": encoder, "decoder": sum(parts.values()) - encoder}
    return {name: round(value, 2) for name, value in parts.items()}


@torch.no_grad()
def about(calib: Path, pictures: int = 32) -> None:
    """Multiplications, and PSNR of the start with nothing rounded, on centre crops of the val split."""
    start = load_float(Path(zoo.__file__).parent / f"{NAME}.safetensors")
    found: dict[str, Any] = {"kmac_a_pixel": multiplications(start)}
    initialise(start)
    start_from_components(start, CropSource(split_files(calib, "train"), 1))
    x = centre_crops(split_files(calib, "val"), pictures, 256).float() / 255
    error = ((start.g_s(start.g_a(x)).clamp(0, 1) - x) ** 2).mean((1, 2, 3))
    found["psnr_of_the_start_unrounded"] = round(float((-10 * torch.log10(error)).mean()), 2)
    integers = model_description(Path(zoo.__file__).parent / f"{NAME}-w8a8.rdqm")
    found["finetune"] = integers["finetune"]  # MSE of calibration pictures
    found |= {"val_pictures": len(x), "command": "python benchmarks/rd_s.py about --calib TRAIN"}
    (RESULTS / f"{NAME}-about.json").write_text(json.dumps(found, indent=1) + "\n")
    print(found)


def hours() -> None:
    """What training was worth: a JSON and a figure, over CPU hours of one core, run after run."""
    before, rows = 0.0, []
    for name in RUNS:
        entries = [json.loads(line) for line in (LOGS / f"{name}.jsonl").read_text().splitlines()]
        for entry in entries:
            if "val" in entry:
                values = {str(v["lambda"]): v["J"] for v in entry["val"]}
                hour = round((before + entry["cpu"]) / 3600, 3)
                rows.append({"run": name, "step": entry["step"], "hours": hour, "J": values})
        before += entries[-1]["cpu"]
    told = {
        "command": "python benchmarks/rd_s.py hours",
        "total_hours": round(before / 3600, 2),
        "rows": rows,
    }
    (RESULTS / f"{NAME}-hours.json").write_text(json.dumps(told, indent=1) + "\n")
    last = rows[-1]["J"]  # the trellis's phase has no J of plain rounding
    figure = lines_figure(
        {f"lambda {k}": [(r["hours"], 100 * (r["J"][k] / last[k] - 1)) for r in rows] for k in last},
        "rd-s: J on the val split", "hours of one core", "% above the last",
    )  # fmt: skip
    figure.axes[0].set_ylim(-0.5, 14)
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=("store", "measure", "index", "monotone", "compare", "about", "hours")
    )
    parser.add_argument("--run", type=Path)
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of fine-tuning")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--dataset", default="kodak")
    parser.add_argument("--only", nargs="*", choices=CURVES, default=[])
    parser.add_argument("--qualities", nargs="+", type=int, default=list(QUALITIES))
    args = parser.parse_args()
    if args.what == "store":
        store(args.run, args.calib, args.minutes)
    elif args.what == "measure":
        measure(args.images, args.dataset, args.only, args.qualities)
    elif args.what == "index":
        index()
    elif args.what == "hours":
        hours()
    elif args.what == "about":
        about(args.calib)
    elif args.what == "monotone":
        monotone(args.images, args.dataset)
    else:
        compare(args.dataset)


if __name__ == "__main__":
    main()
