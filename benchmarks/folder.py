"""A folder through the command line: pictures a second, start and all.

    python benchmarks/folder.py --images FOLDER [--copies 8] [--rounds 3]

Every picture of FOLDER is coded ``--copies`` times over with each model, by ``rdquant encode`` into a folder,
and that is decoded to PNG and to PPM, whole commands in turns after one round that fills numba's cache.
Writes benchmarks/results/folder.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from cold_start import measure

from rdquant.files.images import list_images
from rdquant.measure import machine
from rdquant.threads import allowed

RESULTS = Path(__file__).parent / "results" / "folder.json"
MODELS = ("mean-scale-s-0130-w8a8", "rd-s-w8a8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rdquant = [sys.executable, "-m", "rdquant"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = folder / "pictures"
        pictures.mkdir()
        for i in range(args.copies):
            for path in list_images(args.images):
                shutil.copy(path, pictures / f"{i}-{path.name}")
        count = len(list(pictures.iterdir()))
        commands = {}
        for model in MODELS:
            coded = str(folder / model)
            commands[model, "encode"] = [*rdquant, "encode", str(pictures), "-m", model, "-o", coded]
            for suffix in ("png", "ppm"):
                out = str(folder / f"{model}-{suffix}")
                commands[model, suffix] = [*rdquant, "decode", coded, "-o", out, "--format", suffix]
        times: dict[tuple[str, str], list[float]] = {key: [] for key in commands}
        for i in range(args.rounds + 1):
            for key, command in commands.items():
                taken = measure([*command, "--overwrite"])[0]
                if i:
                    times[key].append(taken)
    rows = {
        model: {what: round(count / median(times[model, what]), 1) for what in ("encode", "png", "ppm")}
        for model in MODELS
    }
    result = {
        "command": f"python benchmarks/folder.py --images KODAK --copies {args.copies} "
        f"--rounds {args.rounds}",
        "machine": machine(), "threads": allowed(), "pictures": count, "pictures_a_second": rows,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
