"""All searches of bit-widths on one codec and one target size, judged alike.

Every plan is measured as a whole on pictures that calibrated nothing, activations in float as in the table.
What a search cost counts from the sensitivity table on; the preparation is common to all.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..allocate import Neighbourhood, Plan, SensitivityTable, fmpq, knapsack, refine
from ..allocate.baselines import evolutionary, greedy, hessian_table
from ..allocate.judge import Judge
from ..allocate.predict import predict_table
from ..allocate.search import uniform
from ..allocate.table import WidthTwins, measure_table

METHODS = (
    "uniform", "hessian", "predicted", "predicted-refined", "fmpq", "knapsack", "refined", "greedy",
    "evolutionary",
)  # fmt: skip

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """What one search found, and at what cost."""

    plan: Plan
    increase: float  #: relative increase of J of the whole plan, measured
    evaluations: int  #: model evaluations, of the table included; most of the table's are partial
    seconds: float
    reached: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Of "greedy" and "evolutionary": by other method, the evaluations and seconds after which a plan of the
    size was found that is as good as that method's."""

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
    logs: dict[str, list[tuple[dict[str, int], float, float]]] = {}

    def add(name: str, search: Callable[[Judge], Plan], with_table: bool) -> None:
        judge, began = Judge(twins, x, lambda_, table.j_float, outputs=False), time.perf_counter()
        plan = search(judge)
        seconds, asked = time.perf_counter() - began, judge.evaluations
        if with_table:
            asked, seconds = asked + table_cost[0], seconds + table_cost[1]
        logs[name] = judge.log[:]
        found[name] = Outcome(plan, judge(plan.bits), asked + name.startswith("predicted"), seconds)

    def widest(judge: Judge) -> Plan:
        fitting = [p for p in (uniform(table, b) for b in table.bits) if p.size <= size]
        return fitting[-1] if fitting else uniform(table, min(table.bits))

    def predicted(judge: Judge, rounds: int = 0) -> Plan:
        guess = predict_table(twins, x, lambda_, table.sizes)
        return refine(Neighbourhood(judge, guess), size, rounds) if rounds else knapsack(guess, size)

    def by_hessian(judge: Judge) -> Plan:
        return knapsack(hessian_table(table, twins, x, lambda_), size)

    searches: dict[str, tuple[Callable[[Judge], Plan], bool]] = {
        "uniform": (widest, False),
        "hessian": (by_hessian, False),
        "predicted": (predicted, False),
        "predicted-refined": (lambda judge: predicted(judge, rounds), False),
        "fmpq": (lambda judge: fmpq(table, size), True),
        "knapsack": (lambda judge: knapsack(table, size), True),
        "refined": (lambda judge: refine(Neighbourhood(judge, table), size, rounds), True),
        "greedy": (lambda judge: greedy(table, judge, size, progress), False),
        "evolutionary": (lambda judge: evolutionary(table, judge, size, budget, progress=progress), False),
    }
    for name in methods:
        add(name, *searches[name])
    for name in {"greedy", "evolutionary"} & set(found):
        fitting = [(i + 1, j, s) for i, (b, j, s) in enumerate(logs[name]) if table.sizes.bytes(b) <= size]
        reached = {
            other: next(((i, s) for i, j, s in fitting if j <= outcome.increase), None)
            for other, outcome in found.items()
        }
        kept = {other: at for other, at in reached.items() if at is not None and other != name}
        found[name] = dataclasses.replace(found[name], reached=kept)
    return found, table
