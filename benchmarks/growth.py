"""Time and memory of a calibration as its pictures grow: `rdquant quantize` in a process of its own.

python benchmarks/growth.py --calib TRAIN [--counts 12 24 48 96] [--model mean-scale-s-0130]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rdo import RESULTS, calibrate

from rdquant.measure import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[12, 24, 48, 96])
    parser.add_argument("--model", default="mean-scale-s-0130")
    parser.add_argument("--width", default="W8A8")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in args.counts:
            found = calibrate(args.model, args.width, args.calib, Path(folder) / "q", [], count)
            rows.append(
                {"pictures": count, **{k: found[k] for k in ("seconds", "peak_memory_mb", "command")}}
            )
            print(
                f"{count:4} pictures {found['seconds']:6.1f} s {found['peak_memory_mb']:6.0f} MB", flush=True
            )
    result = {"model": args.model, "width": args.width, "machine": machine(), "rows": rows}
    (RESULTS / "calibration-growth.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
