"""Confidence intervals: they hold what they should, and say nothing where there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest

from rdquant.measure import Curve, ImageResult, Point, bd_rate
from rdquant.measure.bootstrap import draws, interval, mean_interval, percent_text


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(30, 2, 400)
    low, high = mean_interval(list(values)) or (0, 0)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_it_holds_the_truth_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(2), 0
    for _ in range(300):
        low, high = mean_interval(list(rng.normal(0, 1, 40)), 400) or (0, 0)
        held += low <= 0 <= high
    assert 0.90 < held / 300 < 0.98


def test_what_cannot_have_one_has_none() -> None:
    assert mean_interval([3.0]) is None and mean_interval([None, None]) is None
    assert interval(lambda w: None, 5, 100) is None
    assert interval(lambda w: float(w[0]) if w[0] < 0.7 else None, 5, 100) is not None
    assert (draws(7).sum(1) == 7).all() and np.array_equal(draws(7), draws(7))


def test_figures_are_written_alike() -> None:
    assert percent_text(0.144, (0.06, 0.226)) == "+0.14 % [+0.06, +0.23]"
    assert percent_text(-0.0144, [-0.02, 0.0], 100) == "-1.44 % [-2.00, +0.00]"
    assert percent_text(3, None) == "+3.00 %"


def _curve(name: str, factors: np.ndarray) -> Curve:
    """Pictures of very different rates; each needs its factor more than the anchor's."""
    points = []
    for rate, quality in ((0.2, 28.0), (0.4, 31.0), (0.8, 34.0), (1.2, 36.0)):
        images = [
            ImageResult(f"{i}", 8, 8, 8, f * rate * (1 + i), None, quality + i, None, None, None)
            for i, f in enumerate(factors)
        ]
        points.append(Point(f"{rate}", {}, images))
    return Curve(name, "set", points)


def test_paired_draws_see_no_difference_between_pictures_of_different_rates() -> None:
    anchor = _curve("a", np.ones(24))
    found = bd_rate(anchor, _curve("t", np.full(24, 1.1)))
    assert found.interval is not None
    assert found.interval == pytest.approx((10, 10), abs=1e-6)
    mixed = bd_rate(anchor, _curve("t", 1 + 0.2 * (np.arange(24) % 2)))
    assert mixed.interval is not None and mixed.interval[0] < mixed.percent < mixed.interval[1]
    assert mixed.interval[1] - mixed.interval[0] > 2
    assert bd_rate(anchor, _curve("t", np.ones(24)), resamples=0).interval is None
    assert mixed.text().endswith("]")
