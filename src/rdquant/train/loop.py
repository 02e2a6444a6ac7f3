"""End-to-end training of a float codec: ``lambda * 255^2 * MSE + bpp``.

One loop for CPU, CUDA and data-parallel runs (``torchrun``). Everything a step does is a function of
``(weights, optimizer state, seed, step)``, so stopping and resuming changes nothing.

A run folder holds ``config.json``, ``state.pt`` (replaced atomically), ``log.jsonl`` (one line per
report) and, at the end, ``model.safetensors`` with the averaged weights.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..codecs import FloatCodec
from ..errors import TrainingError, UsageError
from ..files.atomic import atomic_write
from ..files.float_models import load_float, save_float
from ..files.split import split_files
from ..graph.capture import capture
from ..latents.gains import latent_gains
from .config import TrainConfig
from .data import CropSource
from .muon import Muon
from .quantized import QuantizedRateDistortion
from .rounded import round_weights

GAINS, GAIN_PICTURES = "latent_gains", 8

#: called with (step, record) at every report
Progress = Callable[[int, dict], None]


class RateDistortion(nn.Module):
    """``x: (B, 3, H, W)`` in [0, 1] -> (loss, bpp, MSE in 8-bit units squared), three scalars."""

    def __init__(self, codec: FloatCodec, config: TrainConfig) -> None:
        super().__init__()
        self.codec, self.lambda_, self.mode = codec, config.lambda_, config.latent_mode
        self.step = [config.quantizer_step] if self.mode == "switching" else []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.codec(x, self.mode, *self.step)
        bpp = out.bits() / (x.shape[0] * x.shape[2] * x.shape[3])
        mse = torch.mean((out.x_hat - x) ** 2) * 255**2
        return self.lambda_ * mse + bpp, bpp, mse


def schedule(step: int, config: TrainConfig) -> float:
    """Learning rate of a step, as a fraction of ``config.lr``."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.decay == "step":
        return 1.0 if step < 0.8 * config.steps else 0.1
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    floor = config.lr_final / config.lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def moves(name: str, scope: str) -> bool:
    """Whether a parameter of this name does; see `TrainConfig.scope`."""
    return scope == "all" or (name.startswith("g_s.") if scope == "decoder" else not name.startswith("g_a."))


def check_latent_mode(config: TrainConfig, codec: FloatCodec) -> None:
    """Raise `UsageError` for latents that the codec's prior cannot be trained on."""
    trellis = config.latent_mode == "quantized" and config.quantizer.startswith("tcq")
    wanted = f"quantizer {config.quantizer}" if trellis else f"latent_mode {config.latent_mode}"
    if config.latent_mode in ("switching", "quantized") and not codec.prior.hyper:
        raise UsageError(f"{wanted} needs a hyperprior, and {codec.architecture} has none")
    if (trellis or config.latent_mode == "switching") and (reason := codec.prior.no_trellis):
        raise UsageError(f"{wanted} is not for {codec.architecture}: {reason}")


