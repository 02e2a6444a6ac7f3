"""Verbs that measure: evaluate, bdrate, demo."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .. import console
from ..errors import RdquantError
from .common import Effort, Json, Quantizer, Step, app

PANEL = "Measure"


@app.command(rich_help_panel=PANEL)
def evaluate(
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="A model; give it again for more points.")
    ],
    images: Annotated[Path, typer.Option(help="Folder of pictures.")],
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    name: Annotated[str, typer.Option(help="Name of the curve.")] = "rdquant",
    dataset: Annotated[str | None, typer.Option(help="Name of the data set; default: the folder's.")] = None,
    check: Annotated[bool, typer.Option(help="Compare each decoded file with the forward pass.")] = True,
    quantizer: Quantizer = None,
    step: Step = None,
    effort: Effort = None,
) -> None:
    """Code a folder of pictures to real files, decode them, and measure rate, quality and time."""
    from ..evaluate import Curve, Point, machine
    from ..evaluate import evaluate as run
    from ..files.images import list_images
    from ..load import open_coder

    files = list_images(images)
    points = []
    for m in model:
        coder = open_coder(m, quantizer, step, effort)
        with console.progress(m) as update:
            results = run(coder, files, check, update)
        points.append(Point(m, coder.describe(), results))
    parts = ["rdquant evaluate", *(f"-m {m}" for m in model), f"--images {images.name}"]
    command = " ".join(
        [
            *parts,
            *([f"--quantizer {quantizer}"] if quantizer else []),
            *([] if effort is None else [f"--effort {effort}"]),
            *([] if step is None else [f"--step {step}"]),
        ]
    )
    curve = Curve(name, dataset or images.name, points, {"command": command, "machine": machine()})
    if json_out is not None:
        curve.save(json_out)
    columns = ("model", "bpp", "estimated", "PSNR dB", "MS-SSIM", "encode s", "decode s")
    rows = [[p.label, p.bpp, p.bpp_estimated, p.psnr, p.ms_ssim, p.encode_s, p.decode_s] for p in points]
    console.show_table(f"{curve.dataset}, {len(files)} pictures, means", columns, rows)


@app.command(rich_help_panel=PANEL)
def bdrate(
    anchor: Annotated[Path, typer.Argument(help="Result file of the anchor.")],
    test: Annotated[Path, typer.Argument(help="Result file of the tested codec.")],
    as_json: Json = False,
) -> None:
    """Compare two curves: BD-rate by PCHIP and Akima, on PSNR and MS-SSIM."""
    from ..evaluate import Curve, bd_rate, bd_rate_per_image
    from ..evaluate.bdrate import BDRate

    a, t = Curve.load(anchor), Curve.load(test)
    results: list[tuple[str, BDRate]] = [("mean curve", bd_rate(a, t))]
    for label, compute in (
        ("mean curve", lambda: bd_rate(a, t, method="akima")),
        ("per picture", lambda: bd_rate_per_image(a, t)),
        ("mean curve", lambda: bd_rate(a, t, "ms_ssim_db")),
    ):
        try:
            results.append((label, compute()))
        except RdquantError as error:
            console.say(f"left out: {error}")
    if as_json:
        console.show_json([{"aggregation": label, **dataclasses.asdict(r)} for label, r in results])
        return
    rows = [
        (
            r.metric,
            r.method,
            label,
            f"{r.percent:+.2f} %",
            f"{r.low:.2f}..{r.high:.2f} dB",
            r.anchor_points,
            r.test_points,
        )
        for label, r in results
    ]
    columns = ("metric", "interpolation", "aggregation", "BD-rate", "overlap", "anchor points", "test points")
    console.show_table(f"{t.name} against {a.name}, {t.dataset}", columns, rows)


@app.command(rich_help_panel=PANEL)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for files and the report.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Quantize the bundled codec, code photographs to real files, decode them, and write a report."""
    from ..study.demo import COLUMNS, run_demo

    with console.progress("demo") as update:
        rows, report = run_demo(out, update)
    if as_json:
        console.show_json([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    else:
        console.show_table("photographs through the quantized codec (real files)", COLUMNS, rows)
    console.say(f"report: {report}")
