"""The report's files: a page, and figures as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..files.atomic import atomic_write
from ..measure import machine
from . import tables
from .figures import Figure, all_figures
from .inputs import Inputs
from .matched import Matched
from .page import Page


def write_report(
    inputs: Inputs,
    out: Path,
    title: str = "rdquant report",
    intro: str = "",
    compared: Sequence[Matched] = (),
    extra: Sequence[tables.Table] = (),
) -> Path:
    """``out/index.html`` and one SVG for each figure; returns the page's path.

    ``extra``: tables that come first. Raises `UsageError` without Plotly or matplotlib.
    """
    page = Page(title, intro)
    for table in extra:
        page.table(table)
    if compared:
        page.heading("Side by side")
        page.compare(compared)
    figures = all_figures(inputs)
    if figures:
        page.heading("Curves and layers")
        for figure in figures:
            page.figure(figure)
    for dataset in dict.fromkeys(c.dataset for c in inputs.curves):
        curves = [c for c in inputs.curves if c.dataset == dataset]
        page.heading(f"Numbers on {dataset}")
        if len(curves) > 1:
            page.table(tables.bd_matrix(dataset, curves))
        page.table(tables.means(dataset, curves), sortable=True)
        page.table(tables.pictures(dataset, curves), sortable=True, folded=True)
    for curve in inputs.curves:
        about = curve.meta.get("machine", {})
        where = ", ".join(
            f"{k} {about[k]}" for k in ("cpu", "threads", "torch", "rdquant", "date") if k in about
        )
        page.note(f"{curve.name} on {curve.dataset}: {curve.meta.get('command', '')} ({where})")
    page.note(f"Written by rdquant {machine()['rdquant']}, {machine()['date']}.")
    out.mkdir(parents=True, exist_ok=True)
    write_svgs(figures, out)
    path = out / "index.html"
    page.write(path)
    return path


def write_svgs(figures: Sequence[Figure], out: Path) -> None:
    """Each as ``NAME.svg``, by matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UsageError("figures need matplotlib: pip install 'rdquant[report]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rdquant"}):
        for figure in figures:
            drawn, axes = pyplot.subplots(figsize=(7.2, 4.4))
            _draw(axes, figure)
            drawn.tight_layout()
            with atomic_write(out / f"{figure.name}.svg") as handle:
                drawn.savefig(handle, format="svg", metadata={"Date": None})
            pyplot.close(drawn)


_MARKS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "cross": "P",
    "x": "X", "star": "*",
}  # fmt: skip


def _draw(axes, figure: Figure) -> None:  # type: ignore[no-untyped-def]
    for trace in figure.traces:
        if trace["type"] == "heatmap":
            z = [[float("nan") if v is None else v for v in row] for row in trace["z"]]
            shown = axes.imshow(z, cmap="cividis", aspect="auto", origin="lower")
            axes.set_xticks(range(len(trace["x"])), trace["x"], rotation=60, fontsize=7)
            axes.set_yticks(range(len(trace["y"])), trace["y"], fontsize=7)
            axes.figure.colorbar(shown, label=trace["colorbar"]["title"]["text"])
            continue
        line, step = trace["line"], "steps-mid" if trace["line"].get("shape") else "default"
        axes.plot(
            trace["x"], trace["y"], color=line["color"], marker=_MARKS[trace["marker"]["symbol"]],
            label=trace["name"], drawstyle=step, linewidth=1.6, markersize=5,
        )  # fmt: skip
    if figure.traces[0]["type"] != "heatmap":
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        if isinstance(figure.traces[0]["x"][0], str):
            axes.tick_params(axis="x", rotation=60, labelsize=7)
    for name, limit in (("xaxis", axes.set_xlim), ("yaxis", axes.set_ylim)):
        if "range" in figure.layout[name]:
            limit(figure.layout[name]["range"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(figure.layout["xaxis"]["title"]["text"])
    axes.set_ylabel(figure.layout["yaxis"]["title"]["text"])
