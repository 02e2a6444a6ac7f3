"""Training one codec for all rates: each picture of a batch at its own, random lambda.

The loss is the mean over the batch of ``(lambda * 255^2 * MSE + bpp) / J(lambda)``; J is what a trained codec
typically reaches, so every rate pulls with the same force. A run folder holds

* ``state.pt``: everything needed to go on, replaced atomically every few minutes and on SIGTERM,
* ``model.safetensors``: averaged weights, float16, and what builds the codec,
* ``log.jsonl``: a line per report and per validation, with wall and CPU seconds.

The rate is constant after a short warm-up, so a run can always be continued; `decay` is a short branch that
ends at rate zero, for export, and leaves the trunk as it is.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from rdquant.errors import TrainingError
from rdquant.files.atomic import atomic_write
from rdquant.files.split import split_files

from ..codecs import AllRatesCodec, build
from ..codecs.base import initialise
from ..codecs.gain import LEVELS, lambda_of, quality_of
from .crops import CropSource, centre_crops
from .muon import Muon

#: J of a trained codec is about proportional to this power of lambda (measured, see `weight_of`)
J_POWER, J_REFERENCE = 0.55, 0.013
VALIDATION_LAMBDAS = (0.0035, 0.013, 0.05)
#: mean loss of a report, in that of the best one, that only a run that is lost has
EXPLODED = 4.0


@dataclass(frozen=True)
class Config:
    """Options of a run. All but the architecture may change when it goes on."""

    architecture: str
    widths: dict[str, Any]
    batch: int = 8
    crop: int = 128
    lr: float = 2e-3
    warmup: int = 200
    #: steps from full rate to none; 0: constant rate
    decay_steps: int = 0
    ema: float = 0.999
    clip: float = 1.0
    #: of kernels, a step by lr times this: Muon's updates have one size whatever a kernel's, so norms grew
    weight_decay: float = 0.03
    bf16: bool = True
    compile: bool = True
    seed: int = 1
    #: pictures of the val split that a validation uses, and their centre crop
    val_pictures: int = 32
    val_crop: int = 256


def weight_of(lambda_: Tensor) -> Tensor:
    """One at lambda 0.013, otherwise the inverse of a typical J."""
    return (lambda_ / J_REFERENCE) ** -J_POWER


def random_qualities(count: int, step: int, seed: int, device: torch.device) -> Tensor:
    """``(count,)`` qualities, one from each of ``count`` equal parts of the range, in random order."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**31)
    strata = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return (strata * ((LEVELS - 1) / count)).to(device)


