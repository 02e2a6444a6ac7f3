"""RDO-PTQ: an integer codec's scales, roundings and biases, moved by the codec's own J.

The judge is ``J = lambda * D + R_y + R_z`` of calibration pictures, latents truly rounded (Shi, Lu and
Ma, arXiv 2211.02854). If wanted, first a grid of activation scales, per stage in network order with the
later stages in float; then gradients through the twin (`rdquant.passes.twin`). Where we depart from the
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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..codecs.protocol import TrainedCodec
from ..errors import CalibrationError
from ..files.atomic import atomic_write
from ..graph.capture import capture
from .bias import correct_biases
from .calibration import Calibration
from .config import QuantizeConfig
from .convert import to_integer
from .crops import Crops, probe
from .judges import Judge
from .mixed import is_mixing
from .mixing import Progress
from .prepare import prepare
from .rdo_config import GROUPS, RdoConfig, Strategy
from .suffix import SuffixCost
from .twin import Twin

SAVE_EVERY = 250
#: activation scales that the grid tries, as factors
SCALE_GRID = (0.7, 0.8, 0.9, 1.1, 1.25)


@dataclass
class Trace:
    """What happened: entries of ``step``, ``unit``, ``seconds``, and either ``J``, ``bpp`` and ``mse`` of the
    probe, or the ``loss`` that the last steps had.
    """

    entries: list[dict[str, Any]]

    def add(self, **values: Any) -> None:
        self.entries.append(values)


@torch.no_grad()
def grid_search(
    twin: Twin, names: list[str], x: Tensor, lambda_: float, report: Callable[[str], None] | None = None
) -> dict[str, float]:
    """Factor on the scales of each edge that can move, in network order, by J of ``x``, later stages in
    float.

    Only of the stages ``names``. Weights should be rounded to
    nearest: other roundings are made for the scales they came with. Leaves every stage quantized.
    """
    order = twin.names()
    twin.set_rounding(order, False, False)
    suffix = SuffixCost(twin, x, lambda_)
    found: dict[str, float] = {}
    for name in order:
        suffix.advance(name)
        twin.set_rounding([name], True, True)
        logs = {edge: twin.log(edge) for edge in twin.scale_edges(name)} if name in names else {}
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


def units(twin: Twin, strategy: Strategy, config: QuantizeConfig) -> list[list[str]]:
    """The stages whose parameters move together, in network order."""
    parts: dict[str, list[str]] = {}
    for stage in twin.stages.values():
        if config.in_scope(stage.network) and not is_mixing(stage.name):
            parts.setdefault(stage.network, []).append(stage.name)
    if strategy == "block":
        return list(parts.values())
    names = [name for part in parts.values() for name in part]
    return [names] if strategy == "joint" else [[name] for name in names]


def _parameters(twin: Twin, unit: list[str], config: RdoConfig, what: str) -> list[dict[str, Any]]:
    """Adam's groups: what may move in these stages."""
    groups = []
    for group in config.learn:
        if (group == "scales") != (what == "scales"):
            continue
        for attribute, rate in GROUPS[group].items():
            found = [p for name in unit for p in twin.parameters_of(name, attribute)]
            if found:
                groups.append({"params": found, "lr": config.lr * rate, "peak": config.lr * rate})
    return groups


