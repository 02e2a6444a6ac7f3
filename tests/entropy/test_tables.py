from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdquant.entropy import (
    CdfTables,
    gaussian_tables,
    pmf_tables,
    quantize_pmf,
    scale_boundaries,
    scale_table,
)
from rdquant.errors import BadModel, UsageError

TABLES = gaussian_tables(scale_table(8, 0.11, 20))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=60).filter(lambda p: sum(p) > 1e-3))
def test_quantized_pmf_is_a_cdf_without_empty_intervals(weights: list[float]) -> None:
    pmf = np.array(weights) / sum(weights)
    cdf = quantize_pmf(pmf)
    assert cdf[0] == 0 and cdf[-1] == 65536 and (np.diff(cdf) >= 1).all()
    large = pmf > 0.01
    assert np.abs(np.diff(cdf)[large] / 65536 - pmf[large]).max(initial=0) < 0.002


def test_quantized_pmf_is_compressais(rng: np.random.Generator) -> None:
    folder = os.environ.get("RDQUANT_COMPRESSAI_DIR")
    if folder is None:
        package = importlib.util.find_spec("compressai")
        folder = next(iter((package and package.submodule_search_locations) or ()), "/nonexistent")
    library = next(Path(folder).glob("_CXX.*.so"), None)
    if library is None:
        pytest.skip("compressai is not installed")
    spec = importlib.util.spec_from_file_location("_CXX", library)
    assert spec and spec.loader
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    for concentration in (0.01, 0.1, 1.0, 10.0):
        for _ in range(200):
            pmf = rng.dirichlet(np.full(int(rng.integers(2, 300)), concentration)).astype(np.float32)
            assert quantize_pmf(pmf).tolist() == native.pmf_to_quantized_cdf(pmf.tolist(), 16)
    for scale in scale_table():
        distance = np.arange(-3 * int(scale) - 3, 3 * int(scale) + 4) / scale
        pmf = (np.exp(-0.5 * distance**2) / (scale * np.sqrt(2 * np.pi))).astype(np.float32)
        assert quantize_pmf(pmf).tolist() == native.pmf_to_quantized_cdf(pmf.tolist(), 16)


def test_quantize_pmf_rounds_in_float64() -> None:
    """Fixed: tables rebuilt at load must stay those that existing files were coded with."""
    pmf = np.array([32768, 10.5 - 1e-9, 32758]) / 65536  # 10.5 in float32, which would give 11
    assert np.diff(quantize_pmf(pmf)).tolist() == [32768, 10, 32758]


@pytest.mark.parametrize("bad", [[np.nan, 0.5], [-0.1, 1.1], [1.0], [0.0, 0.0], [1e300, 1.0], [np.inf, 1.0]])
def test_quantize_pmf_refuses_what_is_no_probability(bad: list[float]) -> None:
    with pytest.raises(BadModel):
        quantize_pmf(np.array(bad))


def test_gaussian_tables_have_gaussian_probabilities() -> None:
    t = list(scale_table(8, 0.11, 20)).index(pytest.approx(20))
    cdf = TABLES.cdf[TABLES.starts[t] : TABLES.starts[t + 1]] / 65536
    centre = -TABLES.offsets[t]
    assert cdf[centre + 1] - cdf[centre] == pytest.approx(1 / (20 * np.sqrt(2 * np.pi)), rel=0.01)


def test_scale_boundaries_lie_between_scales() -> None:
    scales = scale_table()
    assert len(scales) == 64 and scales[0] == pytest.approx(0.11) and scales[-1] == pytest.approx(256)
    b = scale_boundaries(scales)
    assert (scales[:-1] < b).all() and (b < scales[1:]).all()


def test_bits_match_a_hand_calculation() -> None:
    tables = pmf_tables([np.array([0.5, 0.25])], [-3], [0.25])
    tables.validate()
    assert tables.bits(np.array([-3, -2]), np.array([0, 0])) == pytest.approx(3.0, abs=1e-3)
    # escapes: 2 bits for the interval, a nibble for the count, and those of 2 v above, -2 v - 1 below
    for symbol, nibbles in [(-1, 0), (0, 1), (7, 2), (-4, 1), (-11, 1), (-12, 2)]:
        bits = tables.bits(np.array([symbol]), np.array([0]))
        assert bits == pytest.approx(2 + 4 + 4 * nibbles, abs=1e-3), symbol
    with pytest.raises(UsageError, match="2 symbols"):
        tables.bits(np.zeros(2, int), np.zeros(1, int))


def test_index_outside_the_tables_is_refused() -> None:
    with pytest.raises(UsageError, match=r"8"):
        TABLES.check_indexes(np.array([0, 8]))


def _damaged(**fields: np.ndarray) -> CdfTables:
    return replace(TABLES, **fields)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (_damaged(cdf=TABLES.cdf.astype(np.int64)), "int32"),
        (_damaged(offsets=TABLES.offsets[:-1]), "starts"),
        (_damaged(starts=TABLES.starts[::-1].copy()), "starts"),
        (
            _damaged(
                cdf=np.where(np.arange(len(TABLES.cdf)) == 2, TABLES.cdf[1], TABLES.cdf).astype(np.int32)
            ),
            "rise",
        ),
        (_damaged(cdf=np.where(TABLES.cdf == 65536, 65535, TABLES.cdf).astype(np.int32)), "65536"),
        (_damaged(offsets=np.full_like(TABLES.offsets, 2**30)), "offsets"),
        (_damaged(offsets=np.zeros(2**16 + 1, np.int32)), "at most 65536"),
    ],
)
def test_validate_names_each_lie(tables: CdfTables, message: str) -> None:
    with pytest.raises(BadModel, match=message):
        tables.validate()
