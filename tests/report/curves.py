"""Curves made by a rule, for tests of reports."""

from __future__ import annotations

import math

from rdquant.measure import Curve, ImageResult, Point


def curve(name: str, factor: float, pictures: int = 5, dataset: str = "set") -> Curve:
    """Rates times ``factor`` at the same qualities."""
    points = []
    for rate in (0.2, 0.4, 0.8, 1.6):
        images = []
        for i in range(pictures):
            bpp = factor * rate * (1 + 0.2 * i)
            quality = 30 + 3 * math.log2(rate) + 0.3 * (i % 3)
            images.append(
                ImageResult(
                    f"p{i}.png", 64, 48, int(bpp * 384), bpp, None, quality, 0.95 + 0.01 * rate, 0.2, 0.1
                )
            )
        points.append(Point(f"q{rate}", {}, images))
    return Curve(name, dataset, points, {"command": "a test", "machine": {"cpu": "any"}})
