"""Classical codecs on a folder of pictures: one curve file each.

python benchmarks/anchors.py --images KODAK --dataset kodak
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rdquant.files.images import list_images
from rdquant.measure import ANCHORS, run_anchor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--codec", nargs="+", default=list(ANCHORS), choices=list(ANCHORS))
    parser.add_argument("--cache", type=Path, help="folder that keeps what was measured")
    parser.add_argument("--out-dir", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    for codec in args.codec:
        curve = run_anchor(codec, list_images(args.images), args.dataset, cache=args.cache)
        command = f"python benchmarks/anchors.py --images {args.dataset.upper()} --dataset {args.dataset}"
        curve = replace(curve, meta={**curve.meta, "command": command})
        curve.save(args.out_dir / f"{args.dataset}-{codec}.json")
        for p in curve.points:
            print(f"{codec:10} {p.label:>5} {p.bpp:.4f} bpp {p.psnr:.3f} dB {p.ms_ssim:.4f}")


if __name__ == "__main__":
    main()
