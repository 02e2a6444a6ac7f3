"""All searches of bit-widths on one codec and one target size, judged alike.

Every plan is measured as a whole on pictures that calibrated nothing, activations in float as in the table.
What a search cost counts from the sensitivity table on; the preparation is common to all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..allocate import Neighbourhood, Plan, SensitivityTable, fmpq, knapsack, refine
from ..allocate.baselines import evolutionary, greedy, hessian_table
from ..allocate.judge import Judge
from ..allocate.search import uniform
from ..allocate.table import WidthTwins, measure_table

METHODS = ("uniform", "hessian", "fmpq", "knapsack", "refined", "greedy", "evolutionary")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """What one search found, and at what cost."""

    plan: Plan
    increase: float  #: relative increase of J of the whole plan, measured
    evaluations: int  #: model evaluations, of the table included; most of the table's are partial
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "plan": self.plan.to_json()}


def compare(
    twins: WidthTwins,
    x: Tensor,
    lambda_: float,
    parameters: int,
    target: str,
    methods: tuple[str, ...] = METHODS,
    budget: int = 1000,
    rounds: int = 3,
    progress: Progress | None = None,
) -> tuple[dict[str, Outcome], SensitivityTable]:
    """Each method's `Outcome`. ``target``: as in `LayerSizes.target`; ``budget``: evaluations of the
    evolutionary search; "uniform" is the widest width that fits, as far as there is one.
    """
    start = time.perf_counter()
    table = measure_table(twins, x, lambda_, parameters, progress=progress)
    table_cost = table.evaluations, time.perf_counter() - start
    size = table.sizes.target(target)
    found: dict[str, Outcome] = {}

    def add(name: str, search: Callable[[Judge], Plan], with_table: bool) -> None:
        judge, began = Judge(twins, x, lambda_, table.j_float, outputs=False), time.perf_counter()
        plan = search(judge)
        seconds, asked = time.perf_counter() - began, judge.evaluations
        if with_table:
            asked, seconds = asked + table_cost[0], seconds + table_cost[1]
        found[name] = Outcome(plan, judge(plan.bits), asked, seconds)

    def widest(judge: Judge) -> Plan:
        fitting = [p for p in (uniform(table, b) for b in table.bits) if p.size <= size]
        return fitting[-1] if fitting else uniform(table, min(table.bits))

    def by_hessian(judge: Judge) -> Plan:
        return knapsack(hessian_table(table, twins, x, lambda_), size)

    searches: dict[str, tuple[Callable[[Judge], Plan], bool]] = {
        "uniform": (widest, False),
        "hessian": (by_hessian, False),
        "fmpq": (lambda judge: fmpq(table, size), True),
        "knapsack": (lambda judge: knapsack(table, size), True),
        "refined": (lambda judge: refine(Neighbourhood(judge, table), size, rounds), True),
        "greedy": (lambda judge: greedy(table, judge, size, progress), False),
        "evolutionary": (lambda judge: evolutionary(table, judge, size, budget, progress=progress), False),
    }
    for name in methods:
        add(name, *searches[name])
    return found, table
