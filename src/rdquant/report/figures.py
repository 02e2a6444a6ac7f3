"""Figures as Plotly takes them: plain data, whose colours of text and ground the page sets by its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..measure import Curve
from ..measure.bdrate import Metric
from .inputs import Inputs

#: Okabe and Ito's, told apart by every kind of colour vision, on light and on dark
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a", "#b8a800")
MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
#: a figure shows rates up to those of its first curve times this; zooming out shows the rest
REACH = 1.5
QUALITY: dict[Metric, str] = {"psnr": "PSNR (dB)", "ms_ssim_db": "MS-SSIM (dB)"}


@dataclass(frozen=True)
class Figure:
    """``name``: of its files. ``traces``, ``layout``: of Plotly. ``caption``: for screen readers, too."""

    name: str
    caption: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]


def _axes(x: str, y: str) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}


def _line(i: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "line": {"color": COLOURS[i % len(COLOURS)], "width": 2},
        "marker": {"symbol": MARKERS[i % len(MARKERS)], "size": 8},
        **more,
    }


def _hover(curve: Curve) -> list[str]:
    texts = []
    for p in sorted(curve.points, key=lambda p: p.bpp):
        parts = [f"{curve.name}, {p.label}", f"{p.bpp:.4f} bpp", f"{p.psnr:.2f} dB"]
        if interval := p.interval("psnr"):
            parts[-1] += f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        if p.ms_ssim is not None:
            parts.append(f"MS-SSIM {p.ms_ssim:.4f}")
        texts.append("<br>".join(parts))
    return texts


def rate_distortion(dataset: str, curves: Sequence[Curve], metric: Metric) -> Figure | None:
    """One line for each curve, or None if none has the metric."""
    traces = []
    for i, curve in enumerate(curves):
        points = sorted((p.bpp, getattr(p, metric)) for p in curve.points)
        if points and all(q is not None for _, q in points):
            x, y = zip(*points, strict=True)
            line = _line(i, name=curve.name, x=x, y=y, hovertext=_hover(curve), hoverinfo="text")
            traces.append(line)
    if not traces:
        return None
    layout = _axes("rate (bits per pixel)", QUALITY[metric])
    edge = REACH * max(p.bpp for p in curves[0].points)
    seen = [y for t in traces for x, y in zip(t["x"], t["y"], strict=True) if x <= edge]
    for axis, low, high in (("xaxis", 0, edge), ("yaxis", min(seen) - 0.5, max(seen) + 0.5)):
        layout[axis]["range"] = [low, high]
    count = len(curves[0].points[0].images)
    caption = f"{QUALITY[metric]} against rate on {dataset}: means of {count} pictures, bytes of whole files."
    return Figure(f"{dataset}-{metric}", caption, traces, layout)


def bits(plans: dict[str, dict[str, int]]) -> Figure:
    """Width of the weights of each layer, a line of steps for each plan."""
    traces = [
        _line(i, name=name, x=list(plan), y=list(plan.values()))
        | {"line": {"color": COLOURS[i % len(COLOURS)], "shape": "hvh"}}
        for i, (name, plan) in enumerate(plans.items())
    ]
    return Figure("bits", "Bits of the weights of each layer.", traces, _axes("layer", "bits"))


def sensitivity(name: str, table: dict[str, dict[int, float]]) -> Figure:
    """What each layer at each width does to J; the logarithm decides the colour."""
    widths = sorted({bits for row in table.values() for bits in row})
    values = [[row.get(b) for row in table.values()] for b in widths]
    log = [[None if v is None else math.log10(max(abs(v), 1e-7)) for v in row] for row in values]
    text = [["" if v is None else f"{100 * v:+.3g} %" for v in row] for row in values]
    heat = {
        "type": "heatmap", "x": list(table), "y": [f"{b} bits" for b in widths], "z": log, "text": text,
        "hovertemplate": "%{x}, %{y}: J %{text}<extra></extra>", "colorscale": "Cividis",
        "colorbar": {"title": {"text": "log10 of J's increase"}},
    }  # fmt: skip
    caption = f"{name}: relative increase of J when one layer alone has so many bits."
    return Figure(f"sensitivity-{name}", caption, [heat], _axes("layer", ""))


def cost(traces: dict[str, list[dict[str, Any]]]) -> Figure:
    """J over the steps of each search."""
    lines = [
        _line(
            i, name=name, x=list(range(len(entries))), y=[e["J"] for e in entries],
            hovertext=[f"{e.get('unit', '')}: J {e['J']:.4f}" for e in entries], hoverinfo="text",
        )
        for i, (name, entries) in enumerate(traces.items())
    ]  # fmt: skip
    return Figure("cost", "J while integers are searched.", lines, _axes("entry of the trace", "J"))


def all_figures(inputs: Inputs) -> list[Figure]:
    found: list[Figure | None] = []
    for dataset in dict.fromkeys(c.dataset for c in inputs.curves):
        curves = [c for c in inputs.curves if c.dataset == dataset]
        found += [rate_distortion(dataset, curves, metric) for metric in QUALITY]
    found += [bits(inputs.plans)] if inputs.plans else []
    found += [sensitivity(name, table) for name, table in inputs.sensitivity.items()]
    found += [cost(inputs.traces)] if inputs.traces else []
    return [f for f in found if f is not None]
