"""RDO-PTQ: an integer codec's scales, roundings and biases, moved by the codec's own J.

The judge is ``J = lambda * D + R_y + R_z`` of calibration pictures, latents truly rounded (Shi, Lu and
Ma, arXiv 2211.02854). If wanted, first a grid of activation scales, per stage in network order with the
later stages in float; then gradients through the twin (`rdquant.weights.twin`). Where we depart from the
paper: weights choose their rounding too, everything is integers, and by default gradients follow J's
expansion around the float codec (`Mismatch`) instead of J.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..codecs import FloatCodec
from ..errors import CalibrationError, UsageError
from ..files.atomic import atomic_write
from ..integer import Z_FRACTION_BITS, IntegerCodec
from ..latents.gains import latent_gains
from ..pixels import pad_to, to_tensor
from .bias import BIAS_CORRECTIONS, BiasCorrection, correct_biases
from .calibration import Calibration, observe
from .config import QuantizeConfig
from .convert import to_integer
from .suffix import SuffixCost
from .twin import Twin, round_ste

#: Which parameters move at a time: a stage's (later stages float), a network's, or all.
Strategy = Literal["layer", "block", "joint"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
#: called with (steps done, steps in all, note)
Progress = Callable[[int, int, str], None]

#: what gradients may move -> the twin's parameters, and their learning rate relative to the run's
GROUPS: dict[str, dict[str, float]] = {
    "scales": {"out_log": 0.4, "hyper_log": 0.4},
    "rounding": {"weight": 1.0, "gamma": 1.0},
    "bias": {"bias": 1.0, "beta_log": 0.05},
}
SAVE_EVERY = 250
#: activation scales that the grid tries, as factors
SCALE_GRID = (0.7, 0.8, 0.9, 1.1, 1.25)


@dataclass(frozen=True)
class RdoConfig:
    """How the integers are searched."""

    lambda_: float
    """Of the float parent: weight of ``255^2 * MSE`` against bpp."""
    strategy: Strategy = "joint"
    grid: bool = False
    """Search each activation's scale on a grid before any gradient."""
    steps: int = 800
    """Gradient steps in all, shared by the stages or networks where they go one by one."""
    objective: Literal["reconstruction", "J"] = "reconstruction"
    """What gradients lower: J itself, or its expansion around the float codec (`Mismatch`)."""
    learn: tuple[str, ...] = ("rounding", "bias")
    """What gradients move; nothing of it: grid and bias correction only."""
    bias_correction: BiasCorrection = "none"
    rate: Literal["noise", "rounded"] = "noise"
    """How the rate's gradient sees latents; distortion, reports and results always see them rounded."""
    lr: float = 0.006
    """Adam's rate for weights, in units of a weight's step."""
    scale_share: float = 0.4
    """Share of the steps that goes to scales, before any weight is rounded."""
    batch: int = 4
    crop: int = 192
    bf16: bool = True
    compile: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        if self.lambda_ <= 0:
            raise UsageError(f"lambda must be positive, got {self.lambda_}")
        if self.strategy not in STRATEGIES:
            raise UsageError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if self.bias_correction not in BIAS_CORRECTIONS:
            raise UsageError(
                f"bias_correction must be one of {', '.join(BIAS_CORRECTIONS)}, got {self.bias_correction!r}"
            )
        if self.objective not in ("reconstruction", "J"):
            raise UsageError(f"objective must be reconstruction or J, got {self.objective!r}")
        if self.rate not in ("noise", "rounded"):
            raise UsageError(f"rate must be noise or rounded, got {self.rate!r}")
        if unknown := set(self.learn) - set(GROUPS):
            raise UsageError(f"learn takes {', '.join(GROUPS)}, got {', '.join(sorted(unknown))}")
        if self.steps < 0 or self.batch < 1:
            raise UsageError(f"steps must be 0 or more and batch 1 or more, got {self.steps}, {self.batch}")
        if self.crop < 64 or self.crop % 64:
            raise UsageError(f"crop must be a positive multiple of 64, got {self.crop}")
        if self.lr <= 0:
            raise UsageError(f"lr must be positive, got {self.lr}")

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "learn": list(self.learn)}


@dataclass
class Trace:
    """What happened: entries of ``step``, ``unit``, ``seconds``, and either ``J``, ``bpp`` and ``mse`` of the
    probe, or the ``loss`` that the last steps had.
    """

    entries: list[dict[str, Any]]

    def add(self, **values: Any) -> None:
        self.entries.append(values)


