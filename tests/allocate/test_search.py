from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdquant.allocate import LayerSizes, Plan, SensitivityTable, fmpq, knapsack
from rdquant.allocate.search import uniform
from rdquant.errors import UsageError

BITS = (2, 3, 4, 5)


@st.composite
def tables(draw: st.DrawFn) -> SensitivityTable:
    layers = [f"g_a.{i}" for i in range(draw(st.integers(1, 4)))]
    number = st.floats(-0.01, 1.0)
    zeta = {n: {b: draw(number) for b in BITS} for n in layers}
    counts = {n: draw(st.integers(1, 5000)) for n in layers}
    return SensitivityTable(zeta, 1.0, _sizes(counts))


def _sizes(counts: dict[str, int], bits: tuple[int, ...] = BITS) -> LayerSizes:
    weights = {n: {b: -(-c * b // 8) for b in bits} for n, c in counts.items()}
    return LayerSizes(counts, weights, 100, 4 * sum(counts.values()) + 400)


def _all_plans(table: SensitivityTable) -> list[tuple[float, int]]:
    smooth = table.monotone()
    out = []
    for choice in itertools.product(BITS, repeat=len(table.layers)):
        bits = dict(zip(table.layers, choice, strict=True))
        out.append((sum(smooth.zeta[n][b] for n, b in bits.items()), table.sizes.bytes(bits)))
    return out


@settings(deadline=None, max_examples=60)
@given(tables(), st.floats(0, 1))
def test_knapsack_is_the_optimum_of_the_table(table: SensitivityTable, share: float) -> None:
    plans = _all_plans(table)
    sizes = [size for _, size in plans]
    target = int(min(sizes) + share * (max(sizes) - min(sizes)))
    found = knapsack(table, target)
    assert found.size <= target
    assert found.increase == pytest.approx(min(j for j, size in plans if size <= target), abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(tables(), st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_larger_targets_are_never_worse(table: SensitivityTable, shares: list[float]) -> None:
    smallest = uniform(table, BITS[0]).size
    largest = uniform(table, BITS[-1]).size
    targets = sorted(int(smallest + s * (largest - smallest)) for s in shares)
    for method in (knapsack, fmpq):
        costs = [method(table, t).increase for t in targets]
        assert all(b <= a + 1e-9 for a, b in itertools.pairwise(costs))


@settings(deadline=None, max_examples=60)
@given(tables(), st.floats(0, 1))
def test_fmpq_is_its_definition(table: SensitivityTable, share: float) -> None:
    """The least beta that fits: checked against a sweep over every value that zeta takes."""
    smallest, largest = uniform(table, BITS[0]).size, uniform(table, BITS[-1]).size
    target = int(smallest + share * (largest - smallest))
    plan, smooth = fmpq(table, target), table
    for beta in sorted({np.nextafter(z, np.inf) for row in smooth.zeta.values() for z in row.values()}):
        bits = {n: min((b for b, z in r.items() if z < beta), default=max(r)) for n, r in smooth.zeta.items()}
        if table.sizes.bytes(bits) <= target:
            assert plan.bits == bits and plan.beta == beta
            break
    assert plan.size <= target


def _table() -> SensitivityTable:
    zeta = {"g_a.0": {2: 0.5, 8: 0.0}, "g_s.0": {2: 0.1, 8: 0.001}}
    return SensitivityTable(zeta, 1.0, _sizes({"g_a.0": 800, "g_s.0": 800}, (2, 8)))


def test_impossible_target_names_the_smallest_size() -> None:
    for method in (knapsack, fmpq):
        with pytest.raises(UsageError, match=r"499 bytes is impossible.* 500 bytes"):
            method(_table(), 499)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("25%", 1700), ("5x", 1360), ("4bits", 900), ("1.5kB", 1500), ("1234", 1234), ("900B", 900)],
)
def test_targets(text: str, expected: int) -> None:
    assert _table().sizes.target(text) == expected


@pytest.mark.parametrize("text", ["", "big", "-5%", "0x", "5 y"])
def test_bad_targets_are_quoted(text: str) -> None:
    with pytest.raises(UsageError, match="a size is like"):
        _table().sizes.target(text)


def test_plans_and_tables_round_trip(tmp_path: Path) -> None:
    plan = knapsack(_table(), 1200)
    plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan
    assert plan.average_bits(_table().sizes.counts) == 5.0
    _table().save(tmp_path / "t.json")
    assert SensitivityTable.load(tmp_path / "t.json") == _table()
    for text in ("{", "[]", '{"version": 9}', '{"version": 1, "bits": 3}'):
        (tmp_path / "bad.json").write_text(text)
        for kind in (Plan, SensitivityTable):
            with pytest.raises(UsageError, match=r"bad\.json"):
                kind.load(tmp_path / "bad.json")


def test_widths_that_cannot_be_told_apart_follow_the_slope() -> None:
    zeta = {
        "g_a.0": {2: 0.4, 3: 0.1, 4: 0.02, 5: 0.03, 6: -0.001, 7: 1e-4},
        "g_s.0": {b: -0.1 for b in range(2, 8)},
    }
    sizes = _sizes({"g_a.0": 80, "g_s.0": 80}, tuple(range(2, 8)))
    smooth = SensitivityTable(zeta, 1.0, sizes).monotone().zeta
    assert [smooth["g_a.0"][b] for b in range(2, 8)] == pytest.approx([0.4, 0.1, 0.02, 0.02, 0.005, 0.00125])
    falling = list(smooth["g_s.0"].values())
    assert all(b < a for a, b in itertools.pairwise(falling)) and falling[-1] > 0
    everything = knapsack(SensitivityTable(zeta, 1.0, sizes), sizes.bytes({"g_a.0": 7, "g_s.0": 7}))
    assert set(everything.bits.values()) == {7}  # room is used, though nothing was measured to gain by it
