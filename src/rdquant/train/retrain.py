"""Retraining on the latents that the file's own quantizer produces, the analysis held still.

Phase "decoder": the synthesis alone; the rate is then constant, so that J asks for the least squared error.
Phase "hyper": the hyper-coder and all of the entropy model too, by J. Phase "all": the analysis as well. (The
first two are Moonlight's; its steps and rates are not published, ours were chosen on the val split.)

Guards, measured on the val split before and after each phase: J, bits, PSNR, and how far the histogram of
levels drifted. A phase that leaves J worse than it found it is undone. The model says what it was retrained
for, and encodes so by default.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..codecs import FloatCodec
from ..coder import ImageCoder
from ..errors import UsageError
from ..files.atomic import atomic_write
from ..files.container import Profile
from ..files.float_models import float_fingerprint, load_float, save_float
from ..files.images import read_image
from ..files.model_file import model_description
from ..files.split import split_files
from ..graph.capture import capture
from ..latents.coding import encoder_coding
from ..latents.gains import GAIN_PICTURES, latent_gains
from ..load import LATENTS
from ..measure.metrics import psnr
from .config import TrainConfig, check_choices, check_weight_bits
from .loop import Trainer, check_latent_mode
from .rounded import round_weights

PHASES = ("decoder", "hyper", "all")
#: coherence and step, by quantizer; chosen on the val split at lambda 0.0130
_DEFAULTS = {"uniform": (None, None), "rdoq": (3.0, None), "tcq4": (2.0, 0.6), "tcq8": (2.0, 0.6)}
_REACH = 32  #: levels beyond it share a bin of the histogram
#: called with (text, done, total)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RetrainConfig:
    """What `retrain` does. Every field is an option of `rdquant retrain`."""

    quantizer: str = "tcq8"
    """uniform, rdoq, tcq4 or tcq8."""
    step: float | None = None
    """Of TCQ, in steps of plain rounding. Default: 0.6."""
    coherence: float | None = None
    """How far errors of the latent count more than the synthesis gain says. Default: 2 for TCQ, 3 for RDOQ.
    (A codec that was not retrained wants more: its synthesis has not seen what a search prefers.)"""
    phases: tuple[str, ...] = ("decoder", "hyper")
    """In order: decoder (the synthesis), hyper (all but the analysis), all."""
    steps: int = 1500
    """Of a phase and round."""
    levels: Literal["online", "stored"] = "online"
    """online: levels are searched anew in each step; stored: as they were when the phase began."""
    rounds: int = 1
    """How often the phases are gone through."""
    lambda_: float | None = None
    """Of J; default: what the model was trained with."""
    weight_bits: int | None = None
    """Round all weights to so many bits on the way: one retraining repairs what both quantizations do."""
    batch: int = 4
    crop: int = 192
    lr: float = 3e-4
    optimizer: Literal["adam", "muon"] = "muon"
    bf16: bool = True
    compile: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.phases or set(self.phases) - set(PHASES):
            raise UsageError(f"phases must be of {', '.join(PHASES)}, got {', '.join(self.phases) or 'none'}")
        check_choices(self)
        check_weight_bits(self.weight_bits)
        for name in ("rounds", "steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        encoder_coding(
            self.quantizer, np.ones(1), 1.0, self.step, self.coherence
        )  # raises what is wrong with them

    @property
    def latents(self) -> dict[str, Any]:
        """What the model's description will say: the quantizer with its settings."""
        found: dict[str, Any] = {"quantizer": self.quantizer}
        coherence, step = _DEFAULTS[self.quantizer]
        if coherence is not None:
            found["coherence"] = coherence if self.coherence is None else self.coherence
        if step is not None:
            found["step"] = step if self.step is None else self.step
        return found

    def stage(self, phase: str, lambda_: float, index: int, codec: FloatCodec) -> TrainConfig:
        """The training run of one phase."""
        # plain rounding has no search that weighs the rate; a moving hyper-coder needs noise there
        noisy = self.quantizer == "uniform" and phase != "decoder"
        return TrainConfig(
            architecture=codec.architecture, N=codec.N, M=codec.M,
            options={k: v for k, v in codec.options().items() if k not in ("N", "M")},
            lambda_=lambda_, steps=self.steps,
            batch=self.batch, crop=self.crop, optimizer=self.optimizer, lr=self.lr,
            latent_mode="mixed" if noisy else "quantized", quantizer=self.quantizer,  # type: ignore[arg-type]
            quantizer_step=self.latents.get("step"), coherence=self.latents.get("coherence"),
            levels=self.levels, scope=phase, seed=self.seed + index,  # type: ignore[arg-type]
            weight_bits=self.weight_bits, bf16=self.bf16, compile=self.compile,
        )  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """A codec on the val split, latents truly quantized; the rate is the coding tables' ideal length."""

    J: float
    bpp: float
    psnr: float
    mse: float
    histogram: np.ndarray
    """Shares of levels ``-32..32``, the ends with what lies beyond."""

    def drift(self, before: Judged) -> float:
        """Share of levels that would have to change for one histogram to become the other."""
        return float(np.abs(self.histogram - before.histogram).sum() / 2)


