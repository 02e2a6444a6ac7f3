"""The arithmetic of the contract equals that of Python's integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdquant.errors import BadModel
from rdquant.graph.arithmetic import Multiplier, gdn, integer_root, requantize, squares


@given(st.integers(1, 2**32 - 1))
def test_root_is_the_integer_root(norm: int) -> None:
    assert int(integer_root(np.array(float(norm)))) == math.isqrt(norm << 10)


@given(x=st.integers(-(2**15), 2**15 - 1), norm=st.integers(1, 2**32 - 1), factor=st.floats(1e-6, 60_000))
def test_gdn_divides_like_integers(x: int, norm: int, factor: float) -> None:
    f = Multiplier.from_float(np.array([factor]))
    if int(f.shift[0]) > 30:
        return
    m, d = int(f.m[0]), math.isqrt(norm << 10) << int(f.shift[0])
    t = [np.full((1, 1, 1, 1), float(v)) for v in (x, norm)]
    expected = max(-200, min(200, (2 * x * m + d) // (2 * d)))
    assert gdn(*t, False, f, -200, 200).item() == expected


@given(acc=st.integers(-(2**36), 2**36), factor=st.floats(1e-9, 65_000))
def test_requantize_rounds_half_up(acc: int, factor: float) -> None:
    f = Multiplier.from_float(np.array([factor]))
    m, s = int(f.m[0]), int(f.shift[0])
    t = np.full((1, 1, 1, 1), float(acc))
    expected = max(-999, min(999, (acc * m + (1 << s >> 1)) >> s))
    assert requantize(t, f, -999, 999).item() == expected


@given(st.floats(1e-8, 65_535))
def test_multiplier_is_near_its_factor(factor: float) -> None:
    f = Multiplier.from_float(np.array([factor]))
    assert float(f.as_float()[0]) == pytest.approx(factor, rel=2**-16)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), 65_536.0])
def test_impossible_factors_are_refused(bad: float) -> None:
    with pytest.raises(BadModel):
        Multiplier.from_float(np.array([bad]))


def test_squares_saturate() -> None:
    x = np.array([0.0, 90, 91, -32768])
    assert squares(x).tolist() == [0, 0, 1, 65535]
