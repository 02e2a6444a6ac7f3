"""What FMPQ is compared with, at full strength and under one interface.

Each search takes the same table of sizes and a `Judge`, which measures the J of a whole plan and counts
how often it was asked. FMPQ and the knapsack ask it once, to check; these ask it all the time:

* `greedy`: from the widest plan, again and again narrow the layer that costs least J per byte saved,
  measuring every candidate with the whole model;
* `evolutionary`: a population of plans, mutation and crossover, with a stated budget of measurements;
* `hessian_table`: a sensitivity table from Hessian traces and weight errors (HAWQ-V2, Dong et al. 2020,
  arXiv 1911.03852, equation 5), to be given to the same knapsack.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .judge import Judge
from .plan import Plan
from .predict import weight_error
from .search import check_target
from .table import SensitivityTable, WidthTwins

Progress = Callable[[int, int, str], None]


def greedy(table: SensitivityTable, judge: Judge, target: int, progress: Progress | None = None) -> Plan:
    """Narrow one layer by one width at a time, each time the one with the least J lost per byte saved.

    Asks the judge for every layer in every round. Raises `UsageError` for an impossible target.
    """
    check_target(table, target)
    plan = dict.fromkeys(table.layers, max(table.bits))
    narrower = {b: a for a, b in itertools.pairwise(table.bits)}
    now, start = judge(plan), table.sizes.bytes(plan)
    while (size := table.sizes.bytes(plan)) > target:
        best: tuple[float, str, float] | None = None
        for name in table.layers:
            if plan[name] <= min(table.bits):
                continue
            candidate = {**plan, name: narrower[plan[name]]}
            j = judge(candidate)
            price = (j - now) / (size - table.sizes.bytes(candidate))
            if best is None or price < best[0]:
                best = (price, name, j)
        assert best is not None
        plan[best[1]] = narrower[plan[best[1]]]
        now = best[2]
        if progress:
            progress(start - size, start - target, best[1])
    return Plan(plan, table.sizes.bytes(plan), now, "greedy")


def evolutionary(
    table: SensitivityTable,
    judge: Judge,
    target: int,
    budget: int = 500,
    population: int = 24,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """The best plan that a genetic search finds in ``budget`` measurements, from the widest uniform one that
    fits and random ones. Plans over ``target`` are repaired by narrowing random layers, and filled up by
    widening them while they fit.
    """
    check_target(table, target)
    random = np.random.default_rng(seed)
    layers, bits = table.layers, table.bits

    def widths(genes: np.ndarray) -> dict[str, int]:
        return {n: bits[g] for n, g in zip(layers, genes, strict=True)}

    def repair(genes: np.ndarray) -> np.ndarray:
        while table.sizes.bytes(widths(genes)) > target:
            genes[random.choice(np.flatnonzero(genes > 0))] -= 1
        for i in random.permutation(len(genes)):
            while genes[i] < len(bits) - 1:
                genes[i] += 1
                if table.sizes.bytes(widths(genes)) > target:
                    genes[i] -= 1
                    break
        return genes

    def cost(genes: np.ndarray) -> float:
        return judge(widths(genes))

    start = judge.evaluations
    even = [np.full(len(layers), i) for i in range(len(bits))]
    people = [next((e for e in reversed(even) if table.sizes.bytes(widths(e)) <= target), even[0])]
    people += [repair(random.integers(len(bits), size=len(layers))) for _ in range(population - 1)]
    scores = [cost(p) for p in people]
    tries = 0
    while judge.evaluations - start < budget and tries < 20 * budget:
        tries += 1
        a, b = (min(random.choice(population, 3), key=lambda i: scores[i]) for _ in range(2))
        child = np.where(random.random(len(layers)) < 0.5, people[a], people[b])
        mutate = random.random(len(layers)) < 1.5 / len(layers)
        child = np.clip(child + mutate * random.integers(-2, 3, len(layers)), 0, len(bits) - 1)
        child = repair(child)
        score, worst = cost(child), int(np.argmax(scores))
        if score < scores[worst]:
            people[worst], scores[worst] = child, score
        if progress:
            progress(judge.evaluations - start, budget, f"best {min(scores):.5f}")
    best = widths(people[int(np.argmin(scores))])
    return Plan(best, table.sizes.bytes(best), min(scores), "evolutionary", about={"budget": budget})


def hessian_table(
    table: SensitivityTable, twins: WidthTwins, x: Tensor, lambda_: float, probes: int = 8, seed: int = 0
) -> SensitivityTable:
    """``zeta_n(b) ~ mean Hessian trace of layer n / 2 * |W_b - W|^2``, relative to J of the float codec.

    Traces by Hutchinson's estimate with ``probes`` Rademacher vectors, through the float twin; of the
    absolute value, since J at a trained point is not convex everywhere. ``x: (B, 3, H, W)`` of 0..255.
    """
    if probes < 1:
        raise UsageError(f"probes must be at least 1, got {probes}")
    widest = twins.twins[max(twins.twins)]
    names = table.layers
    widest.set_rounding(widest.names(), False, False)
    buffers = [widest.layer(n).v.requires_grad_(True) for n in names]
    generator = torch.Generator().manual_seed(seed)
    traces = dict.fromkeys(names, 0.0)
    try:
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        j = widest(x).cost(lambda_, pixels)
        gradients = torch.autograd.grad(j, buffers, create_graph=True)
        for k in range(probes):
            signs = [torch.randint(0, 2, b.shape, generator=generator) * 2.0 - 1 for b in buffers]
            products = torch.autograd.grad(gradients, buffers, signs, retain_graph=k + 1 < probes)
            for name, s, p in zip(names, signs, products, strict=True):
                traces[name] += float((s * p).sum()) / probes
    finally:
        for buffer in buffers:
            buffer.requires_grad_(False)
    zeta: dict[str, dict[int, float]] = {}
    for name in names:
        mean_trace = abs(traces[name]) / widest.layer(name).v.numel()
        squares = {b: float(weight_error(twins, name, b).square().sum()) for b in twins.twins}
        zeta[name] = {b: 0.5 * mean_trace * s / table.j_float for b, s in squares.items()}
    return dataclasses.replace(table, zeta=zeta)