class Crops:
    """Random crops of calibration pictures, a pure function of (seed, step)."""

    def __init__(self, pictures: list[np.ndarray], side: int, seed: int) -> None:
        self.pictures = [pad_to(p, side) if min(p.shape[:2]) < side else p for p in pictures]
        self.side, self.seed = side, seed

    def batch(self, step: int, count: int) -> Tensor:
        """``(count, 3, side, side)`` float32 of 0..255, half of them mirrored."""
        random = np.random.default_rng((self.seed, step))
        crops = []
        for _ in range(count):
            p = self.pictures[random.integers(len(self.pictures))]
            top, left = (random.integers(n - self.side + 1) for n in p.shape[:2])
            crop = p[top : top + self.side, left : left + self.side]
            crops.append(np.ascontiguousarray(crop[:, ::-1] if random.random() < 0.5 else crop))
        x = torch.cat([to_tensor(c) for c in crops]).float()
        return x.contiguous(memory_format=torch.channels_last)


def probe(pictures: list[np.ndarray], side: int = 256, most: int = 10) -> Tensor:
    """A fixed batch of centre crops on which the grid compares scales. ``(B, 3, side, side)``, 0..255."""
    crops = []
    for i in range(min(most, len(pictures))):
        p = pictures[i * len(pictures) // min(most, len(pictures))]
        p = pad_to(p, side) if min(p.shape[:2]) < side else p
        top, left = (p.shape[0] - side) // 2, (p.shape[1] - side) // 2
        crops.append(to_tensor(p[top : top + side, left : left + side]))
    return torch.cat(crops).float().contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def grid_search(
    twin: Twin, names: list[str], x: Tensor, lambda_: float, report: Callable[[str], None] | None = None
) -> dict[str, float]:
    """Factor on the scales of each stage's output, in network order, by J of ``x``; later stages in float.

    Only among these ``names`` (and ``hyper_input`` with the first of h_a). Weights should be rounded to
    nearest: other roundings are made for the scales they came with. Leaves every stage quantized.
    """
    order = twin.names()
    twin.set_rounding(order, False, False)
    suffix = SuffixCost(twin, x, lambda_)
    found: dict[str, float] = {}
    for name in order:
        suffix.advance(name)
        twin.set_rounding([name], True, True)
        logs = {name: twin.stage(name).out_log} if name in names and name not in twin.ends() else {}
        if name in names and twin.hyper_log is not None and name == twin.order["h_a"][0]:
            logs = {"hyper_input": twin.hyper_log, **logs}
        for key, log in logs.items():
            base = log.clone()
            costs = {1.0: suffix.cost()}
            for factor in SCALE_GRID:
                log.copy_(base + math.log(factor))
                costs[factor] = suffix.cost()
            found[key] = min(costs, key=lambda f: costs[f])
            log.copy_(base + math.log(found[key]))
        if report:
            report(name)
    return found


def units(twin: Twin, strategy: Strategy, scope: tuple[str, ...]) -> list[list[str]]:
    """The stages whose parameters move together, in network order."""
    parts = {part: names for part, names in twin.order.items() if part in scope}
    if strategy == "block":
        return list(parts.values())
    names = [name for part in parts.values() for name in part]
    return [names] if strategy == "joint" else [[name] for name in names]


def _parameters(twin: Twin, unit: list[str], config: RdoConfig, what: str) -> list[dict[str, Any]]:
    """Adam's groups: what may move in these stages. Output scales of a network's last stage may not."""
    ends = set(twin.ends())
    groups = []
    for group in config.learn:
        if (group == "scales") != (what == "scales"):
            continue
        for attribute, rate in GROUPS[group].items():
            found = [
                getattr(twin.stage(name), attribute)
                for name in unit
                if hasattr(twin.stage(name), attribute) and not (attribute == "out_log" and name in ends)
            ]
            if attribute == "hyper_log" and twin.hyper_log is not None and twin.order["h_a"][0] in unit:
                found = [twin.hyper_log]
            if found:
                groups.append({"params": found, "lr": config.lr * rate, "peak": config.lr * rate})
    return groups


@dataclass(frozen=True)
class Targets:
    """What the float codec computes of a batch; pixels 0..255, latents in units of y."""

    y: Tensor
    z: Tensor | None
    z_hat: Tensor | None
    scales: Tensor | None
    means: Tensor | None
    y_hat: Tensor
    pixels: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, codec: FloatCodec, x: Tensor) -> Targets:
        """``x: (B, 3, H, W)`` of 0..255."""
        y = codec.g_a(x / 255)
        centre = codec.entropy_bottleneck.medians()
        z = z_hat = scales = None
        if codec.has_hyperprior:
            z = codec.h_a(codec.hyper_input(y))
            z_hat = torch.round(z - centre) + centre
            scales, means = codec.gaussian_parameters(z_hat)
            means = torch.zeros_like(y) if means is None else means
        else:
            means = centre.expand_as(y)
        y_hat = torch.round(y - means) + means
        return cls(y, z, z_hat, scales, means, y_hat, (codec.g_s(y_hat) * 255).clamp(0, 255))


