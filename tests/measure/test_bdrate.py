from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdquant.errors import CurveError
from rdquant.measure import Curve, ImageResult, Point, bd_rate, bd_rate_per_image, bd_rate_points

RATE = np.array([0.1, 0.25, 0.5, 0.9])
QUALITY = np.array([27.0, 30.0, 33.0, 36.0])


@pytest.mark.parametrize("method", ["pchip", "akima"])
def test_a_tenth_less_rate_is_minus_ten_percent(method: str) -> None:
    percent, low, high = bd_rate_points(RATE, QUALITY, 0.9 * RATE, QUALITY, method)  # type: ignore[arg-type]
    assert percent == pytest.approx(-10) and (low, high) == (27, 36)


def test_log_linear_curves_by_hand() -> None:
    # quality = 10 log2(rate) and 10 log2(rate) + 5: half a doubling apart
    a, b = 10 * np.log2(RATE), 10 * np.log2(RATE) + 5
    assert bd_rate_points(RATE, a, RATE, b)[0] == pytest.approx(100 * (2**-0.5 - 1))


curves = st.tuples(
    st.lists(st.floats(0.1, 1.0), min_size=4, max_size=6),
    st.lists(st.floats(0.5, 4.0), min_size=6, max_size=6),
).map(lambda t: (np.cumsum(t[0]), 25 + np.cumsum(t[1][: len(t[0])])))


@given(curves, curves)
def test_swapping_inverts(a: tuple, b: tuple) -> None:
    assert bd_rate_points(*a, *a)[0] == pytest.approx(0, abs=1e-9)
    try:
        forth, back = bd_rate_points(*a, *b)[0], bd_rate_points(*b, *a)[0]
    except CurveError:
        return
    assert (1 + forth / 100) * (1 + back / 100) == pytest.approx(1)


def test_clear_errors() -> None:
    with pytest.raises(CurveError, match=r"do not overlap.*27.00..36.00.*47.00..56.00"):
        bd_rate_points(RATE, QUALITY, RATE, QUALITY + 20)
    with pytest.raises(
        CurveError, match=r"not monotone: 0.2500 bpp gives 30.000 dB, 0.5000 bpp gives 29.000"
    ):
        bd_rate_points(RATE, QUALITY, RATE, np.array([27.0, 30, 29, 36]))
    with pytest.raises(CurveError, match="1 point"):
        bd_rate_points(RATE, QUALITY, RATE[:1], QUALITY[:1])


def _curve(name: str, factor: float, names: tuple[str, ...] = ("a", "b")) -> Curve:
    def image(n: str, r: float, q: float) -> ImageResult:
        rate = factor * r * (2 if n == "b" else 1)
        return ImageResult(n, 8, 8, int(rate * 8), rate, None, q, None, None, None)

    points = [Point(str(r), {}, [image(n, r, q) for n in names]) for r, q in zip(RATE, QUALITY, strict=True)]
    return Curve(name, "set", points, {})


def test_curves_and_aggregation() -> None:
    result = bd_rate(_curve("anchor", 1), _curve("test", 0.8))
    assert result.percent == pytest.approx(-20) and result.anchor == "anchor"
    assert bd_rate_per_image(_curve("anchor", 1), _curve("test", 0.8)).percent == pytest.approx(-20)
    with pytest.raises(CurveError, match="c"):
        bd_rate(_curve("anchor", 1), _curve("test", 1, ("a", "c")))
    with pytest.raises(CurveError, match="ms_ssim_db"):
        bd_rate(_curve("anchor", 1), _curve("test", 1), "ms_ssim_db")


@pytest.mark.parametrize("method", ["pchip", "akima"])
def test_it_is_that_of_the_bjontegaard_package(method: str) -> None:
    bjontegaard = pytest.importorskip("bjontegaard")
    rng = np.random.default_rng(3)
    for _ in range(200):
        n, m = rng.integers(4, 9, 2)
        a, t = np.cumsum(rng.uniform(0.05, 0.5, n)), np.cumsum(rng.uniform(0.05, 0.5, m))
        qa, qt = 27 + np.cumsum(rng.uniform(0.3, 3, n)), 27 + np.cumsum(rng.uniform(0.3, 3, m))
        theirs = bjontegaard.bd_rate(
            a, qa, t, qt, method=method, require_matching_points=False, min_overlap=0
        )
        ours, _, _ = bd_rate_points(a, qa, t, qt, method)  # type: ignore[arg-type]
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
