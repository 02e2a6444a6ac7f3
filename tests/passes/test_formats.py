from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdquant.errors import UsageError
from rdquant.passes.formats import (
    CODEBOOK_LIMIT,
    Levels,
    additive_power,
    affine,
    codebook,
    power_of_two,
    symmetric_levels,
    uniform,
)
from rdquant.passes.ranges import coded_scales


def _all(bits: int) -> list[Levels]:
    v = torch.randn(4000, generator=torch.Generator().manual_seed(bits)).clamp(-3, 3) / 3
    return [
        uniform(bits),
        affine(bits, -(2**bits) // 3),
        power_of_two(bits),
        additive_power(bits),
        codebook(bits, v, torch.ones_like(v)),
    ]


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_fit_their_bits_and_hold_zero(bits: int) -> None:
    for levels in _all(bits):
        values = levels.values.tolist()
        assert values == sorted(set(values)) and 0 in values
        assert 2 <= len(values) <= 2**bits, levels.name


@given(st.integers(2, 8), st.integers(0, 4), st.lists(st.floats(-5000, 5000), min_size=1, max_size=30))
def test_nearest_is_the_nearest_level(bits: int, which: int, values: list[float]) -> None:
    levels = _all(bits)[which]
    v = torch.tensor(values, dtype=torch.float64)
    q = levels.nearest(v)
    distance = (v[:, None] - levels.values.double()).abs()
    assert torch.equal((v - q).abs(), distance.amin(1))
    assert torch.equal(levels.values[levels.indexes(q)].double(), q)


def test_powers_are_powers_and_sums_of_two() -> None:
    assert power_of_two(4).values.tolist() == [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64]
    assert all(int(v).bit_count() <= 2 for v in additive_power(6).values.abs())


def test_codebook_beats_uniform_on_a_bell() -> None:
    v = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    v /= v.abs().max()
    book = codebook(4, v, torch.ones_like(v))
    errors = [float(((levels.nearest(v * top) / top - v) ** 2).mean()) for levels, top in
              ((book, CODEBOOK_LIMIT), (uniform(4), 7))]  # fmt: skip
    assert errors[0] < 0.6 * errors[1]


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="no level"):
        power_of_two(4).indexes(torch.tensor([3]))
    with pytest.raises(UsageError, match="-300"):
        affine(8, -300)
    with pytest.raises(UsageError, match="codebook"):
        symmetric_levels("codebook", 4)


def test_bytes_count_packed_indexes_and_levels() -> None:
    assert uniform(4).file_bytes(1001) == 501
    assert power_of_two(4).file_bytes(1001) == 501 + 2 * 15


def test_steps_of_coded_weights_follow_what_errors_cost() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 400, dtype=torch.float64) * torch.logspace(-1, 1, 6, dtype=torch.float64)[:, None]
    cost = torch.diag(torch.tensor([1.0, 4, 16, 1, 4, 16], dtype=torch.float64))
    levels = uniform(8)
    top = weight.abs().amax(1)
    for bits in (3, 5, 8):
        steps = coded_scales(weight, levels, bits, cost)
        assert bool((steps >= top / 127 - 1e-12).all())  # nothing is clipped
        free = steps > top / 127 * 1.001
        price = steps**2 * cost.diagonal()  # of an error of half a step
        if int(free.sum()) > 1:
            assert float(price[free].max() / price[free].min()) == pytest.approx(1)
    steps = coded_scales(weight, levels, 3, None)
    assert float(torch.log(steps).mean()) == pytest.approx(float(torch.log(top / 3).mean()))
    assert float(coded_scales(torch.zeros(2, 9), levels, 4, None).min()) > 0