class Mismatch(torch.nn.Module):
    """J to second order around the float codec, network by network; see `rdquant.weights.rdo.Judge`."""

    gains: Tensor

    def __init__(self, twin: Twin, lambda_: float, gains: Tensor) -> None:
        super().__init__()
        self.twin, self.lambda_ = twin, lambda_
        self.register_buffer("gains", gains.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor, t: tuple[Tensor | None, ...]) -> Tensor:
        twin, unit = self.twin, self.twin.unit
        y, z, z_hat, scales, means, y_hat, pixels = t
        count = x.shape[0] * x.shape[2] * x.shape[3]
        assert y is not None and y_hat is not None and pixels is not None
        out = twin.run("g_s", round_ste(y_hat * unit))
        loss = self.lambda_ * torch.mean((out - pixels) ** 2)
        error = twin.run("g_a", x) / unit - y
        loss = loss + self.lambda_ / 3 * (self.gains * error**2).sum() / count
        if z is None or z_hat is None or scales is None:
            return loss
        z_unit = 2.0**Z_FRACTION_BITS
        error = twin.run("h_a", twin.hyper_input(round_ste(y * unit))) / z_unit - z
        loss = loss + 0.5 * (error**2).sum() / count
        out = twin.run("h_s", round_ste(z_hat * z_unit)) / unit
        # bits of a Gaussian coded with a slightly wrong mean or scale, widened by the unit bin
        spread = scales.clamp(min=0.11) ** 2 + 1 / 12
        if twin.integer.has_means and means is not None:
            out, shift = out.chunk(2, 1)
            loss = loss + ((shift - means) ** 2 / spread).sum() / (2 * math.log(2) * count)
        error = out.clamp(min=0.11) - scales.clamp(min=0.11)
        return loss + (error**2 / spread).sum() / (math.log(2) * count)


class Exact(torch.nn.Module):
    """J itself, latents truly rounded for the distortion."""

    def __init__(self, twin: Twin, lambda_: float, noise: bool) -> None:
        super().__init__()
        self.twin, self.lambda_, self.noise = twin, lambda_, noise

    def forward(self, x: Tensor) -> Tensor:
        return self.twin(x, self.noise).cost(self.lambda_, x.shape[0] * x.shape[2] * x.shape[3])


class Judge:
    """The loss of a batch.

    "J": the codec's cost. Its gradient mixes what quantization did with all that training left undone, so on
    few pictures it learns the pictures. "reconstruction": around a trained codec J rises with the squares
    of what quantization changes, and those need no ground truth: lambda times the error of the decoded
    picture, of the latent times the synthesis gain, and the bits that wrong means and scales cost. Each
    network meets the float codec's own inputs.
    """

    def __init__(self, twin: Twin, codec: FloatCodec, rdo: RdoConfig, gains: Tensor) -> None:
        self.codec, self.rdo = codec, rdo
        self.reconstruct = rdo.objective == "reconstruction"
        twin.stage(twin.order["g_s"][-1]).soft_end = self.reconstruct
        self.student: Any = (
            Mismatch(twin, rdo.lambda_, gains)
            if self.reconstruct
            else Exact(twin, rdo.lambda_, rdo.rate == "noise")
        )

    def __call__(self, x: Tensor) -> Tensor:
        if not self.reconstruct:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.rdo.bf16):
                return self.student(x)
        targets = Targets.of(self.codec, x)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.rdo.bf16):
            return self.student(x, tuple(vars(targets).values()))


