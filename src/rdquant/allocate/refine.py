"""Interactions of layers: what a table of single layers cannot know.

Zetas add up while errors are small. Where many layers have few bits J rises faster than their sum, above all
in the entropy path: small errors of z vanish in its rounding until others join them. So the neighbourhood of
a plan is measured, each layer a width up and down with all others as planned, and the same knapsack is solved
on those differences; whatever then measures better as a whole is the new plan, a few rounds long.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..passes.suffix import SuffixCost
from .judge import Judge
from .plan import Plan
from .search import fmpq, knapsack, uniform
from .table import SensitivityTable, width_costs

#: widths up and down that a round measures
REACH = 1
#: another round follows one that took at least this share off the increase of J
LEAST_GAIN = 0.05


class Neighbourhood:
    """Measured J of whole plans, and of their neighbours.

    ``archive``: every whole plan that was measured, with its relative increase of J (activations in float,
    as in the table).
    """

    def __init__(self, judge: Judge, table: SensitivityTable) -> None:
        self.judge, self.table = judge, table
        self.archive: list[Plan] = []

    def measured(self, plan: Plan) -> Plan:
        """The plan with what it does as a whole in place of the sum of zetas."""
        found = dataclasses.replace(plan, increase=self.judge(plan.bits))
        self.archive.append(found)
        return found

    def around(self, bits: Mapping[str, int]) -> SensitivityTable:
        """A table of the widths next to ``bits``: differences of J with all other layers as in ``bits``."""
        judge, widths = self.judge, self.table.bits
        base = judge.twins.mixed(bits, outputs=False)
        suffix = SuffixCost(base, judge.x, judge.lambda_)
        rows: dict[str, dict[int, float]] = {}
        for name in self.table.layers:
            at = widths.index(bits[name])
            near = widths[max(0, at - REACH) : at + REACH + 1]
            costs = width_costs(judge.twins, base, suffix, name, near)
            judge.evaluations += len(costs)
            rows[name] = {b: (j - costs[max(costs)]) / judge.j_float for b, j in costs.items()}
        return dataclasses.replace(self.table, zeta=rows)


def refine(near: Neighbourhood, target: int, rounds: int) -> Plan:
    """A plan of at most ``target`` bytes that measures no worse than those of the table, or a uniform one.

    Starts from whichever of these measures best; ends early when a round gains little.
    """
    table = near.table
    starts = [search(table, target) for search in (knapsack, fmpq)]
    starts += [p for p in (uniform(table, b) for b in table.bits) if p.size <= target][-1:]
    best = min((near.measured(p) for p in starts), key=lambda p: p.increase)
    for _ in range(rounds):
        found = knapsack(near.around(best.bits), target)
        found = near.measured(dataclasses.replace(found, method="refined"))
        gain = best.increase - found.increase
        best = min(best, found, key=lambda p: p.increase)
        if gain < LEAST_GAIN * abs(best.increase):
            break
    return best


def best_of(archive: list[Plan], target: int) -> Plan:
    """The plan that measured best among those that fit: so a larger target is never worse."""
    return min((p for p in archive if p.size <= target), key=lambda p: p.increase)
