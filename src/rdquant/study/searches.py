"""All searches of bit-widths on one codec and one target size, judged alike.

Every plan is measured as a whole on pictures that calibrated nothing, activations in float as in the table.
What a search cost counts from the sensitivity table on; the preparation is common to all.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

from ..allocate import Plan
from ..allocate.judge import Judge
from ..allocate.methods import METHODS, Problem, search_of
from ..measure.bootstrap import Interval


@dataclass(frozen=True)
class Outcome:
    """What one search found, and at what cost."""

    plan: Plan
    increase: float  #: relative increase of J of the whole plan, measured
    evaluations: int  #: model evaluations, of the table included; most of the table's are partial
    seconds: float
    interval: Interval | None = None  #: of ``increase``, 95 % over the pictures
    reached: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Of "greedy", "evolutionary" and "annealing": by other method, the evaluations and seconds after which a
    plan of the size was found that is as good as that method's."""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "plan": self.plan.to_json()}


def compare(
    problem: Problem,
    target: str,
    methods: tuple[str, ...] = tuple(METHODS),
) -> dict[str, Outcome]:
    """Each method's `Outcome`. ``target``: as in `LayerSizes.target`. "uniform" is the widest width that
    fits, as far as there is one.
    """
    size = problem.sizes.target(target)
    start = time.perf_counter()
    measured, between = problem.measured, time.perf_counter()
    predicted = problem.predicted
    costs = {
        "measured": (measured.evaluations, between - start),
        "predicted": (predicted.evaluations, time.perf_counter() - between),
        None: (0, 0.0),
    }
    found: dict[str, Outcome] = {}
    logs: dict[str, list[tuple[dict[str, int], float, float]]] = {}
    for name in methods:
        search = search_of(name)
        problem.judge = Judge(problem.twins, problem.x, problem.lambda_, measured.j_float, outputs=False)
        judge, began = problem.judge, time.perf_counter()
        plan = search.run(problem, size)
        asked, seconds = judge.evaluations, time.perf_counter() - began
        more, longer = costs[search.uses]
        logs[name] = judge.log[:]
        found[name] = Outcome(plan, judge(plan.bits), asked + more, seconds + longer)
    for name, outcome in found.items():
        found[name] = dataclasses.replace(outcome, interval=problem.judge.interval(outcome.plan.bits))
    for name in {"greedy", "evolutionary", "annealing"} & set(found):
        fitting = [(i + 1, j, s) for i, (b, j, s) in enumerate(logs[name]) if problem.sizes.bytes(b) <= size]
        reached = {
            other: next(((i, s) for i, j, s in fitting if j <= outcome.increase), None)
            for other, outcome in found.items()
        }
        kept = {other: at for other, at in reached.items() if at is not None and other != name}
        found[name] = dataclasses.replace(found[name], reached=kept)
    return found
