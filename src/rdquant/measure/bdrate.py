"""Bjontegaard delta: the average difference of two rate-distortion curves.

Log-rate is interpolated over quality (monotone PCHIP by default, or Akima) and integrated over the
quality interval that both curves cover (Bjontegaard 2001, with the interpolation that JCT-VC uses).
Points are means over the data set unless `bd_rate_per_image` is asked for: the two orders of
aggregation differ, so say which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..errors import CurveError
from .bootstrap import RESAMPLES, Interval, interval, mean_interval, percent_text
from .metrics import ms_ssim_db
from .results import Curve, ImageResult

Metric = Literal["psnr", "ms_ssim_db"]
Method = Literal["pchip", "akima"]


@dataclass(frozen=True)
class BDRate:
    """``percent``: rate of the test curve against the anchor at equal quality; negative saves rate."""

    percent: float
    low: float  #: the interval of quality that was compared, dB
    high: float
    anchor: str
    test: str
    anchor_points: int
    test_points: int
    metric: Metric
    method: Method
    interval: Interval | None = None  #: of percent, 95 %, bootstrap over pictures

    def text(self) -> str:
        """Percent with its interval, as tables show it."""
        return percent_text(self.percent, self.interval)


def bd_rate_points(
    anchor_rate: np.ndarray,
    anchor_quality: np.ndarray,
    rate: np.ndarray,
    quality: np.ndarray,
    method: Method = "pchip",
) -> tuple[float, float, float]:
    """``(percent, low, high)`` from plain arrays. Raises `CurveError` as `bd_rate` does."""
    from scipy.interpolate import Akima1DInterpolator, PchipInterpolator  # reading results does without

    curves = [
        _prepare(anchor_rate, anchor_quality, "anchor", method),
        _prepare(rate, quality, "test", method),
    ]
    low, high = max(q[0] for _, q in curves), min(q[-1] for _, q in curves)
    if low >= high:
        a, t = (f"{q[0]:.2f}..{q[-1]:.2f} dB" for _, q in curves)
        raise CurveError(f"the curves do not overlap in quality: anchor {a}, test {t}")
    kind = PchipInterpolator if method == "pchip" else Akima1DInterpolator
    areas = [float(kind(q, np.log(r)).integrate(low, high)) for r, q in curves]
    return 100 * (float(np.exp((areas[1] - areas[0]) / (high - low))) - 1), low, high


def _prepare(
    rate: np.ndarray, quality: np.ndarray, name: str, method: Method
) -> tuple[np.ndarray, np.ndarray]:
    r, q = np.asarray(rate, np.float64), np.asarray(quality, np.float64)
    least = 2 if method == "pchip" else 3
    if len(r) < least:
        raise CurveError(f"the {name} curve has {len(r)} point(s), {method} needs {least}")
    if not (np.isfinite(r).all() and np.isfinite(q).all() and (r > 0).all()):
        raise CurveError(f"the {name} curve has rates or qualities that are not positive and finite")
    order = np.argsort(r)
    r, q = r[order], q[order]
    if falls := np.flatnonzero((np.diff(q) <= 0) | (np.diff(r) <= 0)).tolist():
        i = falls[0]
        raise CurveError(
            f"the {name} curve is not monotone: {r[i]:.4f} bpp gives {q[i]:.3f} dB, "
            f"{r[i + 1]:.4f} bpp gives {q[i + 1]:.3f} dB"
        )
    return r, q


def _arrays(curve: Curve, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    quality = [getattr(p, metric) for p in curve.points]
    if None in quality:
        raise CurveError(f"{curve.name} has points without {metric}")
    return np.array([p.bpp for p in curve.points]), np.array(quality)


def _by_picture(curve: Curve, metric: Metric, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rates and qualities, ``(points, pictures)`` each."""

    def table(value: Callable[[ImageResult], float]) -> np.ndarray:
        rows = [{i.name: value(i) for i in p.images} for p in curve.points]
        return np.array([[row[name] for name in names] for row in rows])

    def quality(i: ImageResult) -> float:
        return i.psnr if metric == "psnr" else ms_ssim_db(i.ms_ssim if i.ms_ssim is not None else np.nan)

    return table(lambda i: i.bpp), table(quality)


def bd_rate(
    anchor: Curve,
    test: Curve,
    metric: Metric = "psnr",
    method: Method = "pchip",
    resamples: int = RESAMPLES,
) -> BDRate:
    """BD-rate of ``test`` against ``anchor``, on mean curves, with its confidence interval.

    ``resamples``: draws of the bootstrap (`rdquant.measure.bootstrap`), 0 for none.

    Raises `CurveError`: too few points, no overlap, not monotone, or different pictures.
    """
    _same_pictures(anchor, test)
    percent, low, high = bd_rate_points(*_arrays(anchor, metric), *_arrays(test, metric), method)
    names = [i.name for i in anchor.points[0].images]
    tables = [*_by_picture(anchor, metric, names), *_by_picture(test, metric, names)]

    def resampled(weights: np.ndarray) -> float | None:
        try:
            return bd_rate_points(*(t @ weights for t in tables), method)[0]  # type: ignore[call-arg]
        except CurveError:
            return None

    return BDRate(
        percent, low, high, anchor.name, test.name, len(anchor.points), len(test.points), metric, method,
        interval(resampled, len(names), resamples),
    )  # fmt: skip


def bd_rate_per_image(
    anchor: Curve,
    test: Curve,
    metric: Metric = "psnr",
    method: Method = "pchip",
    resamples: int = RESAMPLES,
) -> BDRate:
    """The same with one BD-rate per picture, then their mean; ``low`` and ``high`` are means too."""
    _same_pictures(anchor, test)
    results = []
    for name in [i.name for i in anchor.points[0].images]:
        pair = [
            replace(c, points=[replace(p, images=[i for i in p.images if i.name == name]) for p in c.points])
            for c in (anchor, test)
        ]
        results.append(bd_rate_points(*_arrays(pair[0], metric), *_arrays(pair[1], metric), method))
    percent, low, high = (float(np.mean(column)) for column in zip(*results, strict=True))
    return BDRate(
        percent, low, high, anchor.name, test.name, len(anchor.points), len(test.points), metric, method,
        mean_interval([r[0] for r in results], resamples) if resamples else None,
    )  # fmt: skip


def _same_pictures(anchor: Curve, test: Curve) -> None:
    sets: list[set[str]] = [{i.name for i in p.images} for c in (anchor, test) for p in c.points]
    if not sets or not sets[0]:
        raise CurveError("a curve without points or pictures")
    if different := sorted(set[str]().union(*sets) - sets[0].intersection(*sets)):
        raise CurveError(
            f"the curves are of different pictures; not in all points: {', '.join(different[:5])}"
        )
