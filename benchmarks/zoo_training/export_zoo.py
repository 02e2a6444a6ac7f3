"""Compact files of a run: what is needed to go on (float16, no momenta), and the averaged model.

python export_zoo.py RUN OUT
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor

from rdquant.files.atomic import atomic_write


def compact(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """float16, but what has few elements and must be exact."""
    keep = ("quantiles", "log_gain")
    return {n: t if n.endswith(keep) else t.half() for n, t in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    state = torch.load(args.run / "state.pt", map_location="cpu", weights_only=True)
    state["codec"], state["ema"] = compact(state["codec"]), compact(state["ema"])
    state.pop("optimizers", None)
    with atomic_write(args.out / "state.pt") as handle:
        torch.save(state, handle)
    shutil.copyfile(args.run / "model.safetensors", args.out / "model.safetensors")
    shutil.copyfile(args.run / "log.jsonl", args.out / "log.jsonl")


if __name__ == "__main__":
    main()
