"""Figures, with matplotlib (extra `report`)."""

from __future__ import annotations

import io
from typing import Any

from ..errors import UsageError

_COLOURS = ("#1f5fa8", "#d1495b", "#5b8c3a", "#8a5aa8", "#c98a1b", "#3c8f8f", "#777777")
_MARKERS = "osD^v<>"


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise UsageError("figures need matplotlib: pip install 'rdquant[report]'") from None
    return pyplot


def _finished(figure: Any, axes: Any, title: str, grid: str = "both", **legend: Any) -> Any:
    """What all figures here share."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(axis=grid, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, **legend)
    figure.tight_layout()
    return figure


def ablation_figure(name: str, columns: list[str], rows: list[list[Any]]) -> Any:
    """Grouped bars of one table of `rdquant.study.ablation`: a group per column, a bar per row."""
    figure, axes = _pyplot().subplots(figsize=(7.2, 4.2), dpi=130)
    width = 0.8 / max(1, len(rows))
    for i, (label, *values) in enumerate(rows):
        at = [k + (i - (len(rows) - 1) / 2) * width for k in range(len(values))]
        heights = [0.0 if v is None else v for v in values]
        axes.bar(at, heights, width * 0.92, label=label, color=_COLOURS[i % len(_COLOURS)])
    axes.set_xticks(range(len(columns) - 1), columns[1:])
    axes.set_ylabel("% more rate at equal PSNR")
    axes.set_yscale("symlog", linthresh=1)
    axes.axhline(0, color="#333333", linewidth=0.8)
    return _finished(figure, axes, name, "y", fontsize=8)


def lines_figure(lines: dict[str, list[tuple[float, float]]], title: str, across: str, up: str) -> Any:
    """By name, points of (x, y)."""
    figure, axes = _pyplot().subplots(figsize=(7.2, 4.2), dpi=130)
    for i, (name, points) in enumerate(lines.items()):
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, marker=_MARKERS[i], color=_COLOURS[i], label=name, linewidth=1.6, markersize=5)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return _finished(figure, axes, title)


def pareto_figure(fronts: dict[str, list[tuple[float, float]]], title: str = "") -> Any:
    """Loss against size: by name, points of (times smaller than float32, BD-rate in percent)."""
    across, up = "times smaller than float32 (model files)", "BD-rate against float (%)"
    figure = lines_figure(fronts, title, across, up)
    figure.axes[0].set_yscale("symlog", linthresh=1)
    return figure


def bits_figure(plans: dict[str, dict[str, int]], title: str = "") -> Any:
    """Width of each layer, one line of steps per plan: by name, bits by layer."""
    figure, axes = _pyplot().subplots(figsize=(7.2, 3.6), dpi=130)
    layers = list(next(iter(plans.values())))
    for i, (name, bits) in enumerate(plans.items()):
        axes.plot(
            range(len(layers)), [bits[n] for n in layers], drawstyle="steps-mid", marker=_MARKERS[i],
            color=_COLOURS[i], label=name, linewidth=1.4, markersize=4,
        )  # fmt: skip
    axes.set_xticks(range(len(layers)), layers, rotation=45, fontsize=8)
    axes.set_ylabel("bits")
    return _finished(figure, axes, title, "y", fontsize=8, ncols=len(plans))


def to_png(figure: Any) -> bytes:
    """The figure as a PNG file; the figure is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pyplot.close(figure)
    return buffer.getvalue()
