"""Candidates for the zoo's codec of all rates: the same recipe, data and time for each, one core.

    python benchmarks/candidates.py train NAME --data TRAIN --run RUN [--minutes 40]   # again: goes on
    python benchmarks/candidates.py measure --data TRAIN --run RUN   # time of decoding, of all together

Each has rd-s's hyper-coder, gains, 320 latent channels and at most 12 kMAC a pixel to decode; what differs is
said by its class. A cosine over as many steps as fit in the minutes, found by timing the first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from rd_s import multiplications

from rdquant.codecs import ARCHITECTURES
from rdquant.codecs.layers import GDN, conv, conv1, deconv
from rdquant.codecs.unshuffle8 import Unshuffle8, blocks, down, up
from rdquant.files.float_models import load_float
from rdquant.files.split import split_files
from rdquant.graph.capture import capture
from rdquant.load import coder_of
from rdquant.measure import machine
from rdquant.passes import QuantizeConfig, load_calibration, quantize
from rdquant.priors import Hyperprior, Prior
from rdquant.train import TrainConfig
from rdquant.train.data import centre_crops
from rdquant.train.loop import Trainer
from rdquant.train.rates import validate_at

LOGS = Path("benchmarks/results/training/candidates")
RESULT = Path("benchmarks/results/candidates.json")
TIMED_STEPS = 12
#: the recipe; "components" is a start that transforms of 8x8 blocks alone have
RECIPE: dict[str, Any] = {
    "optimizer": "muon", "lr": 1e-3, "lr_final": 1e-6, "weight_decay": 0.03, "edge_lr": 0.2, "compile": False,
    "validate_every": 1000, "seed": 31,
}  # fmt: skip
ROUNDS, QUALITY = 15, 60
LAMBDAS, JUDGED, CALIBRATION = (0.0035, 0.013, 0.05), 96, 32


class Strided(Unshuffle8):
    """The transforms of Minnen et al. 2018, 5x5 kernels of stride 2 with GDN; the four-part context."""

    architecture = "candidate-strided"
    OPTIONS = ("N", "M")
    LAST = 44

    def __init__(self, N: int = 64, M: int = 320) -> None:
        super().__init__(N, M)
        last = self.LAST
        self.g_a = nn.Sequential(conv(3, N), GDN(N), conv(N, N), GDN(N), conv(N, N), GDN(N), conv(N, M))
        self.g_s = nn.Sequential(
            deconv(M, N), GDN(N, inverse=True), deconv(N, N), GDN(N, inverse=True), deconv(N, last),
            GDN(last, inverse=True), deconv(last, 3),
        )  # fmt: skip


class MeanScale(Strided):
    """The transforms of Minnen et al. 2018 with a hyperprior alone: mbt2018-mean with gains."""

    architecture = "candidate-mean-scale"
    LAST = 64
    prior: Prior = Hyperprior()

    def __init__(self, N: int = 64, M: int = 320) -> None:
        super().__init__(N, M)
        self.h_s.append(conv1(self.hyper, 2 * M))
        self.scales = self.context.scales
        del self.context

    def hyper_synthesis(self, z_hat: Tensor) -> Tensor:
        log_scales, means = self.h_s(z_hat).chunk(2, 1)
        return torch.cat([self.scales(log_scales), means], 1)


class Pyramid(Unshuffle8):
    """Depthwise blocks at 1/4, 1/8 and 1/16 of each side, a 3x3 convolution next to the pixels."""

    architecture = "candidate-pyramid"
    OPTIONS = ("N", "M")

    def __init__(self, N: int = 64, M: int = 320) -> None:
        super().__init__(N, M)
        fine, middle, coarse = 56, 128, 160
        self.g_a = nn.Sequential(
            nn.PixelUnshuffle(4), conv(48, fine, 3, 1), *blocks(fine, 1), down(fine, middle),
            *blocks(middle, 3), down(middle, coarse), *blocks(coarse, 2), conv1(coarse, M),
        )  # fmt: skip
        self.g_s = nn.Sequential(
            conv1(M, coarse), *blocks(coarse, 2), up(coarse, middle), *blocks(middle, 3), up(middle, fine),
            *blocks(fine, 1), up(fine, 3, 4),
        )  # fmt: skip


CANDIDATES: dict[str, type[Unshuffle8]] = {
    "mean-scale": MeanScale, "strided": Strided, "pyramid": Pyramid, "rd-s": Unshuffle8,
}  # fmt: skip
ARCHITECTURES.update({c.architecture: c for c in CANDIDATES.values()})


#: of those that are not of this file
ABOUT = {"rd-s": "Depthwise blocks at 1/8 alone, between shuffled pixels."}


def config_of(name: str, steps: int) -> TrainConfig:
    start = "components" if name == "rd-s" else "random"
    return TrainConfig(
        architecture=CANDIDATES[name].architecture, N=64, M=320, start=start, steps=steps, **RECIPE
    )


@torch.no_grad()
def quieten(codec: nn.Module) -> None:
    """Blocks add nothing at first, as "components" has it."""
    for name, p in codec.named_parameters():
        if name.endswith(("project.weight", "mix_out.weight")) and name.startswith(("g_a", "g_s")):
            p.zero_()


def train(name: str, data: Path, run: Path, minutes: float) -> None:
    folder = run / name
    if (folder / "config.json").exists():
        config = TrainConfig.load(folder / "config.json")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            trial = Trainer(config_of(name, 10_000), Path(scratch), data)
            seconds = []
            for _ in range(TIMED_STEPS):
                before = time.process_time()
                trial._one_step()
                seconds.append(time.process_time() - before)
        config = config_of(name, round(60 * minutes / statistics.median(seconds)))
    trainer = Trainer(config, folder, data)
    if not trainer.step:
        quieten(trainer.codec)
    trainer.run(lambda step, line: print(step, config.steps, round(line["loss"], 4), flush=True), every=250)
    if trainer.step == config.steps:
        LOGS.mkdir(parents=True, exist_ok=True)
        for file in ("log.jsonl", "config.json"):
            shutil.copy(folder / file, LOGS / f"{name}.{file.replace('log.', '')}")


def measure(data: Path, run: Path) -> None:
    """Times alternate, so that the machine's moods meet all."""
    files = split_files(data, "val")
    crops = centre_crops(files, 6, 256).permute(0, 2, 3, 1).numpy()
    rgb = np.concatenate([np.concatenate(crops[i : i + 3], 1) for i in (0, 3)])
    judged = centre_crops(files, JUDGED, 256)
    rows: dict[str, dict[str, Any]] = {}
    coders = {}
    for name in (n for n in CANDIDATES if (run / n / "model.safetensors").exists()):
        codec = load_float(run / name / "model.safetensors")
        about = ABOUT.get(name) or (CANDIDATES[name].__doc__ or "").partition("\n\n")[0]
        steps = TrainConfig.load(run / name / "config.json").steps
        found = [validate_at(codec, judged, lambda_) for lambda_ in LAMBDAS]
        rows[name] = {"about": " ".join(about.split()), "steps": steps, "val": found}
        rows[name]["kmac"] = multiplications(codec)
        integer = quantize(codec, load_calibration(files, CALIBRATION, 256), QuantizeConfig(mixing="none"))
        for kind, model in (("float", capture(codec)), ("W8A8", integer)):
            coder = coder_of(model).at(QUALITY)
            coders[name, kind] = coder, coder.encode(rgb)
            coder.decode(coders[name, kind][1])  # compiles
        print(name, rows[name], flush=True)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in coders}
    for _ in range(ROUNDS):
        for key, (coder, file) in coders.items():
            before = time.perf_counter()
            coder.decode(file)
            times[key].append(1000 * (time.perf_counter() - before))
    for (name, kind), spent in times.items():
        rows[name][f"decode_ms, {kind}"] = round(statistics.median(spent), 1)
    found_all = {
        "command": "python benchmarks/candidates.py measure --data TRAIN --run RUN", "machine": machine(),
        "picture": "768x512", "quality": QUALITY, "val_pictures": JUDGED, "rows": rows,
    }  # fmt: skip
    RESULT.write_text(json.dumps(found_all, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("train")
    one.add_argument("name", choices=CANDIDATES)
    one.add_argument("--minutes", type=float, default=40.0, help="of CPU time")
    times = commands.add_parser("measure")
    for sub in (one, times):
        sub.add_argument("--data", type=Path, required=True)
        sub.add_argument("--run", type=Path, required=True)
    args = parser.parse_args()
    if args.what == "train":
        train(args.name, args.data, args.run, args.minutes)
    else:
        measure(args.data, args.run)


if __name__ == "__main__":
    main()