def make_optimizers(codec: FloatCodec, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Main optimizer(s), then the auxiliary one for the factorized quantiles (always last)."""
    named = dict(codec.named_parameters())
    for name, p in named.items():
        p.requires_grad_(moves(name, config.scope))
    quantiles = [p for n, p in named.items() if n.endswith("quantiles")]
    moving = {n: p for n, p in named.items() if p.requires_grad and not n.endswith("quantiles")}
    kernels = [p for p in moving.values() if p.ndim == 4] if config.optimizer == "muon" else []
    chosen = {id(p) for p in kernels}
    rest = [p for p in moving.values() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(rest, lr=config.lr)]
    if kernels:
        optimizers.append(Muon(kernels, lr=config.lr))
    return [*optimizers, torch.optim.Adam(quantiles, lr=config.aux_lr)]


def initialise(codec: FloatCodec) -> None:
    """Variance-preserving kernels: a transposed convolution of stride s sums k^2/s^2 taps."""
    for module in codec.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            taps: float = module.kernel_size[0] * module.kernel_size[1]
            if isinstance(module, nn.ConvTranspose2d):
                taps /= module.stride[0] * module.stride[1]
            nn.init.normal_(module.weight, std=(module.in_channels * taps) ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def start_from(codec: FloatCodec, source: FloatCodec, path: Path) -> None:
    """Weights of ``source``; of another architecture, those whose names and shapes agree.

    Raises `TrainingError` for other options of the same architecture, or where nothing agrees.
    """
    own, given = codec.state_dict(), source.state_dict()
    fitting = {n: t for n, t in given.items() if n in own and own[n].shape == t.shape}
    same = source.architecture == codec.architecture
    if not fitting or (same and len(fitting) < len(own)):
        raise TrainingError(
            f"cannot start {codec.architecture} {codec.options()} from {path}, "
            f"which is {source.architecture} {source.options()}"
        )
    codec.load_state_dict({**own, **fitting})


class Trainer:
    """A training run in a folder. Construct, then `run`; constructing on an old folder resumes it."""

    def __init__(self, config: TrainConfig, run: Path, data: Path, init: Path | None = None) -> None:
        self.config, self.run_dir = config, run
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device("cuda", self.rank) if torch.cuda.is_available() else torch.device("cpu")
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        run.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        codec = config.build()
        initialise(codec)
        check_latent_mode(config, codec)
        if init is not None:
            start_from(codec, load_float(init), init)
        if config.weight_bits is not None:
            round_weights(codec, config.weight_bits)
        self.codec = codec.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers = make_optimizers(self.codec, config)
        self.ema = {n: p.detach().clone() for n, p in self.codec.named_parameters()}
        self.step: int = 0
        self.seconds: float = 0.0
        #: weights and latent gains that a "quantized" run started from
        self.start: dict[str, Tensor] | None = None
        if (run / "state.pt").exists():
            self._resume()
        else:
            with atomic_write(run / "config.json") as handle:
                handle.write(json.dumps(config.to_json(), indent=1).encode())
        self.source = CropSource(split_files(data, "train"), config.seed, self.rank)
        self.objective = self._objective()
        if config.compile and config.latent_mode != "quantized":
            self.objective = torch.compile(self.objective)  # type: ignore[assignment]
        if self.world > 1:
            self.objective = nn.parallel.DistributedDataParallel(self.objective, find_unused_parameters=True)

    def _objective(self) -> nn.Module:
        if self.config.latent_mode != "quantized":
            return RateDistortion(self.codec, self.config)
        if self.start is None:
            gains = torch.from_numpy(latent_gains(capture(self.codec), self.source.pictures[:GAIN_PICTURES]))
            self.start = {**copy.deepcopy(self.codec.cpu().state_dict()), GAINS: gains}
            self.codec.to(self.device)
        weights = {n: t for n, t in self.start.items() if n != GAINS}
        return QuantizedRateDistortion(self.codec, self.config, self.start[GAINS].cpu().numpy(), weights)

    def _resume(self) -> None:
        old = TrainConfig.load(self.run_dir / "config.json")
        if old != self.config:
            raise TrainingError(
                f"{self.run_dir} was started with other options; use a new folder, or these: {old.to_json()}"
            )
        state = torch.load(self.run_dir / "state.pt", map_location=self.device, weights_only=True)
        self.codec.load_state_dict(state["codec"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.ema, self.step, self.seconds = state["ema"], state["step"], state["seconds"]
        self.start = state.get("start")

    def save(self) -> None:
        """Write ``state.pt``, whole or not at all."""
        if self.rank:
            return
        state = {
            "codec": self.codec.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "ema": self.ema,
            "step": self.step,
            "seconds": self.seconds,
            "start": self.start,
        }
        with atomic_write(self.run_dir / "state.pt") as handle:
            torch.save(state, handle)

    def averaged(self) -> FloatCodec:
        """The codec with averaged weights and exact quantiles, on the CPU."""
        codec = self.config.build()
        codec.load_state_dict({n: p.cpu() for n, p in self.ema.items()})
        codec.entropy_bottleneck.solve_quantiles()
        return codec

    def _one_step(self) -> dict:
        config = self.config
        final = self.step >= config.steps * (1 - config.final_fraction)
        side, count = (config.final_crop, max(1, config.batch // 4)) if final else (config.crop, config.batch)
        torch.manual_seed(((config.seed * 1_000_003 + self.step) * 8191 + self.rank) % 2**31)
        x = self.source.batch(self.step, count, side)
        x = x.to(self.device, memory_format=torch.channels_last)
        factor = schedule(self.step, config)
        for optimizer in self.optimizers[:-1]:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * factor
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            loss, bpp, mse = self.objective(x)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        main = [p for o in self.optimizers[:-1] for g in o.param_groups for p in g["params"]]
        norm = nn.utils.clip_grad_norm_(main, config.clip)
        if self.codec.entropy_bottleneck.quantiles.requires_grad:
            self.codec.entropy_bottleneck.auxiliary_loss().backward()
        if not math.isfinite(norm):
            raise TrainingError(f"gradient is {norm} at step {self.step}; lower lr (now {config.lr})")
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.ema.values()), [p.detach() for p in self.codec.parameters()], 1 - decay
        )
        self.step += 1
        return {"loss": loss.detach(), "bpp": bpp.detach(), "mse": mse.detach(), "lr": config.lr * factor}

    def run(self, report: Progress | None = None, every: int = 100, save_every: int = 1000) -> FloatCodec:
        """Train to the last step (from wherever the folder stands) and write ``model.safetensors``."""
        started, before = time.perf_counter(), self.seconds
        sums: dict[str, Tensor] = {}
        while self.step < self.config.steps:
            record = self._one_step()
            for key in ("loss", "bpp", "mse"):
                sums[key] = sums.get(key, torch.zeros((), device=self.device)) + record[key]
            self.seconds = before + time.perf_counter() - started
            if self.step % every == 0 or self.step == self.config.steps:
                count = (self.step - 1) % every + 1
                means = {k: float(v) / count for k, v in sums.items()}
                means["psnr"] = 10 * math.log10(255**2 / max(means["mse"], 1e-9))
                line = {"step": self.step, "seconds": round(self.seconds, 1), "lr": record["lr"], **means}
                sums.clear()
                if self.rank == 0:
                    with (self.run_dir / "log.jsonl").open("a") as handle:
                        handle.write(json.dumps(line) + "\n")
                    if report:
                        report(self.step, line)
            if self.step % save_every == 0:
                self.save()
        self.save()
        codec = self.averaged()
        if self.rank == 0:
            about = {"lambda": self.config.lambda_, "training": self.config.to_json()}
            save_float(codec, self.run_dir / "model.safetensors", about)
        return codec