def judge(
    codec: FloatCodec, gains: np.ndarray, config: RetrainConfig, lambda_: float, pictures: list[np.ndarray]
) -> Judged:
    """Measure ``codec`` on ``pictures: (H, W, 3)`` uint8."""
    settings = config.latents
    coding = encoder_coding(config.quantizer, gains, lambda_, settings.get("step"), settings.get("coherence"))
    coder = ImageCoder(capture(codec), float_fingerprint(codec), Profile.FLOAT, coding)
    return judge_coder(coder, lambda_, pictures)


def judge_coder(coder: ImageCoder, lambda_: float, pictures: list[np.ndarray]) -> Judged:
    """Measure what ``coder`` makes of ``pictures: (H, W, 3)`` uint8."""
    counts = np.zeros(2 * _REACH + 1)
    bpps, errors, psnrs = [], [], []
    for rgb in pictures:
        coded = coder.symbols(rgb)
        decoded, bits = coder.reconstruct(coded, rgb.shape[1], rgb.shape[0])
        bpps.append(bits / (rgb.shape[0] * rgb.shape[1]))
        errors.append(float(np.mean((decoded.astype(np.float64) - rgb) ** 2)))
        psnrs.append(psnr(rgb, decoded))
        levels = coded.levels.reshape(-1).clip(-_REACH, _REACH) + _REACH
        counts += np.bincount(levels, minlength=len(counts))
    bpp, mse = float(np.mean(bpps)), float(np.mean(errors))
    return Judged(lambda_ * mse + bpp, bpp, float(np.mean(psnrs)), mse, counts / counts.sum())


def retrain(
    model: Path,
    data: Path,
    run: Path,
    out: Path,
    config: RetrainConfig,
    progress: Progress | None = None,
    val_pictures: int = 96,
) -> list[dict[str, Any]]:
    """Retrain a float ``model`` on pictures of ``data``, write ``out``; a row for the start and each phase.

    ``run`` keeps each phase's state; called again, it resumes. Raises `UsageError` for a model without a
    hyperprior or lambda, and what reading ``model`` and ``data`` does.
    """
    codec, description = load_float(model), model_description(model)
    lambda_ = config.lambda_ or description.get("lambda")
    if lambda_ is None:
        raise UsageError(f"{model} does not say its lambda; pass --lambda")
    if not codec.prior.hyper:
        raise UsageError(f"retraining needs a hyperprior, and {model} ({codec.architecture}) has none")
    for phase in config.phases:
        check_latent_mode(config.stage(phase, lambda_, 0, codec), codec)
    val = [read_image(path) for path in split_files(data, "val")[:val_pictures]]
    calibration = [read_image(path) for path in split_files(data, "train")[:GAIN_PICTURES]]

    def measured(codec: FloatCodec) -> tuple[np.ndarray, Judged]:
        if config.weight_bits is not None:
            round_weights(codec, config.weight_bits)
        gains = latent_gains(capture(codec), calibration)
        return gains, judge(codec, gains, config, lambda_, val)

    best = model
    gains, start = measured(codec)
    last = start
    rows = [_row("start", start, start, True)]
    stages = [(f"{r + 1}-{phase}", phase) for r in range(config.rounds) for phase in config.phases]
    for i, (name, phase) in enumerate(stages):
        trainer = Trainer(config.stage(phase, lambda_, i, codec), run / name, data, best)

        def report(step: int, line: dict, name: str = name, before: int = i * config.steps) -> None:
            if progress:
                note = f"{name}: {line['bpp']:.3f} bpp {line['psnr']:.2f} dB"
                progress(note, before + step, len(stages) * config.steps)

        trainer.run(report)
        stored = run / name / "model.safetensors"
        fresh = load_float(stored)
        fresh_gains, found = measured(fresh)
        kept = found.J <= last.J
        rows.append(_row(name, found, start, kept))
        if kept:
            best, codec, gains, last = stored, fresh, fresh_gains, found
    about = {
        "lambda": lambda_, "latent_gains": [float(f"{g:.4g}") for g in gains], LATENTS: config.latents,
        "retrained_from": float_fingerprint(load_float(model)).hex(), "retrain": dataclasses.asdict(config),
    }  # fmt: skip
    save_float(codec, out, about)
    with atomic_write(run / "guards.json") as handle:
        handle.write(json.dumps({"config": dataclasses.asdict(config), "rows": rows}, indent=1).encode())
    return rows


def _row(name: str, found: Judged, start: Judged, kept: bool) -> dict[str, Any]:
    numbers = {k: round(getattr(found, k), 5) for k in ("J", "bpp", "psnr", "mse")}
    zeros = float(found.histogram[_REACH])
    return {
        "phase": name,
        **numbers,
        "zeros": round(zeros, 5),
        "drift": round(found.drift(start), 5),
        "kept": kept,
    }
