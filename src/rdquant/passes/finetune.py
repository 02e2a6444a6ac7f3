"""Quantization-aware fine-tuning: networks learn to live with their integers, through the twin.

What 8 bits cost is mostly rounded activations, and no choice of ranges or weights brings that back. So the
twin computes with all roundings, gradients pass straight through, and J of true pictures falls, with latents
as the model's own quantizer puts them into files (`rdquant.passes.coded_costs`). Tables stay as they are. A
codec of many rates learns for each in turn; J counts in shares of what it was at the start.

Errors count by their logarithm, as in `rdquant.passes.judges.distortion`: what rounding adds is the same in
every picture, and matters most in those that the codec codes well.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..codecs.protocol import TrainedCodec
from ..coder import ImageCoder
from ..errors import CalibrationError, UsageError
from ..files.atomic import atomic_write
from ..graph.capture import capture
from ..load import carried, coder_of
from ..pixels import pad_to, to_batch
from ..quality import SPREAD, described_at_spread, spread
from .coded_costs import CodedCosts, Costs, StoredLatents
from .config import QuantizeConfig
from .convert import to_integer
from .mixing import Progress
from .prepare import prepare
from .twin import Twin

#: "synthesis": symbols and rates stay, and latents are computed once, so that a minute has more steps; "all":
#: every network
Learn = Literal["synthesis", "all"]
LEARN: tuple[Learn, ...] = get_args(Learn)
#: least mean squared error of a picture
LEAST_ERROR = 0.1
#: what moves of a stage, and how fast, of `FinetuneConfig.lr`
MOVES = {"weight": 1.0, "gamma": 1.0, "bias": 1.0, "beta_log": 0.05, "out_log": 0.1}
SAVE_SECONDS = 60.0
WARM_UP = 20


@dataclass(frozen=True)
class FinetuneConfig:
    """What learns, how long and how fast."""

    learn: Learn = "synthesis"

    minutes: float = 20.0
    """Of gradient steps; calibration comes before and is not counted."""
    lr: float = 0.004
    """Adam's rate for weights, in units of the distance of levels; falls to 0 along a cosine."""
    batch: int = 4
    seed: int = 1

    def __post_init__(self) -> None:
        if self.learn not in LEARN:
            raise UsageError(f"learn must be one of {', '.join(LEARN)}, got {self.learn!r}")
        if not (self.minutes > 0 and self.lr > 0 and self.batch >= 1):
            raise UsageError(f"minutes, lr and batch must be positive, got {self}")


def coders(codec: Codec) -> list[ImageCoder]:
    """At the qualities that pictures are at, in turn; one, of a model of one rate."""
    coder = coder_of(codec)
    return [coder.at(spread(i) / 100) for i in range(SPREAD)] if codec.gains else [coder]


@dataclass(frozen=True)
class Measured:
    """Mean squared errors, and bits per pixel, of pictures by quality: float64."""

    errors: list[np.ndarray]
    rates: list[np.ndarray]


