from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdquant.entropy import CdfTables, gaussian_tables
from rdquant.files.container import Quantizer
from rdquant.latents import UniformScalar
from rdquant.latents.coding import TrellisCoding
from rdquant.latents.rates import SymbolRates
from rdquant.latents.rdoq import rdoq, rdoq_reference
from rdquant.latents.trellis import (
    TCQ4,
    TCQ8,
    Trellis,
    cost_of,
    quiet_bits,
    search,
    search_reference,
    tcq_tables,
)

LEVELS = gaussian_tables(np.array([0.2, 0.6, 1.5, 6.0, 0.15, 0.4, 1.0, 3.0]))
RATES = SymbolRates.of(LEVELS)


def test_rates_are_the_tables_bits() -> None:
    for symbol in (*range(-9, 10), 500, -70_000, 2**31 - 1):
        for table in range(len(LEVELS)):
            bits = LEVELS.bits(np.array([symbol]), np.array([table]))
            assert RATES.bits_of(symbol, table) == pytest.approx(bits, rel=1e-5)


@st.composite
def sequences(draw: st.DrawFn, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = draw(st.integers(1, longest))
    number = st.floats(-6, 6, width=32)
    residual = np.array(draw(st.lists(number, min_size=count, max_size=count)), np.float32)
    indexes = np.array(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), np.int32)
    weight = np.array(
        draw(st.lists(st.floats(0.0625, 20, width=32), min_size=count, max_size=count)), np.float32
    )
    return residual, indexes, weight


def _scalar_cost(levels: np.ndarray, r: np.ndarray, t: np.ndarray, w: np.ndarray) -> np.ndarray:
    bits = np.array([RATES.bits_of(int(k), int(i)) for k, i in zip(levels, t, strict=True)])
    return w * (r - levels) ** 2 + bits


@settings(deadline=None)
@given(sequences(40))
def test_rdoq_equals_its_reference_and_never_loses_to_rounding(s: tuple) -> None:
    r, t, w = s
    found = _scalar_cost(rdoq(r, t, w, RATES), r, t, w)
    assert found == pytest.approx(_scalar_cost(rdoq_reference(r, t, w, RATES), r, t, w), rel=1e-4)
    assert (found <= _scalar_cost(np.floor(r + 0.5).astype(np.int32), r, t, w) + 1e-3).all()


@pytest.mark.parametrize("quantizer", [Quantizer.TCQ4, Quantizer.TCQ8])
@settings(deadline=None)
@given(
    levels=st.lists(
        st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-4, 4), min_size=5, max_size=5), min_size=1
    )
)
def test_each_channel_comes_back_as_its_sequence(quantizer: Quantizer, levels: list[list[int]]) -> None:
    coding, codec = TrellisCoding(quantizer, 1), SimpleNamespace(quantizer=UniformScalar())
    symbols = np.array(levels, np.int32)[None, :, None]
    found = coding.dequantize(codec, symbols, np.zeros(symbols.shape)) * UniformScalar.unit
    for row, values in zip(levels, found[0, :, 0], strict=True):
        states = coding.trellis.states_of(np.array(row))
        clipped = [max(-(2**16), min(2**16, level)) for level in row]
        assert values.tolist() == [
            coding.trellis.reconstruct(level, state) for level, state in zip(clipped, states, strict=True)
        ]


@pytest.mark.parametrize("trellis", [TCQ4, TCQ8])
@settings(deadline=None, max_examples=40)
@given(s=sequences(5))
def test_viterbi_finds_the_cheapest_path(trellis: Trellis, s: tuple) -> None:
    r, t, w = s
    levels, cost = search(r, t, w, RATES, trellis)
    assert cost == pytest.approx(cost_of(levels, r, t, w, RATES, trellis), rel=1e-4)
    assert cost == pytest.approx(search_reference(r, t, w, RATES, trellis), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("trellis", [TCQ4, TCQ8])
@settings(deadline=None)
@given(scale=st.floats(0.0625, 2, width=32), weight=st.floats(0.0625, 4, width=32), seed=st.integers(0, 999))
def test_rows_of_quiet_errors_are_what_a_search_finds(
    trellis: Trellis, scale: float, weight: float, seed: int
) -> None:
    rates, random = SymbolRates.of(tcq_tables()), np.random.default_rng(seed)
    residual = (scale * random.standard_normal((3, 30))).astype(np.float32)
    indexes = random.integers(0, 24, residual.shape).astype(np.int32)
    coding = TrellisCoding(
        Quantizer.TCQ4 if trellis is TCQ4 else Quantizer.TCQ8, 256, np.full(3, 3.0), weight, 1.0
    )
    y, codec = residual[None, :, None], SimpleNamespace(quantizer=UniformScalar())
    found = coding.levels(codec, y, np.zeros_like(y), indexes[None, :, None])[0, :, 0]
    for levels, r, t in zip(found, residual, indexes, strict=True):
        w = np.full(len(r), weight, np.float32)
        expected, _ = search(r, t, w, rates, trellis)
        assert np.array_equal(levels, expected)
        quiet = (w * r**2 < quiet_bits(rates)[t]).all()
        assert not (quiet and levels.any())


def test_quiet_bits_are_of_every_level() -> None:
    rates, half = SymbolRates.of(tcq_tables()), len(tcq_tables()) // 2
    limits = quiet_bits(rates)
    for k in (0, 5, 17, 40):
        bits = [rates.bits_of(level, t) for level in range(-70, 71) if level for t in (k, k + half)]
        fine = rates.bits_of(0, k) <= rates.bits_of(0, k + half)
        assert limits[k] == pytest.approx(min(bits) - rates.bits_of(0, k) - 0.01 if fine else -1, abs=1e-4)
    assert (limits[:10] > 1).all()  # where most of a picture's elements are


@pytest.mark.parametrize("trellis", [TCQ4, TCQ8])
def test_state_machines_reach_every_state_and_halve_the_paths(trellis: Trellis) -> None:
    arrivals = [n for row in trellis.nexts for n in row]
    assert sorted(arrivals) == sorted(2 * list(range(len(trellis.nexts))))
    assert sorted(trellis.quantizer) == [0] * (len(trellis.quantizer) // 2) + [1] * (
        len(trellis.quantizer) // 2
    )


def test_long_sequences_stay_exact() -> None:
    random = np.random.default_rng(0)
    r = (4 * random.standard_normal(20_000)).astype(np.float32)
    t, w = random.integers(0, 4, 20_000).astype(np.int32), np.full(20_000, 0.8, np.float32)
    levels, _ = search(r, t, w, RATES, TCQ8)
    four, _ = search(r, t, w, RATES, TCQ4)
    whole = [cost_of(k, r, t, w, RATES, m) for k, m in ((levels, TCQ8), (four, TCQ4))]
    assert whole[0] < whole[1]  # more states cannot hurt on average


def test_tables_are_needed_for_both_quantizers() -> None:
    assert isinstance(LEVELS, CdfTables) and len(LEVELS) % 2 == 0


@given(st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(-40, 40)), min_size=1), st.data())
def test_bits_of_many_symbols_are_those_of_each(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    symbols = np.array([data.draw(st.sampled_from(pair)) for pair in pairs], np.int32)
    indexes = np.array([data.draw(st.integers(0, len(RATES.tables) - 1)) for _ in pairs], np.int32)
    expected = [RATES.bits_of(int(k), int(t)) for k, t in zip(symbols, indexes, strict=True)]
    np.testing.assert_allclose(RATES.of_symbols(symbols, indexes), expected, rtol=1e-6)
