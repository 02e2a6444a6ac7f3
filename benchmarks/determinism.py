"""Do other threads, instruction sets, engines and batches give the same symbols and the same pixels?

    python benchmarks/determinism.py --images kodak=KODAK tecnick=TECNICK

Each configuration is a process of its own, with its environment, that encodes and decodes every picture.
Compared with the first one: symbols of z and y, table indexes and means that the decoder computes, pixels of
the exact and of the approximate synthesis; and, for contrast, the table indexes and symbols of the float
parent (in float64 where the integer codec runs its reference). Stored runs are not made again. Writes
benchmarks/results/determinism.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

CONFIGURATIONS: dict[str, dict[str, str]] = {
    "2 threads": {},
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "5 threads": {"OMP_NUM_THREADS": "5"},
    "AVX512-VNNI instructions": {"RDQUANT_ISA": "avx512vnni"},
    "AVX2 instructions": {"RDQUANT_ISA": "avx2"},
    "portable instructions": {"RDQUANT_ISA": "portable"},
    "oneDNN SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN AVX512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "batches of 3": {"BATCH": "3"},
    "PyTorch, CPU": {"RDQUANT_ENGINE": "torch:cpu"},
    "PyTorch, CUDA": {"RDQUANT_ENGINE": "torch:cuda"},
    "float64 reference": {"RDQUANT_ENGINE": "reference"},
}
#: what must not differ, and what may
EXACT = ("y symbols", "z symbols", "indexes", "means", "exact pixels")
FREE = ("approximate pixels", "float indexes", "float symbols")


def child(pictures: list[str], model: str, parent: str, out: Path) -> None:
    """Everything of every picture, as one file of arrays per batch."""
    from rdquant.files.images import read_image
    from rdquant.latents.parts import quantized
    from rdquant.load import open_coder
    from rdquant.pixels import pad_to, to_batch

    batch = int(os.environ.get("BATCH", "1"))
    codec, floats = open_coder(model).codec, open_coder(parent).codec
    dtype = np.float64 if os.environ.get("RDQUANT_ENGINE") == "reference" else np.float32
    shapes: dict[tuple, list[str]] = {}
    for path in pictures:
        shapes.setdefault(read_image(Path(path)).shape, []).append(path)
    for paths in shapes.values():
        for i in range(0, len(paths), batch):
            group = paths[i : i + batch]
            targets = [out / f"{Path(path).parent.name}-{Path(path).stem}.npz" for path in group]
            if all(t.exists() for t in targets):
                continue
            x = np.concatenate([to_batch(pad_to(read_image(Path(p)), 64)) for p in group])
            c, f = quantized(codec, x), quantized(floats, x.astype(dtype) / dtype(255))
            found = {"y symbols": c.levels.astype(np.int16), "z symbols": c.z_symbols.astype(np.int16)}
            found |= {"indexes": c.indexes.astype(np.uint8), "means": c.means.astype(np.int16)}
            found["exact pixels"] = codec.synthesis(c.y_hat)
            found["approximate pixels"] = codec.synthesis(c.y_hat, engine="torch")
            found |= {"float indexes": f.indexes.astype(np.uint8)}
            found |= {"float symbols": f.levels.astype(np.int16)}
            for j, target in enumerate(targets):
                np.savez(out / "part.tmp.npz", **{k: v[j] for k, v in found.items()})
                (out / "part.tmp.npz").replace(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--model", default="mean-scale-s-0130-w8a8")
    parser.add_argument("--parent", default="mean-scale-s-0130")
    parser.add_argument("--runs", type=Path, default=Path("runs/determinism"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/determinism.json"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    from rdquant.files.images import list_images

    sets = {i.partition("=")[0]: list_images(Path(i.partition("=")[2])) for i in args.images}
    pictures = [str(p) for files in sets.values() for p in files]
    if args.child:
        child(pictures, args.model, args.parent, args.child)
        return
    from rdquant.engines.products import available
    from rdquant.measure import machine

    base: Path | None = None
    rows: dict[str, dict] = {}
    counts: dict[str, int] = {}
    for name, environment in CONFIGURATIONS.items():
        if "cuda" in str(environment) and not torch.cuda.is_available():
            continue
        if environment.get("RDQUANT_ISA", "portable") not in available():
            continue
        folder = args.runs / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        done = folder / "done"
        if not done.exists():
            command = [sys.executable, __file__, "--child", str(folder), "--model", args.model]
            command += ["--parent", args.parent, "--images", *args.images]
            subprocess.run(command, env={**os.environ, **environment}, check=True)
            done.touch()
        base = base or folder
        row: dict = {k: {"of": 0, "differ": 0, "largest": 0} for k in (*EXACT, *FREE)}
        for file in sorted(folder.glob("*.npz")):
            with np.load(file) as found, np.load(base / file.name) as expected:
                for key in row:
                    a, b = found[key].astype(np.int32), expected[key].astype(np.int32)
                    row[key]["of"] += a.size
                    row[key]["differ"] += int((a != b).sum())
                    row[key]["largest"] = max(row[key]["largest"], int(np.abs(a - b).max()))
        if name == next(iter(CONFIGURATIONS)):  # how far approximate pixels are from exact ones
            gap = {"of": 0, "differ": 0, "more than 1": 0, "largest": 0}
            for file in folder.glob("*.npz"):
                with np.load(file) as found:
                    d = np.abs(found["exact pixels"].astype(int) - found["approximate pixels"])
                    gap["of"] += d.size
                    gap["differ"] += int((d > 0).sum())
                    gap["more than 1"] += int((d > 1).sum())
                    gap["largest"] = max(gap["largest"], int(d.max()))
        counts[name] = len(list(folder.glob("*.npz")))
        rows[name] = row
        print(name, {k: v["differ"] for k, v in row.items()}, flush=True)
    result = {
        "command": "python benchmarks/determinism.py --images " + " ".join(f"{k}={k.upper()}" for k in sets)
        + f" --model {args.model} --parent {args.parent}",
        "machine": machine(), "model": args.model, "parent": args.parent, "pictures": counts,
        "environments": CONFIGURATIONS, "against": next(iter(CONFIGURATIONS)), "differences": rows,
        "approximate against exact": gap,
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
