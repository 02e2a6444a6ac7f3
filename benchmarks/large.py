"""Large pictures: memory, and time a pixel, against a small one.

    python benchmarks/large.py --images FOLDER [--side 4096] [--rounds 3]

Pictures of FOLDER are tiled to one of SIDE by SIDE; the small one is the folder's first. Both are read,
decoded and written as PNG in turns, in one process that has done so before. Peak memory is that of ``rdquant
encode`` and ``rdquant decode`` in processes of their own. Writes benchmarks/results/large.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cold_start import measure

from rdquant.coder import ImageCoder
from rdquant.files.atomic import read_file
from rdquant.files.images import list_images, read_image, write_image
from rdquant.load import open_coder
from rdquant.measure import machine
from rdquant.threads import allowed
from rdquant.zoo import DEFAULT

RESULTS = Path(__file__).parent / "results" / "large.json"


def tiled(pictures: list[np.ndarray], side: int) -> np.ndarray:
    """``(side, side, 3)``, pictures turned to lie, in rows, one after another."""
    h, w = sorted(pictures[0].shape[:2])
    flat = [p if p.shape[:2] == (h, w) else np.rot90(p) for p in pictures]
    endless = itertools.cycle(p for p in flat if p.shape[:2] == (h, w))
    rows = [np.concatenate([next(endless) for _ in range(-(-side // w))], 1) for _ in range(-(-side // h))]
    return np.ascontiguousarray(np.concatenate(rows)[:side, :side])


def decode(coder: ImageCoder, source: Path, target: Path) -> dict[str, float]:
    """Seconds by stage."""
    start = time.perf_counter()
    pixels = coder.decode(read_file(source))
    middle = time.perf_counter()
    write_image(target, pixels)
    return {"decode": middle - start, "write PNG": time.perf_counter() - middle}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=DEFAULT)
    args = parser.parse_args()
    pictures = [read_image(p) for p in list_images(args.images)]
    coder = open_coder(args.model)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"small": pictures[0], "large": tiled(pictures, args.side)}
        times: dict[str, list[dict[str, float]]] = {size: [] for size in sizes}
        for size, rgb in sizes.items():
            write_image(folder / f"{size}.png", rgb)
            (folder / f"{size}.rdq").write_bytes(coder.encode(rgb))
            decode(coder, folder / f"{size}.rdq", folder / "out.png")
        for _ in range(args.rounds):
            for size in sizes:
                times[size].append(decode(coder, folder / f"{size}.rdq", folder / "out.png"))
        for size, rgb in sizes.items():
            found = {stage: median(t[stage] for t in times[size]) for stage in times[size][0]}
            rdquant, file = [sys.executable, "-m", "rdquant"], str(folder / f"{size}.rdq")
            ends = ["-m", args.model, "--overwrite", "-o"]
            peaks = {
                "encode": measure([*rdquant, "encode", str(folder / f"{size}.png"), *ends, file])[1],
                "decode": measure([*rdquant, "decode", file, *ends, str(folder / "out.png")])[1],
            }
            rows[size] = {
                "size": f"{rgb.shape[1]}x{rgb.shape[0]}",
                "seconds": found,
                "nanoseconds_a_pixel": 1e9 * sum(found.values()) / rgb[..., 0].size,
                "peak_mb": {k: round(v) for k, v in peaks.items()},
            }
    ratio = rows["large"]["nanoseconds_a_pixel"] / rows["small"]["nanoseconds_a_pixel"]
    result = {
        "command": f"python benchmarks/large.py --images KODAK --side {args.side} --rounds {args.rounds}",
        "machine": machine(), "model": args.model, "threads": allowed(), "rows": rows,
        "large_to_small_a_pixel": ratio,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
