"""RDO-PTQ: an integer codec's scales, roundings and biases, moved by the codec's own J.

The judge is ``J = lambda * D + R_y + R_z`` of calibration pictures, latents truly rounded (Shi, Lu and
Ma, arXiv 2211.02854). First, per stage in network order and with the later stages in float, a grid of
activation scales; then gradients through the twin (`rdquant.weights.twin`), which all of a network's
parameters can follow together. Where we depart from the paper: it moves scales only and stops at the
grid's kind of search; we let weights choose their rounding by J as well, and everything is integers.
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
from ..integer import IntegerCodec
from ..pixels import pad_to, to_tensor
from .bias import BIAS_CORRECTIONS, BiasCorrection, correct_biases
from .calibration import Calibration, observe
from .config import QuantizeConfig
from .convert import to_integer
from .suffix import SuffixCost
from .twin import Twin

#: Which parameters move at a time: a stage's (later stages float), a network's, or all.
Strategy = Literal["layer", "block", "joint"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
#: called with (steps done, steps in all, note)
Progress = Callable[[int, int, str], None]

#: what gradients may move -> the twin's parameters, and their learning rate relative to the run's
GROUPS: dict[str, dict[str, float]] = {
    "scales": {"out_log": 0.1, "unit_log": 0.05, "hyper_log": 0.1},
    "rounding": {"weight": 1.0, "gamma": 1.0},
    "bias": {"bias": 1.0, "beta_log": 0.05},
}
SAVE_EVERY = 250
#: activation scales that the grid tries, as factors
SCALE_GRID = (0.7, 0.8, 0.9, 1.1, 1.25)


@dataclass(frozen=True)
class RdoConfig:
    """How the integers are searched. Round-trips through JSON."""

    lambda_: float
    """Of the float parent: weight of ``255^2 * MSE`` against bpp."""
    strategy: Strategy = "joint"
    grid: bool = True
    """Search each activation's scale on a grid before any gradient."""
    steps: int = 1200
    """Gradient steps in all, shared by the stages or networks where they go one by one."""
    learn: tuple[str, ...] = ("scales", "rounding", "bias")
    """What gradients move; nothing of it: grid and bias correction only."""
    bias_correction: BiasCorrection = "none"
    lr: float = 0.03
    """Adam's rate for weights, in units of a weight's step."""
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
    """What J did: one entry per report, ``{"step", "unit", "seconds", "J", "bpp", "mse"}``."""

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
) -> None:
    """Scale of each stage's output, in network order, by J of ``x`` with later stages in float.

    Leaves every stage quantized.
    """
    order = twin.names()
    twin.set_rounding(order, False, False)
    suffix = SuffixCost(twin, x, lambda_)
    for name in order:
        suffix.advance(name)
        twin.set_rounding([name], True, True)
        logs = [twin.stage(name).out_log] if name in names and name not in twin.ends() else []
        if name in names and twin.hyper_log is not None and name == twin.order["h_a"][0]:
            logs.insert(0, twin.hyper_log)
        for log in logs:
            base = log.clone()
            best, kept = suffix.cost(), base
            for factor in SCALE_GRID:
                log.copy_(base + math.log(factor))
                value = suffix.cost()
                if value < best:
                    best, kept = value, log.clone()
            log.copy_(kept)
        if report:
            report(name)


def units(twin: Twin, strategy: Strategy, scope: tuple[str, ...]) -> list[list[str]]:
    """The stages whose parameters move together, in network order."""
    parts = {part: names for part, names in twin.order.items() if part in scope}
    if strategy == "block":
        return list(parts.values())
    names = [name for part in parts.values() for name in part]
    return [names] if strategy == "joint" else [[name] for name in names]


