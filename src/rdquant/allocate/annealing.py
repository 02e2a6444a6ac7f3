"""Simulated annealing over plans (Kirkpatrick, Gelatt and Vecchi 1983), every one of them measured."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .judge import Judge
from .plan import Plan
from .search import check_target
from .table import SensitivityTable

#: share of a plan's J by which a worse one is still taken every e-th time, first and last
HOT, COLD = 0.5, 0.01


def annealing(
    table: SensitivityTable,
    judge: Judge,
    target: int,
    budget: int = 500,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Plan:
    """The best plan met in ``budget`` measurements, from the widest uniform one that fits.

    A move narrows one layer, or none, and widens another, each by a width; it is taken if J falls, or with
    probability ``exp(-rise / temperature)``. Of ``table`` only sizes are used. Raises `UsageError` for an
    impossible target.
    """
    check_target(table, target)
    random, layers, bits = np.random.default_rng(seed), table.layers, table.bits

    def widths(genes: np.ndarray) -> dict[str, int]:
        return {n: bits[g] for n, g in zip(layers, genes, strict=True)}

    def fits(genes: np.ndarray) -> bool:
        return table.sizes.bytes(widths(genes)) <= target

    now = np.full(len(layers), max(i for i in range(len(bits)) if i == 0 or fits(np.full(len(layers), i))))
    start = judge.evaluations
    j = judge(widths(now))
    best, least = now, j
    tries = 0
    while judge.evaluations - start < budget and tries < 50 * budget:
        tries += 1
        moved = now.copy()
        up, down = random.choice(len(layers), 2, replace=len(layers) < 2)
        moved[up] += 1
        moved[down] -= random.integers(2)
        if moved[up] >= len(bits) or moved[down] < 0 or not fits(moved):
            continue
        share = (judge.evaluations - start) / budget
        temperature = abs(least) * HOT * (COLD / HOT) ** share
        found = judge(widths(moved))
        if found < j or random.random() < math.exp(-(found - j) / max(temperature, 1e-12)):
            now, j = moved, found
        if j < least:
            best, least = now, j
        if progress:
            progress(judge.evaluations - start, budget, f"best {least:.5f}")
    return Plan(widths(best), table.sizes.bytes(widths(best)), least, "annealing", about={"budget": budget})
