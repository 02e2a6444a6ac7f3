"""How far a mean over pictures would move with other pictures: percentile bootstrap (Efron 1979).

Pictures are drawn with replacement, as many as there are, and each time the figure is computed anew; what
95 of 100 draws lie between is the interval. Curves that are compared share their draws, so that pictures
hard for both do not count as a difference. Draws are the same in every run. An interval says what *pictures
like these* would give, and nothing of other kinds of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95

Interval = tuple[float, float]


def percent_text(value: float, interval: Sequence[float] | None, unit: float = 1.0) -> str:
    """A figure with its interval, if it has one, as tables show it; ``unit``: percent of one of ``value``."""
    text = f"{unit * value:+.2f} %"
    return text if interval is None else f"{text} [{unit * interval[0]:+.2f}, {unit * interval[1]:+.2f}]"


def draws(pictures: int, resamples: int = RESAMPLES) -> np.ndarray:
    """``(resamples, pictures)``: how often each picture is in each draw."""
    return np.random.default_rng(0).multinomial(pictures, np.full(pictures, 1 / pictures), resamples)


def interval_of(values: Sequence[float], least: int = 2) -> Interval | None:
    """What `LEVEL` of the values lie between, or None of fewer than ``least``."""
    if len(values) < least:
        return None
    edge = 50 * (1 - LEVEL)
    low, high = np.percentile(np.asarray(values, np.float64), [edge, 100 - edge])
    return float(low), float(high)


def mean_interval(values: Sequence[float | None], resamples: int = RESAMPLES) -> Interval | None:
    """Of the mean of one value a picture. None if there are fewer than two."""
    known = np.array([v for v in values if v is not None], np.float64)
    if len(known) < 2:
        return None
    return interval_of(list(draws(len(known), resamples) @ known / len(known)))


def interval(figure: Callable[[np.ndarray], float | None], pictures: int, resamples: int) -> Interval | None:
    """Of any figure: ``figure(weights)`` of pictures, which add to one; None where it has none.

    None if more than one of twenty draws has none, or there are fewer than two pictures.
    """
    if pictures < 2 or not resamples:
        return None
    found = [figure(counts / pictures) for counts in draws(pictures, resamples)]
    return interval_of([f for f in found if f is not None], max(2, round(LEVEL * resamples)))
