"""What exactness costs: seconds to decode a file, float codec against integer codec.

    python benchmarks/decode_time.py --images KODAK [--rounds 5]

Three decoders take turns on every picture, each with a file of its own codec: the float parent; the integer
codec with the approximate synthesis (symbols exact, pixels float); the integer codec, exact throughout. For
each, the part that the entropy path takes (z, h_s, tables, y) is timed as well. Ratios are of medians over
pictures and rounds. Writes benchmarks/results/decode-time.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

from rdquant.coder import ImageCoder
from rdquant.evaluate import machine
from rdquant.files.images import list_images, read_image
from rdquant.load import open_coder


class _Timed:
    """A codec whose synthesis notes how long it took."""

    def __init__(self, codec: object) -> None:
        self.codec, self.seconds = codec, 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self.codec, name)

    def synthesis(self, y_hat: torch.Tensor, engine: str = "exact") -> torch.Tensor:
        start = time.perf_counter()
        out = self.codec.synthesis(y_hat, engine)  # type: ignore[attr-defined]
        self.seconds = time.perf_counter() - start
        return out


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
    whole: dict[str, list[float]] = {w: [] for w in ways}
    entropy: dict[str, list[float]] = {w: [] for w in ways}
    for k in range(args.rounds + 1):
        for pair in files if k else files[:1]:  # one to warm up
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
        "ratio_to_float": {w: median(v) / median(whole["float"]) for w, v in whole.items()},
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
