"""Start a run from another's weights, with the latent channels that a candidate has now.

python grow_zoo.py OLD/state.pt runs/new --candidate c --old-M 128
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from allrates.codecs import CANDIDATES, build
from allrates.train.grow import grow_latent
from allrates.train.loop import Config

from rdquant.files.atomic import atomic_write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--candidate", choices=sorted(CANDIDATES), required=True)
    parser.add_argument("--old-M", type=int, required=True)
    args = parser.parse_args()
    state = torch.load(args.state, map_location="cpu", weights_only=True)
    architecture, widths = CANDIDATES[args.candidate]
    grown = {}
    for key in ("codec", "ema"):
        source, target = build(architecture, {**widths, "M": args.old_M}), build(architecture, widths)
        source.load_state_dict(state[key], strict=key == "codec")
        grow_latent(source, target)
        grown[key] = target
    state["codec"] = grown["codec"].state_dict()
    state["ema"] = {n: p.detach() for n, p in grown["ema"].named_parameters() if p.requires_grad}
    state["config"] = dataclasses.asdict(
        dataclasses.replace(Config(**state["config"]), architecture=architecture, widths=widths)
    )
    state.pop("optimizers", None)  # momenta of other shapes
    state.setdefault("branch_step", 0)
    args.run.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.run / "state.pt") as handle:
        torch.save(state, handle)


if __name__ == "__main__":
    main()
