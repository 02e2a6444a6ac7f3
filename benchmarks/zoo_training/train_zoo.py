"""Train a candidate of the zoo for all rates; run again with the same folder to go on.

    python train_zoo.py --candidate c --data DATA --run runs/c --minutes 40
    python train_zoo.py --decay 3000 --start runs/c/state.pt --data DATA --run runs/c-decayed

On a GPU: the same command with ``--set batch=64``; pictures, crops and validation stay on it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from allrates.codecs import CANDIDATES
from allrates.train.loop import Config, Trainer


def parse(value: str) -> Any:
    """An option's text as bool, int or float."""
    if value in ("true", "false"):
        return value == "true"
    return float(value) if "." in value or "e" in value else int(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidate", choices=sorted(CANDIDATES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="state of another run to branch from")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="options of Config")
    parser.add_argument("--decay", type=int, default=0, metavar="STEPS", help="let the rate fall to zero")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of training, all starts together")
    parser.add_argument("--cpu-seconds", type=float, default=math.inf)
    parser.add_argument("--steps", type=float, default=math.inf)
    parser.add_argument("--save-minutes", type=float, default=3)
    parser.add_argument("--validate-minutes", type=float, default=4)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    old = args.run / "state.pt" if (args.run / "state.pt").exists() else args.start
    if args.candidate:
        architecture, widths = CANDIDATES[args.candidate]
        config = Config(architecture, widths)
    elif old is None:
        parser.error("--candidate or --start is needed for a fresh run")
    else:
        config = Config(**torch.load(old, map_location="cpu", weights_only=True)["config"])
    options = dict(item.split("=", 1) for item in args.set)
    changes = {name: parse(value) for name, value in options.items()}
    config = dataclasses.replace(config, **changes, decay_steps=args.decay)
    trainer = Trainer(config, args.run, args.data, args.start)
    trainer.run(
        args.minutes, args.cpu_seconds, args.steps,
        save_minutes=args.save_minutes, validate_minutes=args.validate_minutes,
    )  # fmt: skip


if __name__ == "__main__":
    main()
