"""Decoding with a serial context: rdquant's integer codec against CompressAI's own model of the same weights.

    pip install --no-deps compressai==1.2.8 && pip install einops pandas tqdm requests torch-geometric
    python benchmarks/serial.py [--N 64 --M 96] [--image PICTURE] [--rounds 5]

Both are `mbt2018` with the very same weights, random ones, scaled so that latents are lively: what is
measured is time, not quality. CompressAI's decodes position by position; rdquant's is the W8A8 codec that
`rdquant.quantize` makes of it, with real files. Decoders take turns on one picture of 768x512, the synthesis
included. Beside them rdquant's float codec, and what the synthesis alone takes. Writes
benchmarks/results/serial.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import rdquant
from rdquant.codecs.checkpoint import import_checkpoint
from rdquant.files.images import read_image
from rdquant.measure import machine
from rdquant.pixels import to_batch
from rdquant.study.demo import photographs
from rdquant.train.loop import initialise

HEIGHT, WIDTH = 512, 768
RESULT = Path(__file__).parent / "results" / "serial.json"


def compressai_model(N: int, M: int) -> Any:
    """CompressAI's mbt2018, random weights; its coder's tables made."""
    if "torchvision" not in sys.modules:  # it takes no more of it than the name of a module
        vision, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
        vision.transforms = transforms  # type: ignore[attr-defined]
        sys.modules.update({"torchvision": vision, "torchvision.transforms": transforms})
    try:
        from compressai.models import JointAutoregressiveHierarchicalPriors
    except ImportError as error:
        raise SystemExit(f"this needs CompressAI, see the text above: {error}") from None
    torch.manual_seed(0)
    model = JointAutoregressiveHierarchicalPriors(N, M).eval()
    initialise(model)
    with torch.no_grad():
        model.g_a[-1].weight.mul_(4)
    model.update()
    return model


def picture(path: Path | None) -> np.ndarray:
    """``(512, 768, 3)``: a crop of the file's, or of photographs that scikit-image ships, tiled."""
    rgb = read_image(path) if path is not None else photographs(("astronaut",))["astronaut"]
    rgb = np.tile(rgb, (-(-HEIGHT // rgb.shape[0]), -(-WIDTH // rgb.shape[1]), 1))
    return np.ascontiguousarray(rgb[:HEIGHT, :WIDTH])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--N", type=int, default=64)
    parser.add_argument("--M", type=int, default=96)
    parser.add_argument("--image", type=Path, help="Default: a photograph that scikit-image ships.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    theirs = compressai_model(args.N, args.M)
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"state_dict": theirs.state_dict()}, Path(folder) / "c.pth")
        codec = import_checkpoint(Path(folder) / "c.pth")
    rgb = picture(args.image)
    crops = [rgb[:256, i : i + 256] for i in (0, 256, 512)]
    integer = rdquant.open(rdquant.quantize(codec, crops))
    floats = rdquant.open(rdquant.capture(codec))
    x = torch.from_numpy(to_batch(rgb)).float() / 255
    with torch.no_grad():
        streams = theirs.compress(x)
    data, of_floats = integer.encode(rgb), floats.encode(rgb)
    if not np.array_equal(integer.decode(data), integer.forward(rgb)[0]):
        raise SystemExit("the decoded file differs from the forward pass")
    y_hat = integer.symbols(rgb).y_hat

    def compressai() -> None:
        with torch.no_grad():
            theirs.decompress(**{k: streams[k] for k in ("strings", "shape")})

    def synthesis() -> None:
        integer.codec.synthesis(y_hat)

    ways: dict[str, Callable[[], Any]] = {
        "CompressAI": compressai,
        "rdquant W8A8": lambda: integer.decode(data),
        "rdquant float": lambda: floats.decode(of_floats),
        "of these, the synthesis of W8A8": synthesis,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(args.rounds + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            if k:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    found = {name: median(values) for name, values in seconds.items()}
    theirs_bytes = sum(len(s[0]) for s in streams["strings"])
    result = {
        "command": f"python benchmarks/serial.py --N {args.N} --M {args.M} --rounds {args.rounds}",
        "machine": machine(), "architecture": codec.architecture, **codec.options(),
        "weights": "random, the same in all; time is measured, not quality",
        "picture": f"{WIDTH}x{HEIGHT}", "rounds": args.rounds, "decoders": "take turns in one process",
        "bpp": {
            name: 8 * n / (WIDTH * HEIGHT)
            for name, n in (
                ("CompressAI", theirs_bytes), ("rdquant W8A8", len(data)), ("rdquant float", len(of_floats))
            )
        },
        "median_seconds": found, "seconds": seconds,
        "times_faster": {n: found["CompressAI"] / found[n] for n in ("rdquant W8A8", "rdquant float")},
    }  # fmt: skip
    print(json.dumps({k: v for k, v in result.items() if k != "seconds"}, indent=1))
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
