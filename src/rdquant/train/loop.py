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
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..codecs import FloatCodec
from ..errors import TrainingError, UsageError
from ..files.atomic import atomic_write
from ..files.float_models import load_float, save_float
from ..files.split import split_files
from ..graph.capture import capture
from ..hardware import layout, multiplies_bf16
from ..latents.gains import GAIN_PICTURES, latent_gains
from ..load import LATENTS
from ..quality import LAMBDAS
from .components import start_from_components
from .config import TrainConfig
from .data import CropSource, centre_crops
from .muon import Muon
from .quantized import QuantizedRateDistortion
from .rates import random_levels, validate_at, weighted
from .rounded import round_weights

GAINS = "latent_gains"
#: mean loss of a report, in that of the best one, that only a run that is lost has
EXPLODED = 4.0

#: called with (step, record) at every report
Progress = Callable[[int, dict], None]


class RateDistortion(nn.Module):
    """``x: (B, 3, H, W)`` in [0, 1] -> (loss, bpp, MSE in 8-bit units squared), three scalars.

    ``level: (B,)``: of the gains, for codecs of many rates.
    """

    def __init__(self, codec: FloatCodec, config: TrainConfig) -> None:
        super().__init__()
        self.codec, self.config, self.mode = codec, config, config.latent_mode
        self.step = [config.quantizer_step] if self.mode == "switching" else []

    def forward(self, x: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        self.codec.at(level)
        out = self.codec(x, self.mode, *self.step)
        bpp = out.bits() / (x.shape[2] * x.shape[3])
        mse = torch.mean((out.x_hat - x) ** 2, (1, 2, 3)) * 255**2
        return weighted(self.codec, self.config, level, bpp, mse), bpp.mean(), mse.mean()


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


def make_optimizers(
    codec: FloatCodec, config: TrainConfig, edges: Sequence[Tensor] = ()
) -> list[torch.optim.Optimizer]:
    """Main optimizer(s), then the auxiliary one for the factorized quantiles (always last)."""
    named = dict(codec.named_parameters())
    for name, p in named.items():
        p.requires_grad_(moves(name, config.scope))
    quantiles = [p for n, p in named.items() if n.endswith("quantiles")]
    moving = {n: p for n, p in named.items() if p.requires_grad and not n.endswith("quantiles")}
    muon = config.optimizer == "muon"
    kernels = [
        p for p in moving.values() if muon and p.ndim == 4 and p.shape[1] > 1
    ]  # none that is depthwise
    slow = {id(p) for p in edges}
    chosen = {id(p) for p in kernels}
    rest = [p for p in moving.values() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(rest, lr=config.lr)]
    if kernels:
        groups = [
            {"params": [p for p in kernels if (id(p) in slow) == edge], "factor": factor}
            for edge, factor in ((False, 1.0), (True, config.edge_lr))
        ]
        optimizers.append(Muon([g for g in groups if g["params"]], config.lr, config.weight_decay))
    return [*optimizers, torch.optim.Adam(quantiles, lr=config.aux_lr)]


def initialise(codec: FloatCodec) -> None:
    """Variance-preserving kernels: a transposed convolution of stride s sums k^2/s^2 taps."""
    for module in codec.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            taps: float = module.kernel_size[0] * module.kernel_size[1]
            if isinstance(module, nn.ConvTranspose2d):
                taps /= module.stride[0] * module.stride[1]
            nn.init.normal_(module.weight, std=(module.in_channels // module.groups * taps) ** -0.5)
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
        self.bf16 = config.bf16 and multiplies_bf16(self.device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        run.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        codec = config.build()
        initialise(codec)
        check_latent_mode(config, codec)
        self.source = CropSource(split_files(data, "train"), config.seed, self.rank)
        edges: list[Tensor] = []
        if config.start == "components":
            edges = start_from_components(codec, self.source)
        if init is not None:
            start_from(codec, load_float(init), init)
        if config.weight_bits is not None:
            round_weights(codec, config.weight_bits)
        self.codec = codec.to(self.device).to(memory_format=layout(self.device))  # type: ignore[call-overload]
        self.optimizers = make_optimizers(self.codec, config, edges)
        self.ema = {n: p.detach().clone() for n, p in self.codec.named_parameters()}
        self.step: int = 0
        self.seconds: float = 0.0
        self.cpu_seconds: float = 0.0
        #: how often the run went back to its last saved state
        self.rollbacks: int = 0
        self._stopping = False
        self._val: Tensor | None = None
        self._val_files = split_files(data, "val") if config.validate_every else []
        #: weights and latent gains that a "quantized" run started from
        self.start: dict[str, Tensor] | None = None
        if (run / "state.pt").exists():
            self._resume()
        else:
            with atomic_write(run / "config.json") as handle:
                handle.write(json.dumps(config.to_json(), indent=1).encode())
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
        self.cpu_seconds, self.rollbacks, self.start = (
            state["cpu_seconds"],
            state["rollbacks"],
            state["start"],
        )

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
            "cpu_seconds": self.cpu_seconds,
            "rollbacks": self.rollbacks,
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
        seed = config.seed + self.rollbacks
        torch.manual_seed(((seed * 1_000_003 + self.step) * 8191 + self.rank) % 2**31)
        self.source.seed = seed
        x = self.source.batch(self.step, count, side)
        x = x.to(self.device, memory_format=layout(self.device))
        factor = schedule(self.step, config)
        for optimizer in self.optimizers[:-1]:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * factor * group.get("factor", 1.0)
        levels = (
            () if self.codec.levels is None else (random_levels(count, self.codec.levels).to(self.device),)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss, bpp, mse = self.objective(x, *levels)
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

    @torch.no_grad()
    def validate(self) -> list[dict[str, float]]:
        """Of averaged weights, everything truly rounded: J, PSNR and *estimated* bpp at each of the config's
        ``validation_lambdas``, means over centre crops of the val split.
        """
        if self._val is None:
            self._val = centre_crops(self._val_files, self.config.val_pictures, self.config.final_crop)
        codec = self.averaged().eval()
        one = codec.levels is None
        lambdas = (self.config.lambda_,) if one else self.config.validation_lambdas
        return [validate_at(codec, self._val, lambda_) for lambda_ in lambdas]

    def _log(self, line: dict[str, Any]) -> None:
        if self.rank == 0:
            with (self.run_dir / "log.jsonl").open("a") as handle:
                handle.write(json.dumps(line) + "\n")

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _clock(self) -> dict[str, float]:
        return {"step": self.step, "seconds": round(self.seconds, 1), "cpu": round(self.cpu_seconds, 1)}

    def run(self, report: Progress | None = None, every: int = 100, save_every: int = 1000) -> FloatCodec:
        """Train to the last step (from wherever the folder stands) and write ``model.safetensors``.

        Saves on SIGTERM, and returns what there is. A run whose loss explodes goes back to what it saved
        last, and on from there with other crops; raises `TrainingError` if it has saved nothing.
        """
        with stopping_on(signal.SIGTERM, self._stop):
            self._steps(report, every, save_every)
        self.save()
        codec = self.averaged()
        if self.rank == 0:
            save_float(codec, self.run_dir / "model.safetensors", self._about(codec))
        return codec

    def _about(self, codec: FloatCodec) -> dict[str, Any]:
        config = self.config
        found: dict[str, Any] = {"training": config.to_json()}
        found |= {"lambda": config.lambda_} if codec.lambdas is None else {LAMBDAS: list(codec.lambdas)}
        if config.latent_mode == "quantized":  # what files are to be coded with
            gains = latent_gains(capture(codec), self.source.pictures[:GAIN_PICTURES])
            settings = {"step": config.quantizer_step, "coherence": config.coherence}
            settings = {name: value for name, value in settings.items() if value is not None}
            found[GAINS] = [float(f"{g:.4g}") for g in gains]
            found[LATENTS] = {"quantizer": config.quantizer, **settings}
        return found

    def _steps(self, report: Progress | None, every: int, save_every: int) -> None:
        started, before = time.perf_counter(), self.seconds
        cpu, cpu_before = time.process_time(), self.cpu_seconds
        sums: dict[str, Tensor] = {}
        count, least, sound = 0, math.inf, self.step
        while self.step < self.config.steps and not self._stopping:
            record = self._one_step()
            count += 1
            for key in ("loss", "bpp", "mse"):
                sums[key] = sums.get(key, torch.zeros((), device=self.device)) + record[key]
            self.seconds = before + time.perf_counter() - started
            self.cpu_seconds = cpu_before + time.process_time() - cpu
            if self.step % every == 0 or self.step == self.config.steps:
                means = {k: float(v) / count for k, v in sums.items()}
                sums.clear()
                count = 0
                if not means["loss"] < EXPLODED * least:
                    self._roll_back()
                    sound = self.step
                    continue
                least = min(least, means["loss"])
                means["psnr"] = 10 * math.log10(255**2 / max(means["mse"], 1e-9))
                line = {**self._clock(), "lr": record["lr"], **means}
                self._log(line)
                if report and self.rank == 0:
                    report(self.step, line)
                if self.step - sound >= save_every:
                    self.save()
                    sound = self.step
                if self.config.validate_every and self.step % self.config.validate_every < every:
                    self._log({**self._clock(), "val": self.validate()})

    def _roll_back(self) -> None:
        if not (self.run_dir / "state.pt").exists():
            raise TrainingError(f"the loss exploded before step {self.step}; lower lr (now {self.config.lr})")
        self._log({"step": self.step, "rolled_back": True})
        rollbacks = self.rollbacks
        self._resume()
        self.rollbacks = rollbacks + 1


@contextmanager
def stopping_on(number: signal.Signals, handler: Callable[..., None]) -> Iterator[None]:
    """Have a signal handled inside, where the main thread asks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, old)
