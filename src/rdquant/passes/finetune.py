"""Quantization-aware fine-tuning of the synthesis, through the twin, on the latents that files hold.

What quantization costs at 8 bits is mostly rounded activations of the synthesis, and no choice of ranges or
roundings brings that back. So its weights learn to live with it: the twin computes with all roundings,
gradients pass straight through, and the loss is the error of true pictures. y_hat is what the integer codec
itself puts into files, with the quantizer that its parent was trained for, computed once; analysis, hyper
networks and tables stay as they are, and so do symbols and rates. A codec of many rates learns for each in
turn; errors count in shares of what they were at the start, so that each rate gains as many dB.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..codecs.protocol import TrainedCodec
from ..errors import CalibrationError, UsageError
from ..files.atomic import atomic_write
from ..graph.capture import capture
from ..latents.coding import LatentCoding
from ..latents.parts import quantized
from ..load import carried, latent_coding
from ..pixels import pad_to, to_batch
from ..quality import SPREAD, at_spread, described_at_spread
from .config import QuantizeConfig
from .convert import to_integer
from .mixing import Progress
from .prepare import prepare
from .twin import Twin

#: what moves of a stage, and how fast, of `FinetuneConfig.lr`
MOVES = {"weight": 1.0, "gamma": 1.0, "bias": 1.0, "beta_log": 0.05}
SAVE_SECONDS = 60.0
WARM_UP = 20


@dataclass(frozen=True)
class FinetuneConfig:
    """How long and how fast."""

    minutes: float = 20.0
    """Of gradient steps; what comes before (calibration, latents) is not counted."""
    lr: float = 0.004
    """Adam's rate for weights, in units of the distance of levels; falls to 0 along a cosine."""
    batch: int = 4
    seed: int = 1

    def __post_init__(self) -> None:
        if not (self.minutes > 0 and self.lr > 0 and self.batch >= 1):
            raise UsageError(f"minutes, lr and batch must be positive, got {self}")


def _spread(codec: Codec) -> list[Codec]:
    """The codec at the qualities that pictures are at, in turn."""
    return [at_spread(codec, i) for i in range(SPREAD)] if codec.gains else [codec]


def _codings(codec: Codec, count: int) -> list[LatentCoding]:
    """The quantizer that the model's description names, at the same qualities."""
    told = (described_at_spread(codec, codec.description, i) for i in range(count))
    return [latent_coding(None, codec, about, codec.architecture) for about in told]


@dataclass(frozen=True)
class Latents:
    """Crops of one size and what the integer codec makes of them."""

    pixels: Tensor  #: (K, 3, side, side) uint8
    y_hat: Tensor  #: (K, M, side/s, side/s) int16; of a codec of many rates, at `quality.at_spread`
    qualities: int  #: that crops are at, in turn

    @classmethod
    def of(cls, codec: Codec, pictures: list[np.ndarray], say: Callable[[int, int], None]) -> Latents:
        """``pictures``: ``(H, W, 3)`` uint8; smaller ones than the first are left out."""
        shape = pictures[0].shape
        pictures = [p for p in pictures if p.shape == shape]
        pixels = [to_batch(pad_to(p, codec.downsampling)) for p in pictures]
        codecs = _spread(codec)
        codings = _codings(codec, len(codecs))
        if len(pixels) < len(codecs):
            raise CalibrationError(f"a model of many rates needs {len(codecs)} pictures, got {len(pixels)}")
        found = []
        for i, x in enumerate(pixels):
            own = i % len(codecs)
            found.append(quantized(codecs[own], x, codings[own]).y_hat.astype(np.int16))
            say(i + 1, len(pixels))
        return cls(
            torch.from_numpy(np.concatenate(pixels)), torch.from_numpy(np.concatenate(found)), len(codecs)
        )

    def batch(self, indexes: Tensor) -> tuple[Tensor, Tensor]:
        """Float32."""
        return self.y_hat[indexes].float(), self.pixels[indexes].float()


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
        of one size to learn from; ``parent``: what the trained model's file says of it, of which lambda and
        the quantizer of latents count. Raises `CalibrationError` for none, or a folder of another run.
        """
        if not pictures:
            raise CalibrationError("no pictures to learn from")
        self.config, self.folder = config, folder
        if folder is not None:
            self._claim(folder, {"quantize": quantize.to_json(), "finetune": dataclasses.asdict(config)})
        store = folder / "mixings.pt" if folder is not None else None
        self.integer, unrounded = to_integer(
            *prepare(capture(trained), calibration, quantize, progress, store), quantize,
            carried(parent or {}),
        )  # fmt: skip
        self.twin = Twin(self.integer, unrounded, trained.entropy_bottleneck)

        def say(done: int, total: int) -> None:
            if progress:
                progress(done, total, "latents")

        self.latents = Latents.of(self.integer, pictures, say)
        self.judges = Latents.of(self.integer, calibration, say)
        errors = self.errors(self.integer)
        #: what an error counts, by quality
        self.weights = errors.mean() / errors
        names = self.twin.of_network("synthesis")
        self.groups = [
            {"params": p, "lr": config.lr * rate, "peak": config.lr * rate}
            for attribute, rate in MOVES.items()
            if (p := [q for name in names for q in self.twin.parameters_of(name, attribute)])
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

    def _indexes(self) -> Tensor:
        """The crops of this step, a function of it and the seed; of one quality, steps going through all."""
        random = np.random.default_rng((self.config.seed, self.step))
        many = self.latents.qualities
        found = random.integers(len(self.latents.pixels) // many, size=self.config.batch)
        return torch.from_numpy(found * many + self.step % many)

    def run(self, progress: Progress | None = None) -> tuple[Codec, dict[str, float]]:
        """The integer codec, and the error of the calibration pictures before and after. If it rose, the
        codec is the one that the run began with.
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
            y_hat, x = self.latents.batch(self._indexes())
            quality = self.step % self.latents.qualities
            twin.take_gains(at_spread(self.integer, quality))
            loss = self.weights[quality] * torch.mean((twin.run("synthesis", y_hat) - x) ** 2)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise CalibrationError(f"the error became {value} at step {self.step}; lower lr")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.step += 1
            mean += (value - mean) / min(self.step, 100)
            self.seconds = before + time.perf_counter() - started
            if progress:
                progress(round(self.seconds), round(whole), f"step {self.step}  MSE {mean:.2f}")
            if self.seconds - saved > SAVE_SECONDS:
                self._save()
                saved = self.seconds
        self._save()
        twin.requires_grad_(False)
        twin.soft_end = False
        twin.take_gains(self.integer)
        moved = {"synthesis": twin.export().networks["synthesis"]}
        found = dataclasses.replace(self.integer, networks={**self.integer.networks, **moved})
        before_after = (float((self.weights * self.errors(c)).mean()) for c in (self.integer, found))
        report = dict(zip(("MSE before", "MSE after"), before_after, strict=True))
        report.update(steps=self.step, seconds=round(self.seconds, 1))
        return found if report["MSE after"] < report["MSE before"] else self.integer, report

    def errors(self, codec: Codec) -> np.ndarray:
        """Mean squared error of the calibration pictures, in exact integers: ``(qualities,)`` float64."""
        judges, codecs = self.judges, _spread(codec)
        found: list[list[float]] = [[] for _ in codecs]
        for k in range(len(judges.pixels)):
            out = codecs[k % len(codecs)].synthesis(judges.y_hat[k : k + 1].numpy()).astype(np.float64)
            error = float(np.mean((out - judges.pixels[k : k + 1].numpy()) ** 2))
            found[k % len(codecs)].append(error)
        return np.array([np.mean(errors) for errors in found])