class RdoCalibration:
    """One calibration run. `run` does the rest of it from wherever its folder, if any, stands."""

    def __init__(
        self,
        codec: FloatCodec,
        pictures: list[np.ndarray],
        quantize: QuantizeConfig,
        rdo: RdoConfig,
        folder: Path | None = None,
        seen: Calibration | None = None,
    ) -> None:
        """``pictures``: ``(H, W, 3)`` uint8. ``folder``: where the state is kept to resume from.
        ``seen``: of the same pictures, if they were observed before.

        Raises `CalibrationError` for unusable pictures or a folder of another run.
        """
        self.quantize, self.rdo, self.folder = quantize, rdo, folder
        self.trace = Trace([])
        self.done, self.seconds, self.prepared = 0, 0.0, False
        self.codec, self.seen = codec, seen or observe(codec, pictures)
        self.stretch: dict[str, Any] = {}  # by layer, a factor or one per channel
        self.twin = self._convert(quantize)
        self.crops = Crops(pictures, rdo.crop, rdo.seed)
        self.probe = probe(pictures)
        self.gains = torch.from_numpy(latent_gains(codec, pictures[:8])).float()
        self.optimizer: torch.optim.Adam | None = None
        self._saved: dict[str, Any] | None = None
        if folder is not None:
            self._open(folder)

    def _convert(self, quantize: QuantizeConfig) -> Twin:
        integer, unrounded = to_integer(self.codec, self.seen, quantize, stretch=self.stretch)
        return Twin(integer, unrounded, self.codec)

    def _search_scales(self, names: list[str], say: Callable[[str], None]) -> None:
        """The grid, on weights rounded to nearest; then the conversion again, with its factors."""
        nearest = self._convert(dataclasses.replace(self.quantize, rounding="nearest"))
        self.stretch = grid_search(nearest, names, self.probe, self.rdo.lambda_, lambda n: say(f"grid {n}"))
        self.twin = self._convert(self.quantize)

    def _open(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        options = {"quantize": self.quantize.to_json(), "rdo": self.rdo.to_json()}
        stored = folder / "config.json"
        if stored.exists() and json.loads(stored.read_text()) != options:
            raise CalibrationError(f"{folder} holds a calibration with other options; use a new folder")
        with atomic_write(stored) as handle:
            handle.write(json.dumps(options, indent=1).encode())
        if (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt", weights_only=True)
            self.stretch = state["stretch"]
            self.twin = self._convert(self.quantize)
            self.twin.load_state_dict(state["twin"])
            self.done, self.seconds, self.prepared = state["done"], state["seconds"], True
            self.trace, self._saved = Trace(state["trace"]), state["optimizer"]

    def _save(self) -> None:
        if self.folder is None:
            return
        state = {
            "twin": self.twin.state_dict(), "done": self.done, "seconds": self.seconds,
            "trace": self.trace.entries, "stretch": self.stretch,
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
        }  # fmt: skip
        with atomic_write(self.folder / "state.pt") as handle:
            torch.save(state, handle)

    @torch.no_grad()
    def probe_cost(self) -> dict[str, float]:
        """J, bpp and MSE of the fixed batch, as the twin now stands (float32, whole crops)."""
        x = self.probe
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        costs = self.twin(x)
        bpp = float(costs.bits_y + costs.bits_z) / pixels
        return {"J": float(costs.cost(self.rdo.lambda_, pixels)), "bpp": bpp, "mse": float(costs.mse)}

    def run(self, progress: Progress | None = None) -> IntegerCodec:
        """Search, and export. Raises `CalibrationError` if J stops being finite."""
        started, before = time.perf_counter(), self.seconds
        twin, rdo = self.twin, self.rdo

        def clock() -> float:
            self.seconds = before + time.perf_counter() - started
            return round(self.seconds, 1)

        def say(note: str) -> None:
            if progress:
                progress(self.done, max(1, rdo.steps), note)

        if not self.prepared:
            twin.set_rounding(twin.names(), False, False)
            self.trace.add(step=0, unit="float", seconds=clock(), **self.probe_cost())
            twin.set_rounding(twin.names(), True, True)
            self.trace.add(step=0, unit="start", seconds=clock(), **self.probe_cost())
            in_scope = [n for n in twin.names() if self.quantize.in_scope(n)]
            if rdo.grid:
                self._search_scales(in_scope, say)
                twin = self.twin
                self.trace.add(step=0, unit="grid", seconds=clock(), **self.probe_cost())
            if rdo.bias_correction != "none":
                correct_biases(twin, in_scope, self.probe, rdo.bias_correction)
                self.trace.add(step=0, unit="bias", seconds=clock(), **self.probe_cost())
            self.prepared = True
        if rdo.steps and rdo.learn:
            for phase in self._schedule():
                self._descend(*phase, clock, say)
                if phase[3] == "scales" and self.done == self._scale_steps():
                    self._adopt_scales()
                    self.trace.add(step=self.done, unit="scales", seconds=clock(), **self.probe_cost())
                    self._save()
        self.twin.set_rounding(self.twin.names(), True, True)
        self.trace.add(step=self.done, unit="end", seconds=clock(), **self.probe_cost())
        self._save()
        return self.twin.export()

    def _scale_steps(self) -> int:
        rdo = self.rdo
        if "scales" not in rdo.learn:
            return 0
        return rdo.steps if rdo.learn == ("scales",) else round(rdo.steps * rdo.scale_share)

    def _schedule(self) -> Iterator[tuple[int, int, list[str], str]]:
        """``(first step, last step, stages, what moves)``: all units' scales, then all units' weights."""
        found = units(self.twin, self.rdo.strategy, self.quantize.scope)
        middle = self._scale_steps()
        for start, end, what in ((0, middle, "scales"), (middle, self.rdo.steps, "weights")):
            for i, unit in enumerate(found):
                first, last = (start + (end - start) * k // len(found) for k in (i, i + 1))
                if self.done < last:
                    yield first, last, unit, what

    def _adopt_scales(self) -> None:
        """Convert again with the scales that were learned: weights are rounded for them, and only now."""
        twin = self.twin
        logs = {name: twin.stage(name).out_log for name in twin.names() if name not in twin.ends()}
        if twin.hyper_log is not None:
            logs["hyper_input"] = twin.hyper_log
        self.stretch = {
            key: torch.as_tensor(self.stretch.get(key, 1.0)) * torch.exp(log.detach()).double()
            for key, log in logs.items()
        }
        self.twin = self._convert(self.quantize)

    def _descend(
        self,
        first: int,
        last: int,
        unit: list[str],
        what: str,
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        """Gradient steps ``first..last`` on one unit; stages behind it are float meanwhile, and while scales
        move, so are all weights: their roundings are made for scales that stay.
        """
        twin, rdo = self.twin, self.rdo
        names = twin.names()
        after = names.index(unit[-1]) + 1
        twin.set_rounding(names[:after], what == "weights", True)
        twin.set_rounding(names[after:], False, False)
        twin.requires_grad_(True)
        twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(_parameters(twin, unit, rdo, what), betas=(0.9, 0.99))
        if self._saved is not None and first < self.done < last:
            self.optimizer.load_state_dict(self._saved)
        self._saved = None
        objective: Any = Judge(twin, self.codec, rdo, self.gains)
        if rdo.compile:
            objective.student = torch.compile(objective.student)
        sums = 0.0
        while self.done < last:
            t = (self.done - first) / max(1, last - first)
            factor = min(1.0, (self.done - first + 1) / 20) * 0.5 * (1 + math.cos(math.pi * t))
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            x = self.crops.batch(self.done, rdo.batch)
            torch.manual_seed(rdo.seed * 1_000_003 + self.done)  # the noise, the same after a resume
            loss = objective(x)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise CalibrationError(f"J became {value} at step {self.done}; lower lr (now {rdo.lr})")
            twin.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.done += 1
            sums += value
            if self.done % 50 == 0 or self.done == last:
                count = (self.done - 1) % 50 + 1
                mean, sums = sums / count, 0.0
                where = (
                    what if rdo.strategy == "joint" else unit[0] if len(unit) == 1 else unit[0].split(".")[0]
                )
                self.trace.add(step=self.done, unit=where, seconds=clock(), loss=mean)
                say(f"{where}  {rdo.objective} {mean:.4f}")
            if self.done % SAVE_EVERY == 0 and self.done < last:  # what follows the last step is not done yet
                self._save()
        twin.requires_grad_(False)
        twin.stage(twin.order["g_s"][-1]).soft_end = False
        self.optimizer = None


def calibrate(
    codec: FloatCodec,
    pictures: list[np.ndarray],
    quantize: QuantizeConfig,
    rdo: RdoConfig,
    description: dict[str, Any] | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[IntegerCodec, Trace]:
    """RDO-PTQ of a float codec: the integer codec and what J did on the way.

    ``pictures``: ``(H, W, 3)`` uint8. Raises `CalibrationError` and `BadModel`.
    """
    run = RdoCalibration(codec, pictures, quantize, rdo, folder)
    integer = run.run(progress)
    about = {"quantize": quantize.to_json(), "rdo": rdo.to_json(), **(description or {})}
    return dataclasses.replace(integer, description=about), run.trace
