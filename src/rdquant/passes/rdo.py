"""RDO-PTQ: an integer codec's scales, roundings and biases, moved by the codec's own J.

The judge is ``J = lambda * D + R_y + R_z`` of calibration pictures, latents truly rounded (Shi, Lu and
Ma, arXiv 2211.02854). If wanted, first a grid of scales (`rdquant.passes.grid`); then gradients through the
twin (`rdquant.passes.twin`). Whatever moves is judged by pictures that nothing learned from, and taken back
where they are worse off (`rdquant.passes.held_out`). Where we depart from the paper: weights choose their
rounding too, everything is integers, and by default gradients follow J's expansion around the float codec
(`Mismatch`) instead of J.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
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
from ..hardware import layout
from .bias import BiasCorrection, correct_biases
from .calibration import Calibration
from .config import QuantizeConfig
from .convert import to_integer
from .crops import Crops, probe
from .grid import WEIGHT_GRID, activation_grid, float_errors, weight_grid
from .held_out import SHARES, HeldOut, split
from .judges import Judge
from .mixed import is_mixing
from .mixing import Progress
from .prepare import prepare
from .rdo_config import GROUPS, RdoConfig, Strategy
from .twin import Twin

SAVE_EVERY = 250
#: steps after which held-out pictures are asked; and how often they may say "worse than the start" in a row
CHECK_EVERY, PATIENCE = 50, 3


@dataclass
class Trace:
    """What happened: entries of ``step``, ``unit``, ``seconds``, and either ``J``, ``bpp`` and ``mse`` of the
    held-out pictures, or the ``loss`` that the last steps had.
    """

    entries: list[dict[str, Any]]

    def add(self, **values: Any) -> None:
        self.entries.append(values)


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


@dataclass
class Descent:
    """One unit on its way down: where it began, and the best that held-out pictures have seen of it."""

    start: list[Tensor]
    before: float  #: J at the start
    best: list[Tensor]
    least: float  #: J at the best
    worse: int = 0  #: checks in a row that were above ``before``

    def saw(self, moved: list[Tensor], j: float) -> bool:
        """Take note of a check; whether it is time to stop."""
        if j < self.least:
            self.best, self.least = [t.detach().clone() for t in moved], j
        self.worse = self.worse + 1 if j > self.before else 0
        return self.worse >= PATIENCE


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
        self.twin = self._convert()
        learned, judging = split(pictures)
        self.crops = Crops(learned, rdo.crop, rdo.seed)
        self.probe = probe(learned)
        self.held = HeldOut(self.twin, judging, rdo.weight)
        self.j = math.nan  #: of the held-out pictures, as the twin stands
        self._descent: Descent | None = None
        assert self.seen.gains is not None
        self.gains = self.seen.gains.float()
        self.optimizer: torch.optim.Adam | None = None
        self._saved: dict[str, Any] | None = None
        if folder is not None:
            self._resume(folder)

    def _convert(self, more: Mapping[str, Any] | None = None) -> Twin:
        """A twin with the factors on scales that were found, and ``more`` of them."""
        stretch = {**self.stretch, **(more or {})}
        integer, unrounded = to_integer(self.codec, self.seen, self.quantize, stretch=stretch)
        return Twin(integer, unrounded, self.density)

    def _search_scales(self, names: list[str], say: Callable[[str], None]) -> None:
        """The grids: of activations, then of weights if they are rounded to nearest."""
        reference = float_errors(self.codec, self.probe) if self.rdo.relative else None
        given: Any = (names, self.probe, self.rdo.weight, reference, lambda n: say(f"grid {n}"))
        self._adopt(activation_grid(self.twin, *given))
        if self.quantize.rounding == "nearest":
            others = {
                factor: self._convert({f"{name}.weight": factor for name in names}) for factor in WEIGHT_GRID
            }
            self._adopt(weight_grid(self.twin, others, *given))

    def _adopt(self, logs: Mapping[str, Tensor | float]) -> None:
        """Convert again with these logarithms of factors on scales, or the share of them that held-out
        pictures like best; with none, nothing changes.
        """
        start = [self.stretch.get(key, 1.0) for key in logs]
        for share in SHARES:
            old = self.stretch
            self.stretch = {
                **old,
                **{
                    key: torch.as_tensor(own) * torch.exp(share * torch.as_tensor(log).detach().double())
                    for (key, log), own in zip(logs.items(), start, strict=True)
                },
            }
            twin = self._convert()
            if (j := self.held.cost(twin)) < self.j:
                self.twin, self.j = twin, j
                return
            self.stretch = old
        self.twin = self._convert()  # gradients had moved the old one's

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
            self.twin = self._convert()
            self.twin.load_state_dict(state["twin"])
            self.done, self.seconds, self.prepared = state["done"], state["seconds"], True
            self.trace, self._saved, self.j = Trace(state["trace"]), state["optimizer"], state["J"]
            if state["descent"] is not None:
                self._descent = Descent(**state["descent"])

    def _save(self) -> None:
        if self.folder is None:
            return
        state = {
            "twin": self.twin.state_dict(), "done": self.done, "seconds": self.seconds,
            "trace": self.trace.entries, "stretch": self.stretch,
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "J": self.j, "descent": vars(self._descent) if self._descent else None,
        }  # fmt: skip
        with atomic_write(self.folder / "state.pt") as handle:
            torch.save(state, handle)

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

        def note(unit: str) -> None:
            self.trace.add(step=self.done, unit=unit, seconds=clock(), **self.held.report(self.twin))

        if not self.prepared:
            self.trace.add(step=0, unit="float", seconds=clock(), **self.held.float_j)
            note("start")
            self.j = self.trace.entries[-1]["J"]
            in_scope = [s.name for s in twin.stages.values() if self.quantize.in_scope(s.network)]
            if rdo.grid:
                self._search_scales(in_scope, say)
                note("grid")
            if rdo.bias_correction != "none":
                self._correct_biases(in_scope, rdo.bias_correction)
                note("bias")
            self.prepared = True
        if self.steps and rdo.learn:
            for phase in self._schedule():
                self._descend(*phase, clock, say)
                if phase[3] == "scales" and self.done == self._scale_steps():
                    twin = self.twin
                    self._adopt({e: twin.log(e) for name in twin.names() for e in twin.scale_edges(name)})
                    note("scales")
                    self._save()
        note("end")
        self._save()
        return self.twin.export()

    def _correct_biases(self, names: list[str], how: BiasCorrection) -> None:
        moved = [p for name in names for p in self.twin.parameters_of(name, "bias")]
        start = [p.detach().clone() for p in moved]
        correct_biases(self.twin, names, self.probe, how)
        _, self.j = self.held.settle(lambda: self.twin, moved, start, self.j)

    def _scale_steps(self) -> int:
        rdo = self.rdo
        if "scales" not in rdo.learn:
            return 0
        return self.steps if rdo.learn == ("scales",) else round(self.steps * rdo.scale_share)

    def _schedule(self) -> Iterator[tuple[int, int, list[str], str]]:
        """``(first step, last step, stages, what moves)``: all units' scales, then all units' weights."""
        middle = self._scale_steps()
        for start, end, what in ((0, middle, "scales"), (middle, self.steps, "weights")):
            parts = units(self.twin, self.rdo.strategy, self.quantize)
            found = [unit for unit in parts if _parameters(self.twin, unit, self.rdo, what)]
            for i, unit in enumerate(found):
                first, last = (start + (end - start) * k // len(found) for k in (i, i + 1))
                if self.done < last:
                    yield first, last, unit, what

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
        move, so are all weights: their roundings are made for scales that stay. Held-out pictures decide on
        weights here, on scales when they are adopted.
        """
        twin, rdo = self.twin, self.rdo
        after = twin.names().index(unit[-1]) + 1

        def set_out() -> None:
            twin.set_rounding(twin.names()[:after], what == "weights", True)
            twin.set_rounding(twin.names()[after:], False, False)
            twin.leave_compensated()
            twin.soft_end = rdo.objective == "reconstruction"

        twin.requires_grad_(True)
        twin.to(memory_format=layout(next(twin.parameters()).device))  # type: ignore[call-overload]
        groups = _parameters(twin, unit, rdo, what)
        moved = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        if self._saved is not None and first < self.done < last:
            self.optimizer.load_state_dict(self._saved)
        self._saved = None
        if self._descent is None:
            start = [p.detach().clone() for p in moved]
            self._descent = Descent(start, self.j, start, self.j)
        objective: Any = Judge(twin, self.codec, rdo, self.gains, float(self.held.reference.mean()))
        if rdo.compile:
            objective.student = torch.compile(objective.student)
        set_out()
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
            if self.done % CHECK_EVERY == 0 or self.done == last:
                count = (self.done - 1) % CHECK_EVERY + 1
                mean, sums = sums / count, 0.0
                where = self._where(unit, what)
                self.trace.add(step=self.done, unit=where, seconds=clock(), loss=mean)
                say(f"{where}  {rdo.objective} {mean:.4f}")
            if what == "weights" and self.done % CHECK_EVERY == 0 and self.done < last:
                stop = self._descent.saw(moved, self.held.cost(twin))
                set_out()
                if stop:
                    self.done = last
            if self.done % SAVE_EVERY == 0 and self.done < last:  # what follows the last step is not done yet
                self._save()
        twin.requires_grad_(False)
        twin.soft_end = False
        if what == "weights":
            self._settle(moved)
        self.optimizer, self._descent = None, None

    def _settle(self, moved: list[Tensor]) -> None:
        """Leave what was moved where held-out pictures like it best."""
        descent = self._descent
        assert descent is not None
        _, self.j = self.held.settle(lambda: self.twin, moved, descent.start, descent.before)
        if descent.least < self.j:
            with torch.no_grad():
                for t, best in zip(moved, descent.best, strict=True):
                    t.copy_(best)
            self.j = descent.least

    def _where(self, unit: list[str], what: str) -> str:
        """What a report calls the unit."""
        if self.rdo.strategy == "joint":
            return what
        return unit[0] if len(unit) == 1 else self.twin.stages[unit[0]].network
