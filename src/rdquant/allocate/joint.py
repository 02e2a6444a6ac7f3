"""A plan whose layers were weighed together, from one gradient and the hyper-coder alone.

Errors of layers of one transform meet in its output: what they cost together is the mean square of the sum
of their projections (`rdquant.allocate.predict`), for any widths, at no further evaluation. The hyper-coder
has thresholds instead: small errors of z vanish in its rounding until others join them, and no table of
single layers knows when. But it is small, a hundredth of the codec's work, and the latents that it codes
depend on the analysis only: its rate is measured for whole plans, on latents that the quantized analysis
makes. Transforms and hyper-coder share nothing but the bytes, so one price of a byte serves both; the price
is bisected until the plan has the wanted size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..passes.flow import segment_of
from .plan import Plan
from .predict import TRANSFORMS, Projections
from .search import check_target, knapsack
from .table import SensitivityTable, WidthTwins

Bits = dict[str, int]
Cost = Callable[[Bits], float]

#: of the price of a byte, in J of the float codec: where bisection starts, as powers of ten; how often it
#: halves
PRICES, HALVINGS = (-9.0, -4.0), 12


class TransformsCost:
    """Relative increase of J by the layers of both transforms: a quadratic form of their widths.

    ``layers``: of both; ``gram: (N, N)``: of the projections of all widths of all of them, nothing where a
    pair is of two transforms.
    """

    def __init__(self, found: Projections, layers: list[str], segments: Mapping[str, str]) -> None:
        self.layers, self.widths = layers, found.widths
        rows = torch.cat([found.rows[n] for n in layers], 1).double().numpy()
        of = np.repeat([segments[n] for n in layers], len(self.widths))
        self.gram = rows.T @ rows / len(rows) * (of[:, None] == of)

    def _columns(self, bits: Bits) -> np.ndarray:
        places = [self.widths.index(bits[n]) for n in self.layers]
        return np.arange(len(self.layers)) * len(self.widths) + places

    def __call__(self, bits: Bits) -> float:
        at = self._columns(bits)
        return float(self.gram[np.ix_(at, at)].sum())

    def descended(self, bits: Bits, table: SensitivityTable, price: float) -> Bits:
        """From ``bits`` on, the best move of one or two layers, while any lowers J plus the bytes' price."""
        count, gram = len(self.widths), self.gram
        of = np.repeat(np.arange(len(self.layers)), count)
        weights = table.sizes.weights
        bytes_ = price * np.array([weights[n][b] for n in self.layers for b in self.widths])
        at = self._columns(bits)
        while True:
            own, pull = at[of], gram[:, at].sum(1)
            single = (
                2 * (pull - pull[own]) + np.diag(gram) + np.diag(gram)[own] - 2 * gram[own, range(len(of))]
            )
            single += bytes_ - bytes_[own]
            meeting = gram - gram[:, own] - gram[own] + gram[np.ix_(own, own)]
            pairs = single[:, None] + single + 2 * meeting
            pairs[of[:, None] == of] = np.inf
            np.fill_diagonal(pairs, single)
            first, second = np.unravel_index(np.argmin(pairs), pairs.shape)
            if pairs[first, second] >= -1e-12:
                break
            at[of[first]], at[of[second]] = first, second
        return {**bits, **{n: self.widths[c % count] for n, c in zip(self.layers, at, strict=True)}}


class HyperCost:
    """Relative increase of J by the bits that the hyper-coder of a plan takes for given latents.

    ``plan``: whose analysis makes the latents of ``x``. Measured rates are remembered; ``evaluations`` counts
    them.
    """

    def __init__(
        self, twins: WidthTwins, found: Projections, layers: list[str], plan: Bits, x: torch.Tensor
    ) -> None:
        self.layers, self.twins, self.found = layers, twins, found
        self.evaluations = 0
        self._known: dict[tuple[int, ...], float] = {}
        self._twin = twins.mixed(plan, outputs=False)
        with torch.no_grad():
            self._latents = self._twin.run("analysis", x)

    @torch.no_grad()
    def __call__(self, bits: Bits) -> float:
        key = tuple(bits[n] for n in self.layers)
        if key not in self._known:
            for name in self.layers:
                self._twin.adopt(name, self.twins.twins[bits[name]])
            self._twin.set_rounding(self.layers, True, False)
            _, bits_y, bits_z = self._twin.latents(self._latents)
            self._known[key] = (float(bits_y + bits_z) - self.found.bits) / self.found.j_total
            self.evaluations += 1
        return self._known[key]

    def descended(self, bits: Bits, table: SensitivityTable, price: float) -> Bits:
        """From ``bits`` on, the best move of one layer by one width or two, while any helps."""

        def objective(b: Bits) -> float:
            return self(b) + price * sum(table.sizes.weights[n][b[n]] for n in self.layers)

        while True:
            near = [{**bits, n: b} for n in self.layers for b in _around(table.bits, bits[n], 2)]
            found = min(near, key=objective, default=bits)
            if objective(found) >= objective(bits) - 1e-12:
                return bits
            bits = found


def _around(widths: list[int], bits: int, reach: int) -> list[int]:
    at = widths.index(bits)
    return [b for b in widths[max(0, at - reach) : at + reach + 1] if b != bits]


def joint(
    twins: WidthTwins, found: Projections, table: SensitivityTable, x: torch.Tensor, target: int
) -> Plan:
    """The plan of at most ``target`` bytes with the least cost of both. No whole plan is evaluated: its
    ``increase`` is the sum of both costs.

    ``table``: predicted, with sizes; ``x``: the pictures of ``found``. Raises `UsageError` for an impossible
    target.
    """
    check_target(table, target)
    segments = {n: segment_of(found.base.stages[n].network) for n in twins.layers}
    parts: dict[bool, list[str]] = {True: [], False: []}
    for name in twins.layers:
        parts[segments[name] in TRANSFORMS].append(name)
    plan = dict(knapsack(table, target).bits)
    transforms = TransformsCost(found, parts[True], segments)
    hyper = HyperCost(twins, found, parts[False], plan, x)
    best, (low, high) = dict.fromkeys(twins.layers, min(table.bits)), PRICES
    for _ in range(HALVINGS):
        price = 10 ** ((low + high) / 2)
        plan = hyper.descended(transforms.descended(plan, table, price), table, price)
        if table.sizes.bytes(plan) <= target:
            best, high = plan, (low + high) / 2
        else:
            low = (low + high) / 2

    def cost(bits: Bits) -> float:
        return transforms(bits) + hyper(bits)

    best = _widened(best, table, cost, target)
    return Plan(best, table.sizes.bytes(best), cost(best), "joint")


def _widened(bits: Bits, table: SensitivityTable, cost: Cost, target: int) -> Bits:
    """The plan with layers a width wider, the best first, while they fit and cost less."""
    while True:
        fitting = [
            {**bits, n: b} for n in bits for b in _around(table.bits, bits[n], 1)
            if b > bits[n] and table.sizes.bytes({**bits, n: b}) <= target
        ]  # fmt: skip
        found = min(fitting, key=cost, default=bits)
        if cost(found) >= cost(bits):
            return bits
        bits = found
