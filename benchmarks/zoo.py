"""Build the zoo: store trained codecs as float16, quantize them, measure both on Kodak, write the index.

    python benchmarks/zoo.py --model 0.0130=RUN/model.safetensors ... --calib TRAIN --images KODAK
    python benchmarks/zoo.py --compare    # BD-rates anew, from the result files

Calibrates on the val split of the training folder; the test set is only measured on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rdquant import zoo
from rdquant.codecs import FloatCodec
from rdquant.files.float_models import load_float, save_float
from rdquant.files.images import list_images
from rdquant.files.integer_models import save_integer
from rdquant.files.split import split_files
from rdquant.graph.capture import capture
from rdquant.latents.gains import latent_gains
from rdquant.load import open_coder
from rdquant.measure import Curve, Point, bd_rate, evaluate, machine
from rdquant.passes import QuantizeConfig, load_calibration
from rdquant.passes.methods import Job, quantize_by
from rdquant.passes.rdo_config import RdoConfig

FAMILY = "mean-scale-s"
CALIBRATION_PICTURES = 96
COMPARED = "python benchmarks/zoo.py --compare"


def entry(file: Path, kind: str, codec: FloatCodec, lambda_: float, point: Point) -> dict:
    """What the index says of a model; ``point``: as measured on Kodak."""
    return {
        "file": file.name, "kind": kind, "architecture": codec.architecture, **codec.options(),
        "lambda": lambda_, "fingerprint": point.model["fingerprint"], "bytes": file.stat().st_size,
        "kodak": {
            k: float(f"{getattr(point, k):.5g}") for k in ("bpp", "psnr", "ms_ssim", "encode_s", "decode_s")
        },
    }  # fmt: skip


def write_index(entries: dict[str, dict]) -> None:
    """Float models first, each kind in order of lambda and name."""
    order = sorted(entries.items(), key=lambda e: (e[1]["kind"], e[1]["lambda"], e[0]))
    path = Path(zoo.__file__).parent / "index.json"
    path.write_text(json.dumps(dict(order), indent=1) + "\n")


def integer_meta(config: QuantizeConfig) -> dict:
    """What a curve of quantized models says of them."""
    return {
        "weight_bits": "8 (hyper_synthesis: 7), per output channel, symmetric", "activation_bits": 8,
        "granularity": f"activations per {config.granularity}, static, mixed behind each GDN",
        "latents": "16-bit fixed point",
        "scopes": "g_a, g_s, h_a, h_s, GDN, entropy tables", "config": config.to_json(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", action="store_true", help="only the BD-rates, from result files")
    parser.add_argument("--model", nargs="+", metavar="LAMBDA=FILE")
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--dataset", default="kodak")
    parser.add_argument("--out-dir", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if args.compare:
        compare(args.out_dir, args.dataset)
        return
    if not (args.model and args.calib and args.images):
        parser.error("--model, --calib and --images are needed, or --compare")
    folder = Path(zoo.__file__).parent
    crops = load_calibration(split_files(args.calib, "val"), CALIBRATION_PICTURES, 256)
    files = list_images(args.images)
    points: dict[str, list[Point]] = {"float": [], "integer": []}
    index = {}
    config = QuantizeConfig()
    for item in args.model:
        lam, _, path = item.partition("=")
        name = f"{FAMILY}-{lam.split('.')[1]:0<4}"
        codec = load_float(Path(path))
        gains = [float(f"{g:.4g}") for g in latent_gains(capture(codec), crops[:8])]
        save_float(codec, folder / f"{name}.safetensors", {"lambda": float(lam), "latent_gains": gains})
        codec = load_float(folder / f"{name}.safetensors")
        about = {
            "lambda": float(lam),
            "parent": name,
            "calibration_pictures": len(crops),
        }
        integer, trace = quantize_by("ours", Job(codec, crops, config, RdoConfig(lambda_=float(lam))), about)
        save_integer(integer, folder / f"{name}-w8a8.rdqm")
        ends = [e for e in trace.entries if "J" in e]
        print(name, [(e["unit"], round(e["J"], 4), e["seconds"]) for e in ends], flush=True)
        for kind, model in (("float", name), ("integer", f"{name}-w8a8")):
            file = folder / f"{model}.{'safetensors' if kind == 'float' else 'rdqm'}"
            coder = open_coder(str(file))
            point = Point(model, coder.describe(), evaluate(coder, files))
            points[kind].append(point)
            print(f"{model:26} {point.bpp:.4f} bpp {point.psnr:.3f} dB {point.ms_ssim:.4f}", flush=True)
            index[model] = entry(file, kind, codec, float(lam), point)
    write_index(index)
    curves = {}
    command = f"python benchmarks/zoo.py --model ... --calib TRAIN --images {args.dataset.upper()}"
    meta = {"command": command, "machine": machine()}
    for kind, label in (("float", FAMILY), ("integer", f"{FAMILY}-w8a8")):
        about = {} if kind == "float" else integer_meta(config)
        ordered = sorted(points[kind], key=lambda p: p.bpp)
        curves[kind] = Curve(label, args.dataset, ordered, {**meta, **about})
        curves[kind].save(args.out_dir / f"{args.dataset}-{label}.json")
    if len(args.model) > 1:
        compare(args.out_dir, args.dataset)


def compare(folder: Path, dataset: str) -> None:
    """BD-rates of both families against each other and classical codecs, from their result files."""
    curves = {k: Curve.load(folder / f"{dataset}-{FAMILY}{k}.json") for k in ("", "-w8a8")}
    anchors = {"float parent": curves[""]}
    for codec_name in ("jpeg", "webp", "jpeg2000", "hevc"):
        path = folder / f"{dataset}-{codec_name}.json"
        if path.exists():
            anchors[codec_name] = Curve.load(path)
    comparisons = {}
    for anchor_name, anchor in anchors.items():
        for curve in curves.values():
            if anchor is not curve:
                result = bd_rate(anchor, curve)
                comparisons[f"{curve.name} against {anchor_name}"] = vars(result)
                print(f"{curve.name} against {anchor_name}: {result.text()}")
    about = {k: curves[""].meta[k] for k in ("command", "machine")}
    summary = {"dataset": dataset, **about, "compared": COMPARED, "bd_rate_psnr": comparisons}
    (folder / f"{dataset}-zoo-bdrate.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
