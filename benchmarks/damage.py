"""Every damage to small files of each profile and quantizer: is each an error of the documented tree?

    python benchmarks/damage.py

Every single bit flipped, every truncation, every byte overwritten with every value, bytes appended, and
lies in every header field with right checksums around them. The files are the golden ones and, for the
float profile, RDOQ and TCQ, ones made here. Writes benchmarks/results/damage.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from conftest import small_codec  # noqa: E402
from damaged import bit_flips, extensions, lies, overwrites, truncations  # noqa: E402
from golden.make import HERE, MODELS, picture  # noqa: E402
from rdquant.codecs import ARCHITECTURES  # noqa: E402
from rdquant.coder import ImageCoder  # noqa: E402
from rdquant.errors import DecodeError  # noqa: E402
from rdquant.files.container import Profile  # noqa: E402
from rdquant.files.float_models import float_fingerprint  # noqa: E402
from rdquant.graph.capture import capture  # noqa: E402
from rdquant.load import open_coder  # noqa: E402
from rdquant.measure import machine  # noqa: E402


def subjects() -> dict[str, tuple[ImageCoder, bytes]]:
    """Coders and small files of theirs."""
    found = {}
    for name in MODELS:
        coder = open_coder(str(HERE / f"{name}.rdqm"))
        for size in ("1x1", "70x45"):
            found[f"integer {name} {size}"] = coder, (HERE / f"{name}-{size}.rdq").read_bytes()
    for architecture in ARCHITECTURES:
        codec = small_codec(architecture)
        coder = ImageCoder(capture(codec), float_fingerprint(codec), Profile.FLOAT)
        found[f"float {architecture} 70x45"] = coder, coder.encode(picture("70x45"), pixel_checksum=True)
    for quantizer in ("uniform", "rdoq", "tcq4", "tcq8"):
        coder = open_coder("mean-scale-s-0035-w8a8", quantizer)
        found[f"integer mean-scale-s-0035-w8a8 {quantizer}"] = coder, coder.encode(picture("70x45"), True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/damage.json"))
    args = parser.parse_args()
    rows = {}
    for name, (coder, data) in subjects().items():
        coder.decode(data)
        cases = {
            "bit flipped": bit_flips(data), "truncated": truncations(data),
            "byte overwritten": overwrites(data), "bytes appended": extensions(data),
            "lie": (d for _, d in lies(data)),
        }  # fmt: skip
        row: dict = {"bytes": len(data), "errors": {}, "cases": 0, "pictures": {}, "slowest_seconds": 0.0}
        errors: Counter = Counter()
        for kind, damaged in cases.items():
            for file in damaged:
                start = time.perf_counter()
                try:
                    coder.decode(file)
                    # a lie about the size within the padding, in a file without pixel checksum
                    row["pictures"][kind] = row["pictures"].get(kind, 0) + 1
                except DecodeError as error:
                    errors[type(error).__name__] += 1
                row["cases"] += 1
                row["slowest_seconds"] = max(row["slowest_seconds"], time.perf_counter() - start)
        row["errors"] = dict(errors)
        row["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows[name] = row
        print(name, json.dumps(row), flush=True)
    total = sum(r["cases"] for r in rows.values())
    summary = {
        "command": "python benchmarks/damage.py", "machine": machine(), "cases": total,
        "slowest_seconds": max(r["slowest_seconds"] for r in rows.values()),
        "peak_memory_mb": max(r["peak_memory_mb"] for r in rows.values()),
        "pictures_from_damage": {n: r["pictures"] for n, r in rows.items() if r["pictures"]}, "files": rows,
    }  # fmt: skip
    args.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
