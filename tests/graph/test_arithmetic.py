"""The arithmetic of the contract equals that of Python's integers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdquant.errors import BadModel
from rdquant.graph.arithmetic import Multiplier, gdn, integer_root, requantize, squares


@given(st.integers(1, 2**32 - 1))
def test_root_is_the_integer_root(norm: int) -> None:
    assert int(integer_root(torch.tensor(float(norm), dtype=torch.float64))) == math.isqrt(norm << 10)


@given(x=st.integers(-(2**15), 2**15 - 1), norm=st.integers(1, 2**32 - 1), factor=st.floats(1e-6, 60_000))
def test_gdn_divides_like_integers(x: int, norm: int, factor: float) -> None:
    f = Multiplier.from_float(torch.tensor([factor], dtype=torch.float64))
    if int(f.shift[0]) > 30:
        return
    m, d = int(f.m[0]), math.isqrt(norm << 10) << int(f.shift[0])
    t = [torch.tensor(float(v), dtype=torch.float64).reshape(1, 1, 1, 1) for v in (x, norm)]
    expected = max(-200, min(200, (2 * x * m + d) // (2 * d)))
    assert int(gdn(*t, False, f, -200, 200)) == expected


@given(acc=st.integers(-(2**36), 2**36), factor=st.floats(1e-9, 65_000))
def test_requantize_rounds_half_up(acc: int, factor: float) -> None:
    f = Multiplier.from_float(torch.tensor([factor], dtype=torch.float64))
    m, s = int(f.m[0]), int(f.shift[0])
    t = torch.tensor(float(acc), dtype=torch.float64).reshape(1, 1, 1, 1)
    expected = max(-999, min(999, (acc * m + (1 << s >> 1)) >> s))
    assert int(requantize(t, f, -999, 999)) == expected


@given(st.floats(1e-8, 65_535))
def test_multiplier_is_near_its_factor(factor: float) -> None:
    f = Multiplier.from_float(torch.tensor([factor], dtype=torch.float64))
    assert float(f.as_float()[0]) == pytest.approx(factor, rel=2**-16)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), 65_536.0])
def test_impossible_factors_are_refused(bad: float) -> None:
    with pytest.raises(BadModel):
        Multiplier.from_float(torch.tensor([bad], dtype=torch.float64))


def test_squares_saturate() -> None:
    x = torch.tensor([0.0, 90, 91, -32768], dtype=torch.float64)
    assert squares(x).tolist() == [0, 0, 1, 65535]
