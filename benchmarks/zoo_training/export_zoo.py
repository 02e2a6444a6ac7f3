"""Compact files of a run: what is needed to go on (float16, no momenta), and a float model for rdquant.

python export_zoo.py RUN OUT

OUT/state.pt goes on with ``train_zoo.py --start``; OUT/model.safetensors, of candidate c alone, is of the
averaged weights: ``rdquant quantize``, ``rdquant evaluate -m model.safetensors@60``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdquant.codecs import ARCHITECTURES, build
from rdquant.codecs.unshuffle8 import LAMBDAS as ENDS
from rdquant.files.atomic import atomic_write
from rdquant.files.float_models import save_float
from rdquant.quality import LAMBDAS


def compact(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """float16, but what has few elements and must be exact."""
    keep = ("quantiles", "log_gain")
    return {n: t if n.endswith(keep) else t.half() for n, t in tensors.items()}


def export(state: dict[str, Any], path: Path) -> None:
    """The averaged weights under the package's names."""
    config = state["config"]
    codec = build(config["architecture"], **config["widths"])
    tensors = {**state["codec"], **state["ema"]}
    named = {
        f"context.{n.removeprefix('prior.')}" if n.startswith("prior.") else n: t.float()
        for n, t in tensors.items()
    }
    codec.load_state_dict({n: t for n, t in named.items() if n != "context.pattern"})
    codec.entropy_bottleneck.solve_quantiles()
    about = {key: state[key] for key in ("step", "cpu")}
    save_float(codec, path, {LAMBDAS: list(ENDS), "training": {**config, **about}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    state = torch.load(args.run / "state.pt", map_location="cpu", weights_only=True)
    if state["config"]["architecture"] in ARCHITECTURES:
        export(state, args.out / "model.safetensors")
    state["codec"], state["ema"] = compact(state["codec"]), compact(state["ema"])
    state.pop("optimizers", None)
    with atomic_write(args.out / "state.pt") as handle:
        torch.save(state, handle)
    if (args.run / "log.jsonl").exists() and args.run.resolve() != args.out.resolve():
        shutil.copyfile(args.run / "log.jsonl", args.out / "log.jsonl")


if __name__ == "__main__":
    main()