def _parameters(twin: Twin, unit: list[str], config: RdoConfig) -> list[dict[str, Any]]:
    """Adam's groups: what may move in these stages. Output scales of a network's last stage may not."""
    ends = set(twin.ends())
    groups = []
    for group in config.learn:
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
        self.quantize, self.rdo, self.folder, self.pictures = quantize, rdo, folder, pictures
        self.trace = Trace([])
        self.done, self.seconds, self.prepared = 0, 0.0, False
        integer, unrounded = to_integer(codec, seen or observe(codec, pictures), quantize)
        self.twin = Twin(integer, unrounded, codec)
        self.crops = Crops(pictures, rdo.crop, rdo.seed)
        self.probe = probe(pictures)
        self.optimizer: torch.optim.Adam | None = None
        self._saved: dict[str, Any] | None = None
        if folder is not None:
            self._open(folder)

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
            self.twin.load_state_dict(state["twin"])
            self.done, self.seconds, self.prepared = state["done"], state["seconds"], True
            self.trace, self._saved = Trace(state["trace"]), state["optimizer"]

    def _save(self) -> None:
        if self.folder is None:
            return
        state = {
            "twin": self.twin.state_dict(), "done": self.done, "seconds": self.seconds,
            "trace": self.trace.entries,
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
                grid_search(twin, in_scope, self.probe, rdo.lambda_, lambda n: say(f"grid {n}"))
                self.trace.add(step=0, unit="grid", seconds=clock(), **self.probe_cost())
            if rdo.bias_correction != "none":
                correct_biases(twin, in_scope, self.probe, rdo.bias_correction)
                self.trace.add(step=0, unit="bias", seconds=clock(), **self.probe_cost())
            self.prepared = True
        if rdo.steps and rdo.learn:
            for first, last, unit in self._schedule():
                self._descend(first, last, unit, clock, say)
        twin.set_rounding(twin.names(), True, True)
        self.trace.add(step=self.done, unit="end", seconds=clock(), **self.probe_cost())
        self._save()
        return twin.export()

    def _schedule(self) -> Iterator[tuple[int, int, list[str]]]:
        found = units(self.twin, self.rdo.strategy, self.quantize.scope)
        for i, unit in enumerate(found):
            first, last = (self.rdo.steps * k // len(found) for k in (i, i + 1))
            if self.done < last:
                yield first, last, unit

    def _descend(
        self,
        first: int,
        last: int,
        unit: list[str],
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        """Gradient steps ``first..last`` on one unit; stages behind it are float meanwhile."""
        twin, rdo = self.twin, self.rdo
        names = twin.names()
        after = names.index(unit[-1]) + 1
        twin.set_rounding(names[:after], True, True)
        twin.set_rounding(names[after:], False, False)
        twin.requires_grad_(True)
        twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(_parameters(twin, unit, rdo), betas=(0.9, 0.99))
        if self._saved is not None and first < self.done:
            self.optimizer.load_state_dict(self._saved)
        self._saved = None
        objective = torch.compile(twin) if rdo.compile else twin
        pixels = rdo.batch * rdo.crop**2
        sums = np.zeros(3)
        while self.done < last:
            t = (self.done - first) / max(1, last - first)
            factor = min(1.0, (self.done - first + 1) / 20) * 0.5 * (1 + math.cos(math.pi * t))
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            x = self.crops.batch(self.done, rdo.batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=rdo.bf16):
                costs = objective(x)
            loss = costs.cost(rdo.lambda_, pixels)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise CalibrationError(f"J became {value} at step {self.done}; lower lr (now {rdo.lr})")
            twin.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.done += 1
            bits = float((costs.bits_y + costs.bits_z).detach())
            sums += [value, bits / pixels, float(costs.mse.detach())]
            if self.done % 50 == 0 or self.done == last:
                count = (self.done - 1) % 50 + 1
                j, bpp, mse = sums / count
                sums[:] = 0
                where = unit[0] if len(unit) == 1 else unit[0].split(".")[0] if rdo.strategy == "block" else "all"
                self.trace.add(step=self.done, unit=where, seconds=clock(), J=j, bpp=bpp, mse=mse)
                say(f"{where}  J {j:.4f}")
            if self.done % SAVE_EVERY == 0:
                self._save()
        twin.requires_grad_(False)
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