class RdoCalibration:
    """One calibration run. `run` does the rest of it from wherever its folder, if any, stands."""

    def __init__(
        self,
        trained: TrainedCodec,
        pictures: list[np.ndarray],
        quantize: QuantizeConfig,
        rdo: RdoConfig,
        folder: Path | None = None,
        prepared: tuple[Codec, Calibration] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """``pictures``: ``(H, W, 3)`` uint8. ``folder``: where the state is kept to resume from.
        ``prepared``: what `prepare` made of the same codec and pictures, if that was done before.

        Raises `CalibrationError` for unusable pictures or a folder of another run.
        """
        self.quantize, self.rdo, self.folder = quantize, rdo, folder
        self.steps = rdo.steps_for(quantize)
        self.trace = Trace([])
        self.done, self.seconds, self.prepared = 0, 0.0, False
        if folder is not None:
            self._claim(folder)
        self.density = trained.entropy_bottleneck
        if prepared is None:
            store = folder / "mixings.pt" if folder is not None else None
            prepared = prepare(capture(trained), pictures, quantize, progress, store)
        self.codec, self.seen = prepared
        self.stretch: dict[str, Any] = {}  # by layer, a factor or one per channel
        self.twin = self._convert(quantize)
        self.crops = Crops(pictures, rdo.crop, rdo.seed)
        self.probe = probe(pictures)
        assert self.seen.gains is not None
        self.gains = self.seen.gains.float()
        self.optimizer: torch.optim.Adam | None = None
        self._saved: dict[str, Any] | None = None
        if folder is not None:
            self._resume(folder)

    def _convert(self, quantize: QuantizeConfig) -> Twin:
        integer, unrounded = to_integer(self.codec, self.seen, quantize, stretch=self.stretch)
        return Twin(integer, unrounded, self.density)

    def _search_scales(self, names: list[str], say: Callable[[str], None]) -> None:
        """The grid, on weights rounded to nearest; then the conversion again, with its factors."""
        nearest = self._convert(dataclasses.replace(self.quantize, rounding="nearest"))
        self.stretch = grid_search(nearest, names, self.probe, self.rdo.lambda_, lambda n: say(f"grid {n}"))
        self.twin = self._convert(self.quantize)

    def _claim(self, folder: Path) -> None:
        """Make the folder this run's. Raises `CalibrationError` if it is another's."""
        folder.mkdir(parents=True, exist_ok=True)
        options = {"quantize": self.quantize.to_json(), "rdo": self.rdo.to_json()}
        stored = folder / "config.json"
        if stored.exists() and json.loads(stored.read_text()) != options:
            raise CalibrationError(f"{folder} holds a calibration with other options; use a new folder")
        with atomic_write(stored) as handle:
            handle.write(json.dumps(options, indent=1).encode())

    def _resume(self, folder: Path) -> None:
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

    def run(self, progress: Progress | None = None) -> Codec:
        """Search, and export. Raises `CalibrationError` if J stops being finite."""
        started, before = time.perf_counter(), self.seconds
        twin, rdo = self.twin, self.rdo

        def clock() -> float:
            self.seconds = before + time.perf_counter() - started
            return round(self.seconds, 1)

        def say(note: str) -> None:
            if progress:
                progress(self.done, max(1, self.steps), note)

        if not self.prepared:
            twin.set_rounding(twin.names(), False, False)
            self.trace.add(step=0, unit="float", seconds=clock(), **self.probe_cost())
            twin.set_rounding(twin.names(), True, True)
            self.trace.add(step=0, unit="start", seconds=clock(), **self.probe_cost())
            in_scope = [s.name for s in twin.stages.values() if self.quantize.in_scope(s.network)]
            if rdo.grid:
                self._search_scales(in_scope, say)
                twin = self.twin
                self.trace.add(step=0, unit="grid", seconds=clock(), **self.probe_cost())
            if rdo.bias_correction != "none":
                correct_biases(twin, in_scope, self.probe, rdo.bias_correction)
                self.trace.add(step=0, unit="bias", seconds=clock(), **self.probe_cost())
            self.prepared = True
        if self.steps and rdo.learn:
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
        return self.steps if rdo.learn == ("scales",) else round(self.steps * rdo.scale_share)

    def _schedule(self) -> Iterator[tuple[int, int, list[str], str]]:
        """``(first step, last step, stages, what moves)``: all units' scales, then all units' weights."""
        found = units(self.twin, self.rdo.strategy, self.quantize)
        middle = self._scale_steps()
        for start, end, what in ((0, middle, "scales"), (middle, self.steps, "weights")):
            for i, unit in enumerate(found):
                first, last = (start + (end - start) * k // len(found) for k in (i, i + 1))
                if self.done < last:
                    yield first, last, unit, what

    def _adopt_scales(self) -> None:
        """Convert again with the scales that were learned: weights are rounded for them, and only now."""
        twin = self.twin
        logs = {edge: twin.log(edge) for name in twin.names() for edge in twin.scale_edges(name)}
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
        twin.leave_compensated()
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
                    what
                    if rdo.strategy == "joint"
                    else unit[0]
                    if len(unit) == 1
                    else twin.stages[unit[0]].network
                )
                self.trace.add(step=self.done, unit=where, seconds=clock(), loss=mean)
                say(f"{where}  {rdo.objective} {mean:.4f}")
            if self.done % SAVE_EVERY == 0 and self.done < last:  # what follows the last step is not done yet
                self._save()
        twin.requires_grad_(False)
        twin.soft_end = False
        self.optimizer = None


def calibrate(
    codec: TrainedCodec,
    pictures: list[np.ndarray],
    quantize: QuantizeConfig,
    rdo: RdoConfig,
    description: dict[str, Any] | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Codec, Trace]:
    """RDO-PTQ of a float codec: the integer codec and what J did on the way.

    ``pictures``: ``(H, W, 3)`` uint8. Raises `CalibrationError` and `BadModel`.
    """
    run = RdoCalibration(codec, pictures, quantize, rdo, folder, progress=progress)
    integer = run.run(progress)
    about = {**integer.description, "rdo": rdo.to_json(), **(description or {})}
    return dataclasses.replace(integer, description=about), run.trace