class Finetuning:
    """One run. `run` does the rest of it from wherever its folder, if any, stands."""

    def __init__(
        self,
        trained: TrainedCodec,
        calibration: list[np.ndarray],
        pictures: list[np.ndarray],
        quantize: QuantizeConfig,
        config: FinetuneConfig,
        folder: Path | None = None,
        progress: Progress | None = None,
        parent: Mapping[str, Any] | None = None,
    ) -> None:
        """``calibration``: what ranges are observed on, and in the end whether it helped; ``pictures``: crops
        of one size to learn from (others than the first's are left out); ``parent``: what the trained model's
        file says of it, of which lambda and the quantizer of latents count. Raises `CalibrationError` for
        none, or a folder of another run, and `UsageError` without lambda.
        """
        if not pictures:
            raise CalibrationError("no pictures to learn from")
        captured, told = capture(trained), carried(parent or {})
        usable = [p for p in pictures if p.shape == pictures[0].shape]
        qualities = SPREAD if captured.gains else 1
        if (fewest := min(len(usable), len(calibration))) < qualities:
            raise CalibrationError(f"fine-tuning this model needs {qualities} pictures, got {fewest}")
        #: of each quality
        self.lambdas = [
            about["lambda"]
            for i in range(qualities)
            if (about := described_at_spread(captured, told, i)).get("lambda")
        ]
        if not self.lambdas:
            raise UsageError("fine-tuning needs lambda, and the model does not say its own; pass --lambda")
        self.config, self.folder, self._progress = config, folder, progress
        if folder is not None:
            options = {"quantize": quantize.to_json(), "finetune": dataclasses.asdict(config)}
            self._claim(folder, {**options, "lambdas": self.lambdas})
        store = folder / "mixings.pt" if folder is not None else None
        self.integer, unrounded = to_integer(
            *prepare(captured, calibration, quantize, progress, store), quantize, told
        )
        own = coders(self.integer)
        self.twin = Twin(self.integer, unrounded, trained.entropy_bottleneck)
        down = self.integer.downsampling
        found = [to_batch(pad_to(p, down)) for p in usable]
        pixels, all_learn = torch.from_numpy(np.concatenate(found)), config.learn == "all"
        self.costs: Costs = (
            CodedCosts(self.twin, own, pixels)
            if all_learn
            else StoredLatents(self.twin, own, pixels, partial(self._say, "latents"))
        )
        self.judges = calibration
        #: of the calibration pictures, where it all begins
        self.start = self.measure(self.integer)
        self.names = self.twin.names() if all_learn else self.twin.of_network("synthesis")
        self.groups = [
            {"params": p, "lr": config.lr * rate, "peak": config.lr * rate}
            for attribute, rate in MOVES.items()
            if (p := [q for name in self.names for q in self.twin.parameters_of(name, attribute)])
        ]
        self.optimizer = torch.optim.Adam(self.groups, betas=(0.9, 0.99))
        self.step, self.seconds = 0, 0.0
        if folder is not None and (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt", weights_only=True)
            self.twin.load_state_dict(state["twin"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    @staticmethod
    def _claim(folder: Path, options: dict[str, Any]) -> None:
        """Make the folder this run's. Raises `CalibrationError` if it is another's."""
        folder.mkdir(parents=True, exist_ok=True)
        stored = folder / "config.json"
        if stored.exists() and json.loads(stored.read_text()) != json.loads(json.dumps(options)):
            raise CalibrationError(f"{folder} holds a run with other options; use a new folder")
        with atomic_write(stored) as handle:
            handle.write(json.dumps(options, indent=1).encode())

    def _save(self) -> None:
        if self.folder is None:
            return
        state = {
            "twin": self.twin.state_dict(), "optimizer": self.optimizer.state_dict(),
            "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        with atomic_write(self.folder / "state.pt") as handle:
            torch.save(state, handle)

    def _say(self, what: str, done: int, total: int) -> None:
        if self._progress:
            self._progress(done, total, what)

    def _loss(self) -> Tensor:
        """Of this step, a function of it and the seed."""
        config, quality = self.config, self.step % len(self.lambdas)
        torch.manual_seed(config.seed * 1_000_003 + self.step)  # of the rate's noise
        random = np.random.default_rng((config.seed, self.step))
        bits, errors = self.costs.batch(random, config.batch, quality)
        shape = self.costs.pixels.shape
        bpp = bits / (config.batch * shape[2] * shape[3])
        typical = self.start.errors[quality].mean()
        distortion = float(typical) * torch.log(errors.clamp(min=LEAST_ERROR) / float(typical)).mean()
        share: Tensor = (self.lambdas[quality] * distortion + bpp) / float(self.cost(self.start)[quality])
        return share

    def run(self, progress: Progress | None = None) -> tuple[Codec, dict[str, float]]:
        """The integer codec, and what of the calibration pictures changed: J in percent (the mean over
        qualities), PSNR and rate. If J did not fall, the codec is the one that the run began with.
        """
        twin, whole = self.twin, 60 * self.config.minutes
        twin.set_rounding(twin.names(), True, True)
        twin.leave_compensated()
        twin.requires_grad_(True)
        twin.soft_end = True  # pixels: clipping and no more, whose gradient is right
        saved = before = self.seconds
        started, mean = time.perf_counter(), 0.0
        while self.seconds < whole:
            share = self.seconds / whole
            factor = min(1.0, (self.step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * share))
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            loss = self._loss()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise CalibrationError(f"J became {value} at step {self.step}; lower lr")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.step += 1
            mean += (value - mean) / min(self.step, 100)
            self.seconds = before + time.perf_counter() - started
            if progress:
                progress(round(self.seconds), round(whole), f"step {self.step}  loss {mean:.4f}")
            if self.seconds - saved > SAVE_SECONDS:
                self._save()
                saved = self.seconds
        self._save()
        twin.requires_grad_(False)
        twin.soft_end = False
        twin.take_gains(self.integer)
        moved, learned = twin.export().networks, {twin.stages[name].network for name in self.names}
        networks = {n: (moved if n in learned else self.integer.networks)[n] for n in moved}
        found = dataclasses.replace(self.integer, networks=networks)
        report = {**self.change(self.measure(found)), "steps": self.step, "seconds": round(self.seconds, 1)}
        return found if report["J percent"] < 0 else self.integer, report

    def measure(self, codec: Codec) -> Measured:
        """The calibration pictures, each at one quality: exact integers, and the ideal lengths of what the
        coder's tables say.
        """
        own = coders(codec)
        errors: list[list[float]] = [[] for _ in own]
        rates: list[list[float]] = [[] for _ in own]
        for k, rgb in enumerate(self.judges):
            pixels, bits = own[k % len(own)].forward(rgb)
            error = float(np.mean((pixels.astype(np.float64) - rgb) ** 2))
            errors[k % len(own)].append(max(error, LEAST_ERROR))
            rates[k % len(own)].append(bits / (rgb.shape[0] * rgb.shape[1]))
            self._say("judge", k + 1, len(self.judges))
        return Measured([np.array(e) for e in errors], [np.array(r) for r in rates])

    def cost(self, found: Measured) -> np.ndarray:
        """J by quality, in bits per pixel: ``(qualities,)`` float64."""
        costs = []
        for lambda_, before, errors, rates in zip(
            self.lambdas, self.start.errors, found.errors, found.rates, strict=True
        ):
            distortion = before.mean() * (1 + np.log(errors / before).mean())
            costs.append(lambda_ * distortion + rates.mean())
        return np.array(costs)

    def change(self, found: Measured) -> dict[str, float]:
        """What a report says of it: means over the qualities."""
        pairs = [
            (before, after)
            for name in ("errors", "rates")
            for before, after in zip(getattr(self.start, name), getattr(found, name), strict=True)
        ]
        shares = np.array([np.log(after / before).mean() for before, after in pairs])
        errors, rates = np.split(shares, 2)
        return {
            "J percent": 100 * (float((self.cost(found) / self.cost(self.start)).mean()) - 1),
            "PSNR dB": float(-10 / math.log(10) * errors.mean()),
            "rate percent": 100 * math.expm1(float(rates.mean())),
        }
