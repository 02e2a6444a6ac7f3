"""From a sensitivity table to a plan: FMPQ's tolerance, and the exact optimum of the same table.

Both take no further model evaluation, so a second target size costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from ..errors import UsageError
from .plan import Plan
from .table import SensitivityTable


def uniform(table: SensitivityTable, bits: int) -> Plan:
    """Every layer at the same width: the anchor of all comparisons."""
    return _plan(table, dict.fromkeys(table.layers, bits), "uniform")


def fmpq(table: SensitivityTable, target: int) -> Plan:
    """The lowest widths with ``zeta < beta``, for the least beta whose size is at most ``target`` bytes.

    Algorithm 1 of FMPQ (Hossain, Duan and Zhu 2024, arXiv 2506.01221), on the zetas as they were measured:
    each layer on its own takes the lowest b with ``zeta_n(b) = (RD_n(b) - RD) / RD < beta``, and the widest
    if none has. The adaptive search for beta was not readable; sizes fall with beta in steps, and only at the
    zetas themselves, so that the exact beta is found among them. Departures: sizes are those of files, not
    weights times bits. Raises `UsageError` when even the smallest widths are too large.
    """
    check_target(table, target)

    def at(beta: float) -> dict[str, int]:
        return {
            n: min((b for b, z in row.items() if z < beta), default=max(row)) for n, row in table.zeta.items()
        }

    values = sorted({z for row in table.zeta.values() for z in row.values()})
    candidates = [np.nextafter(v, np.inf) for v in values]
    low, high = 0, len(candidates) - 1
    while low < high:  # sizes fall with beta: bisection over the candidates is exact
        middle = (low + high) // 2
        if table.sizes.bytes(at(candidates[middle])) <= target:
            high = middle
        else:
            low = middle + 1
    return _plan(table, at(candidates[low]), "fmpq", float(candidates[low]))


def knapsack(table: SensitivityTable, target: int) -> Plan:
    """The plan with the least sum of zetas among all that fit: a multiple-choice knapsack, solved exactly.

    Integer program by scipy's milp (HiGHS). Raises `UsageError` for an impossible target.
    """
    check_target(table, target)
    smooth = table.monotone()
    options = [(n, b) for n, row in smooth.zeta.items() for b in row]
    cost = np.array([smooth.zeta[n][b] for n, b in options])
    size = np.array([table.sizes.weights[n][b] for n, b in options])
    one = np.array([[float(n == layer) for n, _ in options] for layer in smooth.layers])
    # equal costs: the smaller file; a millionth of a byte's worth of J decides nothing else
    objective = cost + 1e-12 * size
    room = target - table.sizes.fixed
    found = milp(
        # scaled: HiGHS ends within 1e-6 of the best, whatever the objective's size
        1e4 * objective / max(float(np.abs(objective).max()), 1e-30),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(size.reshape(1, -1), -np.inf, room)],
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        # its presolve prints to standard output, in the middle of what --json prints (scipy 1.17)
        options={"mip_rel_gap": 0.0, "presolve": False},
    )
    if found.x is None:
        raise UsageError(f"no plan found for {target} bytes: {found.message}")
    picked = dict(option for option, x in zip(options, found.x, strict=True) if x > 0.5)
    return _plan(table, _filled(smooth, picked, target), "knapsack")


def _filled(table: SensitivityTable, bits: dict[str, int], target: int) -> dict[str, int]:
    """The plan with layers widened while that fits and gains: by less than the solver's tolerance."""
    bits = dict(bits)
    while True:
        best: tuple[float, str, int] | None = None
        room = target - table.sizes.bytes(bits)
        for name, b in bits.items():
            for wider in (w for w in table.zeta[name] if w > b):
                more = table.sizes.weights[name][wider] - table.sizes.weights[name][b]
                gain = table.zeta[name][b] - table.zeta[name][wider]
                if more <= room and gain > 0 and (best is None or gain > best[0]):
                    best = gain, name, wider
        if best is None:
            return bits
        bits[best[1]] = best[2]


def check_target(table: SensitivityTable, target: int) -> None:
    """Raise `UsageError` naming the smallest possible size if ``target`` is below it."""
    smallest = table.sizes.bytes({n: min(row) for n, row in table.zeta.items()})
    if target < smallest:
        share = 100 * smallest / table.sizes.float_bytes
        raise UsageError(
            f"{target} bytes is impossible: with every layer at its fewest bits (at least {min(table.bits)}) "
            f"the file still takes {smallest} bytes ({share:.1f} % of the float model)"
        )


def _plan(table: SensitivityTable, bits: Mapping[str, int], method: str, beta: float | None = None) -> Plan:
    smooth = table.monotone()
    increase = sum(smooth.zeta[n][b] for n, b in bits.items())
    return Plan(dict(bits), table.sizes.bytes(bits), increase, method, beta)
