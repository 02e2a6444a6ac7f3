"""The wheel as a user gets it: installed by each Python, a first picture, and files the same everywhere.

    python benchmarks/installs.py --image PICTURE --python python3.11 python3.12 python3.13

The wheel is built once. For each interpreter: a fresh virtual environment, ``pip install`` of the wheel (what
it depends on comes from the index that pip is set to), then ``rdquant encode`` and ``rdquant decode`` of
PICTURE, whose first runs compile kernels, and golden files of tests/golden decoded. Seconds are of one run
each. Fails where a file or its pixels differ. Writes benchmarks/results/installs.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from rdquant.files.images import read_image
from rdquant.measure.results import machine

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
RESULT = Path(__file__).parent / "results" / "installs.json"


def run(*command: str | Path, **more: Any) -> float:
    """Seconds. What it says is shown when it fails."""
    start = time.perf_counter()
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **more)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - start


def sha256(path: Path) -> str:
    """Of a picture's pixels, or of a file."""
    data = np.ascontiguousarray(read_image(path)).tobytes() if path.suffix == ".png" else path.read_bytes()
    return hashlib.sha256(data).hexdigest()


def trial(python: str, wheel: Path, image: Path, folder: Path) -> dict[str, Any]:
    """Seconds of each step with one interpreter, and hashes of what it made."""
    folder.mkdir()
    environment = folder / "venv"
    run(python, "-m", "venv", environment)
    bin_ = environment / "bin"
    row: dict[str, Any] = {"install_s": run(bin_ / "pip", "install", "-q", wheel)}
    clean = {"env": {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}}, "cwd": folder}
    row["encode_s"] = run(bin_ / "rdquant", "encode", image, "-o", "photo.rdq", **clean)
    row["decode_s"] = run(bin_ / "rdquant", "decode", "photo.rdq", "-o", "photo.png", **clean)
    row["second_encode_s"] = run(bin_ / "rdquant", "encode", image, "-o", "again.rdq", **clean)
    row |= {"file": sha256(folder / "photo.rdq"), "pixels": sha256(folder / "photo.png")}
    known, decoded = json.loads((GOLDEN / "golden.json").read_text()), 0
    for model in sorted(GOLDEN.glob("*.rdqm")):
        file = GOLDEN / f"{model.stem}-70x45.rdq"
        run(bin_ / "rdquant", "decode", file, "-m", model, "-o", f"{file.stem}.png", **clean)
        if sha256(folder / f"{file.stem}.png") != known[file.stem]:
            raise SystemExit(f"{python}: pixels of {file.name} differ")
        decoded += 1
    code = (
        "import importlib.metadata as m, json, platform;"
        "print(json.dumps({'python': platform.python_version(),"
        "**{d.metadata['Name']: d.version for d in m.distributions() if d.metadata['Name'] in "
        "('numpy', 'numba', 'llvmlite', 'pillow', 'torch')}}))"
    )
    told = subprocess.run([bin_ / "python", "-c", code], capture_output=True, text=True, check=True)
    return {**json.loads(told.stdout), **row, "golden_files_decoded": decoded}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
        (wheel,) = folder.glob("*.whl")
        rows = [
            trial(python, wheel, args.image.resolve(), folder / str(i))
            for i, python in enumerate(args.python)
        ]
        size = wheel.stat().st_size
    if len({(r["file"], r["pixels"]) for r in rows}) != 1:
        raise SystemExit("files or pixels differ from one Python to another")
    found = {
        "command": "python benchmarks/installs.py --image PICTURE --python python3.11 python3.12 python3.13",
        "machine": machine(), "wheel_bytes": size, "rows": rows,
    }  # fmt: skip
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
