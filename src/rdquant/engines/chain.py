"""Steps of a plan that each position goes through by itself: a few thousand positions go through all of them,
while they are in cache, before the next few thousand; and threads meet once, not after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..threads import share

Step = Callable[..., np.ndarray]
#: positions that go together; and so few that they go step by step
_TOGETHER, _FEW = 2048, 256


@dataclass(frozen=True)
class Prepared:
    """A step: ``run(*inputs)`` makes ``name``."""

    name: str
    run: Step
    inputs: tuple[str, ...]
    done: tuple[str, ...]
    """What nothing needs any more afterwards."""
    pads: bool
    """It takes ``valid`` of `rdquant.engines.run`."""
    at: object
    """Of steps that take positions one by one: equal where these are the same; else None."""

    def __call__(self, values: dict[str, np.ndarray], valid: bool = False) -> None:
        inputs = [values[edge] for edge in self.inputs]
        values[self.name] = self.run(*inputs, valid=valid) if self.pads else self.run(*inputs)
        for edge in self.done:
            del values[edge]


class Chain:
    """Steps at the same positions. ``kinds``: channels and type of each edge."""

    def __init__(self, steps: list[Prepared], kinds: Mapping[str, tuple[int, np.dtype[Any]]]) -> None:
        self.steps, self._kinds = steps, kinds
        made = {step.name for step in steps}
        done = [edge for step in steps for edge in step.done]
        self._given = sorted({edge for step in steps for edge in step.inputs} - made)
        self._kept = sorted(made - set(done))
        self._done = [edge for edge in done if edge not in made]

    def __call__(self, values: dict[str, np.ndarray], valid: bool = False) -> None:
        shape = values[self._given[0]].shape[:3]
        count = shape[0] * shape[1] * shape[2]
        if count <= _FEW:
            for step in self.steps:
                step(values, valid)
            return
        given = {edge: values[edge].reshape(1, 1, count, -1) for edge in self._given}
        kept = {
            edge: np.empty((1, 1, count, c), kind)
            for edge, (c, kind) in self._kinds.items()
            if edge in self._kept
        }

        def run(start: int, stop: int) -> None:
            for first in range(start, stop, _TOGETHER):
                own = np.s_[:, :, first : min(first + _TOGETHER, stop)]
                here = {edge: t[own] for edge, t in given.items()}
                for step in self.steps:
                    step(here)
                for edge, t in kept.items():
                    t[own] = here[edge]

        share(count, run, _FEW)
        for edge in self._done:
            del values[edge]
        values |= {edge: t.reshape(*shape, -1) for edge, t in kept.items()}


def chained(steps: list[Prepared], kinds: Mapping[str, tuple[int, np.dtype[Any]]]) -> list[Prepared | Chain]:
    """Steps with those in a row that have the same positions as one."""
    found: list[Prepared | Chain] = []
    for step in steps:
        last = found[-1] if found else None
        if step.at is None:
            found.append(step)
        elif isinstance(last, Chain) and last.steps[0].at == step.at:
            found[-1] = Chain([*last.steps, step], kinds)
        else:
            found.append(Chain([step], kinds))
    return [s.steps[0] if isinstance(s, Chain) and len(s.steps) == 1 else s for s in found]
