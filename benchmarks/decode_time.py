"""What exactness costs: seconds to decode a file, float codec against integer codec.

    python benchmarks/decode_time.py --images KODAK [--rounds 5]

Three decoders take turns on every picture, each with a file of its own codec: the float parent; the integer
codec with the approximate synthesis (symbols exact, pixels float); the integer codec, exact throughout. For
each, the part that the entropy path takes (z, h_s, tables, y) is timed as well. Where CompressAI can be
imported, its mean-scale codec of the same widths, untrained, with files of its own, takes turns. Encoding
likewise, at effort 0. Ratios are of medians over pictures and rounds. Writes
benchmarks/results/decode-time.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import types
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rdquant.coder import ImageCoder
from rdquant.engines.products import instructions
from rdquant.files.images import list_images, read_image
from rdquant.load import open_coder
from rdquant.measure import machine
from rdquant.pixels import pad_to, to_batch


class _Timed:
    """A codec whose synthesis notes how long it took."""

    def __init__(self, codec: object) -> None:
        self.codec, self.seconds = codec, 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self.codec, name)

    def synthesis(self, y_hat: np.ndarray, engine: str = "exact") -> np.ndarray:
        start = time.perf_counter()
        out = self.codec.synthesis(y_hat, engine)  # type: ignore[attr-defined]
        self.seconds = time.perf_counter() - start
        return out


def _compressai(coder: ImageCoder) -> Any:
    """CompressAI's codec of the same widths, or None. It needs no more of torchvision than a name."""
    names = ("torchvision", "torchvision.transforms")
    top, transforms = (types.ModuleType(name) for name in names)
    top.transforms = transforms  # type: ignore[attr-defined]
    sys.modules.update(zip(names, (top, transforms), strict=True))
    try:
        from compressai.models import MeanScaleHyperprior
    except ImportError:
        return None
    torch.manual_seed(0)
    hidden = coder.codec.networks["hyper_analysis"]
    found = MeanScaleHyperprior(hidden.channels()[hidden.output], coder.codec.M).eval()
    found.update()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--parent", default="mean-scale-s-0130")
    parser.add_argument("--model", default="mean-scale-s-0130-w8a8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decode-time.json"))
    args = parser.parse_args()

    def timed(name: str) -> ImageCoder:
        coder = open_coder(name)
        return ImageCoder(_Timed(coder.codec), coder.fingerprint, coder.profile)  # type: ignore[arg-type]

    parent, model = timed(args.parent), timed(args.model)
    ways = {"float": (parent, "exact"), "approximate": (model, "torch"), "exact": (model, "exact")}
    files = [(parent.encode(p), model.encode(p)) for p in map(read_image, list_images(args.images))]
    other = _compressai(model)
    names = [*ways, *(["compressai"] if other else [])]
    encoding: dict[str, list[float]] = {w: [] for w in names if w != "approximate"}
    whole: dict[str, list[float]] = {w: [] for w in names}
    entropy: dict[str, list[float]] = {w: [] for w in ways}
    pictures = [read_image(path) for path in list_images(args.images)]
    for k in range(args.rounds + 1):
        for rgb, pair in zip(pictures, files, strict=True) if k else [(pictures[0], files[0])]:  # to warm up
            for way, coder in (("float", parent), ("exact", model)):
                start = time.perf_counter()
                coder.encode(rgb)
                if k:
                    encoding[way].append(time.perf_counter() - start)
            if other:
                x = torch.from_numpy(to_batch(pad_to(rgb, 64))).float() / 255
                with torch.no_grad():
                    start = time.perf_counter()
                    strings = other.compress(x)
                    middle = time.perf_counter()
                    other.decompress(**strings)
                    end = time.perf_counter()
                if k:
                    encoding["compressai"].append(middle - start)
                    whole["compressai"].append(end - middle)
            for way, (coder, engine) in ways.items():
                start = time.perf_counter()
                coder.decode(pair[coder is model], engine=engine)
                seconds = time.perf_counter() - start
                if k:
                    whole[way].append(seconds)
                    entropy[way].append(seconds - coder.codec.seconds)  # type: ignore[attr-defined]
    result = {
        "command": f"python benchmarks/decode_time.py --images KODAK --rounds {args.rounds}",
        "machine": machine(), "threads": torch.get_num_threads(), "pictures": len(files),
        "parent": args.parent, "model": args.model,
        "median_seconds": {w: median(v) for w, v in whole.items()},
        "median_seconds_without_synthesis": {w: median(v) for w, v in entropy.items()},
        "median_seconds_to_encode": {w: median(v) for w, v in encoding.items()},
        "instructions": instructions(),
        "ratio_to_float": {w: median(v) / median(whole["float"]) for w, v in whole.items()},
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