class RateDistortion(nn.Module):
    """``x, q`` -> the loss and, for the log, J, bpp and MSE in 8-bit units, means over the batch."""

    def __init__(self, codec: AllRatesCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        coded = self.codec(x, q)
        bpp = (coded.y_bits + coded.z_bits) / (x.shape[2] * x.shape[3])
        mse = torch.mean((coded.x_hat - x) ** 2, (1, 2, 3)) * 255**2
        lambda_ = lambda_of(q)
        J = lambda_ * mse + bpp
        return (J * weight_of(lambda_)).mean(), J.detach().mean(), bpp.detach().mean(), mse.detach().mean()


def is_kernel(name: str, p: Tensor) -> bool:
    """Muon's share: convolution kernels that mix channels."""
    return p.ndim == 4 and p.shape[1] > 1


class Trainer:
    """A run in a folder. Constructing it on an old folder goes on where that stopped."""

    def __init__(self, config: Config, run: Path, data: Path, start: Path | None = None) -> None:
        self.config, self.run_dir = config, run
        run.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(config.seed)
        codec = build(config.architecture, config.widths)
        initialise(codec)
        self.codec = codec.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        named = {n: p for n, p in self.codec.named_parameters() if p.requires_grad}
        kernels = [p for n, p in named.items() if is_kernel(n, p)]
        chosen = {id(p) for p in kernels}
        rest = [p for p in named.values() if id(p) not in chosen]
        self.moving, self.kernels = list(named.values()), kernels
        self.optimizers = [torch.optim.Adam(rest, lr=config.lr, fused=True), Muon(kernels, lr=config.lr)]
        self.ema = {n: p.detach().clone() for n, p in named.items()}
        self.step, self.branch_step = 0, 0
        self.wall, self.cpu = 0.0, 0.0
        self.stopping = False
        state = run / "state.pt" if (run / "state.pt").exists() else start
        if state is not None:
            self._load(state, branch=state == start)
        self.source = CropSource(split_files(data, "train"), config.seed, self.device)
        self.val_files = split_files(data, "val")
        self.val: Tensor | None = None
        objective = RateDistortion(self.codec)
        self.objective = torch.compile(objective) if config.compile else objective
        self._log(
            {"config": dataclasses.asdict(config), "step": self.step, "threads": torch.get_num_threads()}
        )

    # state ------------------------------------------------------------------------------------------------

    def _load(self, path: Path, branch: bool) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.codec.load_state_dict(state["codec"])
        # a compact state has no momenta
        for optimizer, saved in zip(self.optimizers, state.get("optimizers", ()), strict=False):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        self.ema = {n: t.float() for n, t in state["ema"].items()}
        self.step, self.wall, self.cpu = state["step"], state["wall"], state["cpu"]
        self.branch_step = 0 if branch else state["branch_step"]

    def _state(self) -> dict[str, Any]:
        return {
            "codec": self.codec.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "ema": self.ema,
            "step": self.step,
            "branch_step": self.branch_step,
            "wall": self.wall,
            "cpu": self.cpu,
            "config": dataclasses.asdict(self.config),
        }

    def save(self) -> None:
        """Write the state and the averaged model, each whole or not at all."""
        self.codec.entropy_bottleneck.solve_quantiles()
        with atomic_write(self.run_dir / "state.pt") as handle:
            torch.save(self._state(), handle)
        with self.averaged(), atomic_write(self.run_dir / "model.safetensors") as handle:
            handle.write(model_bytes(self.codec, self.config, self.step))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the codec has the averaged weights and exact medians."""
        named = dict(self.codec.named_parameters())
        kept = {n: named[n].detach().clone() for n in (*self.ema, "entropy_bottleneck.quantiles")}
        with torch.no_grad():
            for name, value in self.ema.items():
                named[name].copy_(value)
            self.codec.entropy_bottleneck.solve_quantiles()
            try:
                yield
            finally:
                for name, value in kept.items():
                    named[name].copy_(value)

    def _log(self, line: dict[str, Any]) -> None:
        with (self.run_dir / "log.jsonl").open("a") as handle:
            handle.write(json.dumps(line) + "\n")

    # training ---------------------------------------------------------------------------------------------

    def rate(self) -> float:
        """Learning rate of the coming step."""
        config = self.config
        factor = min(1.0, (self.step + 1) / config.warmup)
        if config.decay_steps:
            factor *= max(0.0, 1 - self.branch_step / config.decay_steps)
        return config.lr * factor

    def one_step(self) -> tuple[Tensor, ...]:
        config = self.config
        torch.manual_seed((config.seed * 1_000_003 + self.step) % 2**31)
        x = self.source.batch(self.step, config.batch, config.crop)
        q = random_qualities(config.batch, self.step, config.seed, self.device)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            loss, J, bpp, mse = self.objective(x, q)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.moving, config.clip)
        if math.isfinite(norm):
            with torch.no_grad():
                torch._foreach_mul_(self.kernels, 1 - self.rate() * config.weight_decay)
            for optimizer in self.optimizers:
                optimizer.step()
        elif self.step > 1000:
            self._log({"step": self.step, "skipped": float(norm)})
        else:
            raise TrainingError(f"gradient is {norm} at step {self.step}; lower lr (now {config.lr})")
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.moving], 1 - decay)
        self.step += 1
        self.branch_step += 1
        if self.step % 250 == 0:
            self.codec.entropy_bottleneck.solve_quantiles()
        return loss.detach(), J, bpp, mse, norm

    @torch.no_grad()
    def validate(self, pictures: int | None = None) -> list[dict[str, float]]:
        """Of the averaged weights, float32, truly rounded: J, bpp and mean PSNR at three lambdas."""
        config = self.config
        if self.val is None:
            count = len(self.val_files) if pictures is None else pictures
            self.val = centre_crops(self.val_files, count, config.val_crop, self.device)
        with self.averaged():
            return [validate_at(self.codec, self.val, lambda_) for lambda_ in VALIDATION_LAMBDAS]

    def run(
        self, minutes: float = math.inf, cpu_seconds: float = math.inf, steps: float = math.inf,
        report_every: int = 100, save_minutes: float = 3, validate_minutes: float = 4,
    ) -> None:  # fmt: skip
        """Train until a budget (of the whole run's counters) or a decay is used up, or SIGTERM comes."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        total = torch.zeros(5, device=self.device)
        compiled = False  # the first step compiles, and is left out of the clocks
        count, saved, validated = 0, time.monotonic(), time.monotonic()
        least = math.inf  # mean loss of a report
        while not self.stopping and self.wall < 60 * minutes and self.cpu < cpu_seconds and self.step < steps:
            if self.config.decay_steps and self.branch_step >= self.config.decay_steps:
                break
            wall, cpu = time.monotonic(), time.process_time()
            total += torch.stack([torch.as_tensor(v) for v in self.one_step()])
            count += 1
            if compiled:
                self.wall += time.monotonic() - wall
                self.cpu += time.process_time() - cpu
            compiled = True
            if self.step % report_every == 0:
                names = ("loss", "J", "bpp", "mse", "norm")
                self._log(
                    {
                        **self._clock(),
                        **{k: round(v / count, 4) for k, v in zip(names, total.tolist(), strict=True)},
                    }
                )
                loss = float(total[0]) / count
                total.zero_()
                count = 0
                if not loss < EXPLODED * least:  # within a few steps, unannounced: seen once in 50,000
                    self._roll_back()
                    continue
                least = min(least, loss)
                if time.monotonic() - saved > 60 * save_minutes:
                    self.save()
                    saved = time.monotonic()
            if time.monotonic() - validated > 60 * validate_minutes:
                self._log({**self._clock(), "val": self.validate(self.config.val_pictures)})
                validated = time.monotonic()
        if count == 0 or float(total[0]) / count < EXPLODED * least:
            self.save()
        if not self.stopping:
            self._log({**self._clock(), "val": self.validate(self.config.val_pictures), "end": True})

    def _roll_back(self) -> None:
        """To the last saved state, and from there with other crops. Raises `TrainingError` without one."""
        state = self.run_dir / "state.pt"
        if not state.exists():
            raise TrainingError(f"the loss exploded before step {self.step}; lower lr (now {self.config.lr})")
        self._log({"step": self.step, "rolled_back": True})
        self._load(state, branch=False)
        self.config = dataclasses.replace(self.config, seed=self.config.seed + 1)
        self.source.seed = self.config.seed

    def _clock(self) -> dict[str, float]:
        return {"step": self.step, "wall": round(self.wall, 1), "cpu": round(self.cpu, 1), "lr": self.rate()}

    def _stop(self, *_: object) -> None:
        self.stopping = True


def model_bytes(codec: AllRatesCodec, config: Config, step: int) -> bytes:
    """A safetensors file of float16 weights (quantiles and gains float32) and what builds the codec."""
    keep = ("quantiles", "log_gain")
    tensors = {
        n: (t.float() if n.endswith(keep) else t.half()).contiguous().cpu()
        for n, t in codec.state_dict().items()
    }
    meta = {"architecture": config.architecture, "widths": json.dumps(config.widths), "step": str(step)}
    return safetensors_bytes(tensors, meta)


def load_model(path: Path) -> AllRatesCodec:
    """The codec of a file that `model_bytes` made, float32."""
    with safe_open(path, "pt") as handle:
        meta = handle.metadata()
        tensors = {name: handle.get_tensor(name).float() for name in handle.keys()}  # noqa: SIM118
    codec = build(meta["architecture"], json.loads(meta["widths"]))
    codec.load_state_dict(tensors)
    return codec.eval()


@torch.no_grad()
def validate_at(codec: AllRatesCodec, pictures: Tensor, lambda_: float, chunk: int = 4) -> dict[str, float]:
    """``pictures: (P, 3, H, W)`` uint8 -> means over them, everything truly rounded, x_hat clamped."""
    sums = torch.zeros(3, dtype=torch.float64)
    for part in pictures.split(chunk):
        x = part.contiguous(memory_format=torch.channels_last).float() / 255
        q = torch.full((len(x),), quality_of(lambda_), device=x.device)
        coded = codec(x, q, training=False)
        bpp = (coded.y_bits + coded.z_bits) / (x.shape[2] * x.shape[3])
        error = (torch.round(coded.x_hat.clamp(0, 1) * 255) - part.float()) ** 2
        mse = error.mean((1, 2, 3))
        psnr = 10 * torch.log10(255**2 / mse.clamp(min=1e-3))
        sums += torch.stack([v.double().sum() for v in (bpp, mse, psnr)]).cpu()
    bpp, mse, psnr = (sums / len(pictures)).tolist()
    names = ("lambda", "J", "bpp", "mse", "psnr")
    return dict(
        zip(names, (round(v, 4) for v in (lambda_, lambda_ * mse + bpp, bpp, mse, psnr)), strict=True)
    )
